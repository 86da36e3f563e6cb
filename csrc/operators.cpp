#include "operators.h"

#include <algorithm>
#include <cmath>

#include "errors.h"

namespace pyemo {
namespace {

// h + k u
void move(float * h, const float * u, float k, size_t n) {
    for (size_t i = 0; i < n; ++i) {
        h[i] += k * u[i];
    }
}

const Operator operators[] = {
    {"add", true, nullptr},
    {"project_out", true, [](float * h, const Direction & v, float s, size_t n) { project_out(h, v.unit, s, n); }},
    {"clamp", false, [](float * h, const Direction & v, float s, size_t n) { clamp(h, v.unit, v.neutral + s * v.length, n); }},
    {"add_keep_norm", true, [](float * h, const Direction & v, float s, size_t n) { add_keep_norm(h, v.values, s, n); }},
    {"raise", false, [](float * h, const Direction & v, float s, size_t n) {
        if (v.has_way()) raise(h, v.unit, v.of_text(s), n);
    }},
    {"cap", false, [](float * h, const Direction & v, float s, size_t n) {
        if (v.has_way()) cap(h, v.unit, v.of_text(s), n);
    }},
    {"add_within", true, [](float * h, const Direction & v, float s, size_t n) {
        if (v.within == nullptr) return;
        const float sign = s < 0.0f ? -1.0f : 1.0f;
        move(h, v.values, sign * v.within->step(h, sign, std::fabs(s), n), n);
    }},
};

}  // namespace

const Operator & operator_named(const std::string & name) {
    std::string known;
    for (const Operator & op : operators) {
        if (name == op.name) {
            return op;
        }
        known += (known.empty() ? "" : ", ") + std::string(op.name);
    }
    throw Error(ErrorKind::input, "operator '" + name + "' is unknown; use one of " + known);
}

std::vector<std::string> operator_names() {
    std::vector<std::string> names;
    for (const Operator & op : operators) names.emplace_back(op.name);
    return names;
}

// Eight partial sums let the compiler vectorise without -ffast-math and keep the order, and so the
// result, the same on every machine.
float dot(const float * a, const float * b, size_t n) {
    constexpr size_t lanes = 8;
    float sums[lanes] = {};
    size_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        for (size_t k = 0; k < lanes; ++k) {
            sums[k] += a[i + k] * b[i + k];
        }
    }
    double total = 0.0;
    for (; i < n; ++i) {
        total += double(a[i]) * b[i];
    }
    for (float s : sums) {
        total += s;
    }
    return float(total);
}

float Ellipsoid::step(const float * h, float sign, float most, size_t n) const {
    // |r + x w|^2 = radius2, with r = W h - center and w = sign W v: a x^2 + 2 b x + c = 0
    double a = 0.0, b = 0.0, c = -double(radius2);
    for (size_t k = 0; k < center.size(); ++k) {
        const double r = double(dot(components.data() + k * n, h, n)) - center[k];
        const double w = double(sign) * moved[k];
        a += w * w;
        b += w * r;
        c += r * r;
    }
    const double root = b * b - a * c;
    if (!(root >= 0.0)) {
        return 0.0f;
    }
    if (a == 0.0) {
        return c <= 0.0 ? most : 0.0f;  // no component sees the direction
    }
    return float(std::min(double(most), std::max(0.0, (std::sqrt(root) - b) / a)));
}

float norm(const float * a, size_t n) { return std::sqrt(dot(a, a, n)); }

void add(float * h, const float * delta, size_t n) {
    for (size_t i = 0; i < n; ++i) {
        h[i] += delta[i];
    }
}

void project_out(float * h, const float * u, float s, size_t n) {
    const float k = s * dot(h, u, n);
    for (size_t i = 0; i < n; ++i) {
        h[i] -= k * u[i];
    }
}

void clamp(float * h, const float * u, float target, size_t n) {
    move(h, u, target - dot(h, u, n), n);
}

void raise(float * h, const float * u, float target, size_t n) {
    const float k = target - dot(h, u, n);
    if (k > 0.0f) {
        move(h, u, k, n);
    }
}

void cap(float * h, const float * u, float target, size_t n) {
    const float k = target - dot(h, u, n);
    if (k < 0.0f) {
        move(h, u, k, n);
    }
}

void add_keep_norm(float * h, const float * v, float s, size_t n) {
    // |h + s v|^2 from the three products, so that h is only written once.
    const double hh = dot(h, h, n);
    const double sum = hh + 2.0 * s * dot(h, v, n) + double(s) * s * dot(v, v, n);
    if (!(sum > 1e-12 * hh)) {
        return;
    }
    const float k = float(std::sqrt(hh / sum));
    for (size_t i = 0; i < n; ++i) {
        h[i] = (h[i] + s * v[i]) * k;
    }
}

}  // namespace pyemo
