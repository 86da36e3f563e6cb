// Conditions on a row: how much of a term acts on it, from 0 to 1. Pure functions of what the row reads.
#pragma once

#include <tuple>
#include <vector>

#include "gauge.h"

namespace pyemo {

// Whether a reading is above a threshold, or below it.
struct Probe {
    Gauge gauge;
    float threshold = 0.0f;
    bool above = true;
    float softness = 0.0f;  // of a sigmoid, in residual norms; 0: a step

    bool operator==(const Probe & o) const {
        return std::tie(gauge, threshold, above, softness) ==
               std::tie(o.gauge, o.threshold, o.above, o.softness);
    }

    // 0 to 1
    float holds(const float * h) const;
};

// A rule over probes. and is the least of two values, or the greatest, not is 1 - value.
class Gate {
public:
    static constexpr int op_not = -1, op_and = -2, op_or = -3;

    // program: postfix; a number from 0 on is a probe. Throws input where it is none, or a probe is not finite.
    Gate(std::vector<Probe> probes, std::vector<int> program);

    bool operator==(const Gate & o) const { return std::tie(probes_, program_) == std::tie(o.probes_, o.program_); }

    const std::vector<Probe> & probes() const { return probes_; }
    int il() const { return il_; }  // the last layer it reads: from there on its value is known

    // held: what each probe says, (n_probes,)
    float value(const float * held) const;

private:
    std::vector<Probe> probes_;
    std::vector<int> program_;
    int il_ = 0;
};

}  // namespace pyemo
