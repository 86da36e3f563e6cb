// The ways a direction changes one row of the residual stream. Pure functions of a row;
// tests/engine/test_operators.py holds them against NumPy. A new one is a function here and a line of the table in
// operators.cpp, and its name in pyemo/choices.py.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace pyemo {

// Where real rows lie: |W h - center|^2 <= radius2, with W the whitening of k principal components.
struct Ellipsoid {
    std::vector<float> components;  // W: (k, n), row by row
    std::vector<float> center;      // (k,)
    float radius2 = 0.0f;           // > 0
    std::vector<float> moved;       // (k,) W v, of the direction it is kept with

    // The largest x in [0, most] for which h + sign x v is inside; 0 where there is none.
    float step(const float * h, float sign, float most, size_t n) const;
};

// A control vector at one layer.
struct Direction {
    const float * values;  // (n,) as given
    const float * unit;    // (n,) values / length
    float length;          // the model's residual norm at this layer, for a vector in residual units
    float neutral = 0.0f;  // mean h.u of neutral texts; 0 where it is not known
    float own = 0.0f;      // mean h.u of the vector's own texts

    const Ellipsoid * within = nullptr;  // nullptr: not known

    // Whether its own texts lie further along it than neutral ones, so that there is a way between them.
    bool has_way() const { return own > neutral; }
    // The coordinate of real text that is z times as far from neutral text as the vector's own texts are.
    float of_text(float z) const { return neutral + z * (own - neutral); }
};

// A row of the table of operators.
struct Operator {
    const char * name;
    bool is_off_at_zero;  // strength 0 changes nothing
    // Changes h: (n,), by strength s. Null for add: all adds of a mix are summed into one delta first.
    void (*apply)(float * h, const Direction & v, float s, size_t n);
};

// Throws input with the known names.
const Operator & operator_named(const std::string & name);
std::vector<std::string> operator_names();

// h, v, u, delta: (n,) float32. u has unit length.

// h + delta, where delta is already strength times direction. The product is rounded before the
// sum, as llama_set_adapter_cvec does, so that both give the same bits (-ffp-contract=off).
void add(float * h, const float * delta, size_t n);

// h - s (h.u) u
void project_out(float * h, const float * u, float s, size_t n);

// h + (target - h.u) u
void clamp(float * h, const float * u, float target, size_t n);

// The same, where h.u is below the target (raise) or above it (cap); other rows keep their bits.
void raise(float * h, const float * u, float target, size_t n);
void cap(float * h, const float * u, float target, size_t n);

// (h + s v) |h| / |h + s v|; h itself where the sum vanishes
void add_keep_norm(float * h, const float * v, float s, size_t n);

float dot(const float * a, const float * b, size_t n);
float norm(const float * a, size_t n);

}  // namespace pyemo
