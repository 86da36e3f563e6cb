// Readings of a row: how far it points along a direction.
#pragma once

#include <tuple>
#include <vector>

#include "operators.h"

namespace pyemo {

// One gauge: the projection of a block's output on a unit direction, in residual norms.
struct Gauge {
    std::vector<float> unit;  // (n_embd,)
    int il = 0;
    float neutral = 0.0f;        // mean projection of neutral texts
    float residual_norm = 1.0f;  // > 0

    bool operator==(const Gauge & o) const {
        return std::tie(unit, il, neutral, residual_norm) ==
               std::tie(o.unit, o.il, o.neutral, o.residual_norm);
    }

    // (h.u - neutral) / residual_norm
    float read(const float * h) const { return (dot(h, unit.data(), unit.size()) - neutral) / residual_norm; }
};

struct GaugeReading {
    float value = 0.0f;  // (h.u - neutral) / residual_norm, without the part the steering added directly
    float dose = 0.0f;   // that part, in residual norms
};

}  // namespace pyemo
