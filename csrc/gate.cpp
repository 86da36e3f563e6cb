#include "gate.h"

#include <algorithm>
#include <cmath>

#include "errors.h"

namespace pyemo {

float Probe::holds(const float * h) const {
    const float beyond = above ? gauge.read(h) - threshold : threshold - gauge.read(h);
    if (softness == 0.0f) {
        return beyond > 0.0f ? 1.0f : 0.0f;
    }
    return 1.0f / (1.0f + std::exp(-beyond / softness));
}

Gate::Gate(std::vector<Probe> probes, std::vector<int> program)
    : probes_(std::move(probes)), program_(std::move(program)) {
    for (const Probe & probe : probes_) {
        if (!std::isfinite(probe.threshold) || !std::isfinite(probe.softness) || probe.softness < 0.0f) {
            throw Error(ErrorKind::input, "a condition needs a finite threshold, and a finite softness of at least 0");
        }
        il_ = std::max(il_, probe.gauge.il);
    }
    int depth = 0;
    bool is_right = !probes_.empty();
    for (int op : program_) {
        const int taken = op >= 0 ? 0 : op == op_not ? 1 : 2;
        is_right = is_right && op >= op_or && op < int(probes_.size()) && depth >= taken;
        depth += 1 - taken;
    }
    if (!is_right || depth != 1) {
        throw Error(ErrorKind::input, "a rule's program does not come to one value");
    }
}

float Gate::value(const float * held) const {
    std::vector<float> stack;
    for (int op : program_) {
        if (op >= 0) {
            stack.push_back(held[op]);
        } else if (op == op_not) {
            stack.back() = 1.0f - stack.back();
        } else {
            const float right = stack.back();
            stack.pop_back();
            stack.back() = op == op_and ? std::min(stack.back(), right) : std::max(stack.back(), right);
        }
    }
    return stack.back();
}

}  // namespace pyemo
