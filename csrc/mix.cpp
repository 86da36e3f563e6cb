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

Mix::Mix(const std::vector<Term> & terms, int n_layer, int n_embd)
    : n_embd_(n_embd), terms_(terms), layers_(n_layer) {
    // Count first: deltas_ must not move while it is filled, and most mixes leave some layers alone.
    int n_delta = 0;
    for (const Term & term : terms_) {
        for (int il = term.il_begin; il < term.il_end; ++il) {
            if (!term.vector->has(il)) {
                continue;
            }
            Layer & layer = layers_[il];
            if (term.strength == 0.0f && term.op->is_off_at_zero) {
                continue;
            }
            if (term.op->apply != nullptr) {
                layer.others.push_back({term.vector.get(), term.strength, term.op});
            } else if (layer.delta_offset < 0) {
                layer.delta_offset = n_delta++ * n_embd;
            }
        }
    }
    deltas_.assign(size_t(n_delta) * n_embd, 0.0f);
    for (const Term & term : terms_) {
        if (term.op->apply != nullptr || term.strength == 0.0f) {
            continue;
        }
        for (int il = term.il_begin; il < term.il_end; ++il) {
            if (!term.vector->has(il)) {
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

void Mix::apply(int il, float * h) const {
    const Layer & layer = layers_[il];
    if (layer.delta_offset >= 0) {
        add(h, deltas_.data() + layer.delta_offset, n_embd_);
    }
    for (const Other & other : layer.others) {
        other.op->apply(h, other.vector->at(il), other.strength, n_embd_);
    }
}

}  // namespace pyemo
