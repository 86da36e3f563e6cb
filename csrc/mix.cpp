#include "mix.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "errors.h"

namespace pyemo {

Directions::Directions(int n_layer, int n_embd) : n_embd_(n_embd) {
    if (n_layer < 1 || n_embd < 1) {
        throw Error(ErrorKind::vector_shape, "a control vector needs n_layer >= 1 and n_embd >= 1");
    }
    rows_.resize(n_layer);
}

void Directions::set(int il, const float * values, float neutral, float own) {
    if (il < 0 || il >= n_layer()) {
        throw Error(ErrorKind::vector_shape, "direction for layer " + std::to_string(il) +
                    ", but the model has layers 0 to " + std::to_string(n_layer() - 1));
    }
    Row row;
    row.values.assign(values, values + n_embd_);
    for (float x : row.values) {
        if (!std::isfinite(x)) {
            throw Error(ErrorKind::vector_shape, "direction of layer " + std::to_string(il) + " holds NaN or infinity");
        }
    }
    if (!std::isfinite(neutral) || !std::isfinite(own)) {
        throw Error(ErrorKind::vector_shape, "a projection of layer " + std::to_string(il) + " is NaN or infinity");
    }
    row.neutral = neutral;
    row.own = own;
    row.length = norm(values, n_embd_);
    if (!std::isfinite(row.length)) {
        throw Error(ErrorKind::vector_shape, "direction of layer " + std::to_string(il) +
                    " is too long: its norm overflows float32");
    }
    row.unit = row.values;
    if (row.length > 0.0f) {
        for (float & x : row.unit) {
            x /= row.length;
        }
    }
    rows_[il] = std::move(row);
}

bool same_terms(const std::vector<Term> & a, const std::vector<Term> & b) {
    const auto same = [](const auto & x, const auto & y) { return x == y || (x && y && *x == *y); };  // what they point to
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](const Term & x, const Term & y) {
        return x.strength == y.strength && x.op == y.op && x.il_begin == y.il_begin && x.il_end == y.il_end &&
               same(x.vector, y.vector) && same(x.gate, y.gate);
    });
}

void Directions::set_ellipsoid(int il, std::vector<float> components, std::vector<float> center, float radius2) {
    const std::string where = "the ellipsoid of layer " + std::to_string(il);
    if (il < 0 || il >= n_layer() || !has(il)) {
        throw Error(ErrorKind::vector_shape, where + " has no direction to limit");
    }
    if (center.empty() || components.size() != center.size() * size_t(n_embd_)) {
        throw Error(ErrorKind::vector_shape, where + " has not one center for each component of the model's width");
    }
    const auto finite = [](const std::vector<float> & row) {
        return std::all_of(row.begin(), row.end(), [](float x) { return std::isfinite(x); });
    };
    if (!finite(components) || !finite(center) || !std::isfinite(radius2) || !(radius2 > 0.0f)) {
        throw Error(ErrorKind::vector_shape, where + " is not one: its numbers must be finite and its radius above 0");
    }
    Row & row = rows_[il];
    std::vector<float> moved;
    for (size_t k = 0; k < center.size(); ++k) {
        moved.push_back(dot(components.data() + k * size_t(n_embd_), row.values.data(), n_embd_));
    }
    row.within = {std::move(components), std::move(center), radius2, std::move(moved)};
}

Mix::Mix(const std::vector<Term> & terms, int n_layer, int n_embd)
    : n_embd_(n_embd), terms_(terms), layers_(n_layer) {
    std::vector<size_t> first_probes;
    std::vector<char> has_gated_add(n_layer, 0);
    const auto acts = [&](const Term & term, int il) {
        return term.vector->has(il) && !(term.strength == 0.0f && term.op->is_off_at_zero);
    };
    for (const Term & term : terms_) {
        first_probes.push_back(n_probes_);
        if (term.gate == nullptr) {
            continue;
        }
        for (const Probe & probe : term.gate->probes()) {
            layers_[probe.gauge.il].probes.push_back({&probe, n_probes_++});
        }
        for (int il = term.il_begin; il < term.il_end; ++il) {
            has_gated_add[il] |= char(term.op->apply == nullptr && acts(term, il));
        }
    }
    // Count first: deltas_ must not move while it is filled, and most mixes leave some layers alone.
    int n_delta = 0;
    for (size_t t = 0; t < terms_.size(); ++t) {
        const Term & term = terms_[t];
        for (int il = term.il_begin; il < term.il_end; ++il) {
            if (!acts(term, il)) {
                continue;
            }
            Layer & layer = layers_[il];
            const Applied applied{term.vector.get(), term.strength, term.op, term.gate.get(), first_probes[t]};
            if (term.op->apply != nullptr) {
                layer.others.push_back(applied);
            } else if (has_gated_add[il]) {
                layer.gated_adds.push_back(applied);
            } else if (layer.delta_offset < 0) {
                layer.delta_offset = n_delta++ * n_embd;
            }
        }
    }
    deltas_.assign(size_t(n_delta) * n_embd, 0.0f);
    for (const Term & term : terms_) {
        if (term.op->apply != nullptr) {
            continue;
        }
        for (int il = term.il_begin; il < term.il_end; ++il) {
            if (!acts(term, il) || has_gated_add[il]) {
                continue;
            }
            float * delta = deltas_.data() + layers_[il].delta_offset;
            const float * v = term.vector->at(il).values;
            for (int i = 0; i < n_embd; ++i) {
                delta[i] += term.strength * v[i];
            }
        }
    }
}

void Mix::apply(int il, float * h, float * held) const {
    const Layer & layer = layers_[il];
    for (const Probed & probed : layer.probes) {
        held[probed.index] = probed.probe->holds(h);
    }
    if (layer.delta_offset >= 0) {
        add(h, deltas_.data() + layer.delta_offset, n_embd_);
    }
    if (!layer.gated_adds.empty()) {
        apply_gated_adds(layer, il, h, held);
    }
    for (const Applied & other : layer.others) {
        const float share = other.gate == nullptr ? 1.0f : other.gate->value(held + other.first_probe);
        if (share == 1.0f) {
            other.op->apply(h, other.vector->at(il), other.strength, n_embd_);
        } else if (share > 0.0f) {
            apply_by(share, other, il, h);
        }
    }
}

// Summed in the order of the terms, as the deltas are: open gates give the bits of no gates, closed ones those of no
// terms.
void Mix::apply_gated_adds(const Layer & layer, int il, float * h, const float * held) const {
    scratch_.assign(n_embd_, 0.0f);
    bool acts = false;
    for (const Applied & term : layer.gated_adds) {
        const float share = term.gate == nullptr ? 1.0f : term.gate->value(held + term.first_probe);
        if (share == 0.0f) {
            continue;
        }
        acts = true;
        const float strength = share * term.strength;
        const float * v = term.vector->at(il).values;
        for (int i = 0; i < n_embd_; ++i) {
            scratch_[i] += strength * v[i];
        }
    }
    if (acts) {
        add(h, scratch_.data(), n_embd_);
    }
}

// h + share (what the operator makes of h - h)
void Mix::apply_by(float share, const Applied & other, int il, float * h) const {
    scratch_.assign(h, h + n_embd_);
    other.op->apply(scratch_.data(), other.vector->at(il), other.strength, n_embd_);
    for (int i = 0; i < n_embd_; ++i) {
        h[i] += share * (scratch_[i] - h[i]);
    }
}

}  // namespace pyemo
