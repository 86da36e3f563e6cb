// What acts on a row: control vectors, the terms of a mix, and the mix compiled per layer.
#pragma once

#include <memory>
#include <vector>

#include "operators.h"

namespace pyemo {

// The directions of one control vector. Immutable once made; shared by every mix that uses it.
class Directions {
public:
    Directions(int n_layer, int n_embd);

    // values: (n_embd,) float32, copied. Throws vector_shape on a bad layer, NaN, infinity or zero length.
    // neutral, own: see Direction.
    void set(int il, const float * values, float neutral = 0.0f, float own = 0.0f);

    int n_layer() const { return int(rows_.size()); }
    int n_embd() const { return n_embd_; }
    bool has(int il) const { return !rows_[il].values.empty(); }
    Direction at(int il) const {
        const Row & row = rows_[il];
        return {row.values.data(), row.unit.data(), row.length, row.neutral, row.own};
    }

private:
    struct Row {
        std::vector<float> values, unit;  // (n_embd,); see Direction
        float length = 0.0f, neutral = 0.0f, own = 0.0f;
    };
    int n_embd_;
    std::vector<Row> rows_;  // by layer; empty where the vector holds no direction
};

struct Term {
    std::shared_ptr<const Directions> vector;
    float strength = 0.0f;
    const Operator * op = nullptr;
    int il_begin = 0;  // layers [il_begin, il_end)
    int il_end = 0;
};

// Terms compiled per layer: one summed delta, then the other operators in the order given.
class Mix {
public:
    Mix(const std::vector<Term> & terms, int n_layer, int n_embd);

    bool acts_on(int il) const { return layers_[il].delta_offset >= 0 || !layers_[il].others.empty(); }

    // Changes one row, h: (n_embd,), after block il.
    void apply(int il, float * h) const;

private:
    struct Other {
        const Directions * vector;
        float strength;
        const Operator * op;
    };
    struct Layer {
        int delta_offset = -1;  // into deltas_, or -1
        std::vector<Other> others;
    };
    int n_embd_;
    std::vector<Term> terms_;  // keeps the directions alive
    std::vector<Layer> layers_;
    std::vector<float> deltas_;
};

}  // namespace pyemo
