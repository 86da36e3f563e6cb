// The four ways a direction changes one row of the residual stream. Pure functions of a row;
// tests/engine/test_operators.py holds them against NumPy.
#pragma once

#include <cstddef>

namespace pyemo {

enum class Operator { add, project_out, clamp, add_keep_norm };

// h, v, u, delta: (n,) float32. u has unit length.

// h + delta, where delta is already strength times direction. The product is rounded before the
// sum, as llama_set_adapter_cvec does, so that both give the same bits (-ffp-contract=off).
void add(float * h, const float * delta, size_t n);

// h - s (h.u) u
void project_out(float * h, const float * u, float s, size_t n);

// h + (target - h.u) u
void clamp(float * h, const float * u, float target, size_t n);

// (h + s v) |h| / |h + s v|; h itself where the sum vanishes
void add_keep_norm(float * h, const float * v, float s, size_t n);

float dot(const float * a, const float * b, size_t n);
float norm(const float * a, size_t n);

}  // namespace pyemo
