// What acts on a row: control vectors, the terms of a mix, and the mix compiled per layer.
#pragma once

#include <memory>
#include <tuple>
#include <vector>

#include "gate.h"
#include "operators.h"

namespace pyemo {

// The directions of one control vector. Immutable once made; shared by every mix that uses it.
class Directions {
public:
    Directions(int n_layer, int n_embd);

    // values: (n_embd,) float32, copied. Throws vector_shape on a bad layer, NaN, infinity or zero length.
    // neutral, own: see Direction.
    void set(int il, const float * values, float neutral = 0.0f, float own = 0.0f);

    bool operator==(const Directions & o) const { return rows_ == o.rows_; }

    // components: (k, n_embd) whitened, center: (k,), both copied; the layer has a direction. Throws vector_shape on
    // NaN, infinity or a radius that is not above 0.
    void set_ellipsoid(int il, std::vector<float> components, std::vector<float> center, float radius2);

    int n_layer() const { return int(rows_.size()); }
    int n_embd() const { return n_embd_; }
    bool has(int il) const { return !rows_[il].values.empty(); }
    Direction at(int il) const {
        const Row & row = rows_[il];
        return {row.values.data(), row.unit.data(), row.length, row.neutral, row.own,
                row.within.center.empty() ? nullptr : &row.within};
    }

private:
    struct Row {
        std::vector<float> values, unit;  // (n_embd,); see Direction
        float length = 0.0f, neutral = 0.0f, own = 0.0f;
        Ellipsoid within;  // without components where it is not known

        bool operator==(const Row & o) const {
            const Ellipsoid & a = within, & b = o.within;
            return std::tie(values, neutral, own, a.components, a.center, a.radius2) ==
                   std::tie(o.values, o.neutral, o.own, b.components, b.center, b.radius2);
        }
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
    std::shared_ptr<const Gate> gate;  // nullptr: always; reads no layer after one that the term acts at
};

// Whether both act alike, to the bit: the same numbers in the same order, whichever objects hold them.
bool same_terms(const std::vector<Term> & a, const std::vector<Term> & b);

// Terms compiled per layer: one summed delta, then the other operators in the order given.
class Mix {
public:
    Mix(const std::vector<Term> & terms, int n_layer, int n_embd);

    // Whether the row after block il is read or changed.
    bool acts_on(int il) const {
        const Layer & layer = layers_[il];
        return layer.delta_offset >= 0 || !layer.gated_adds.empty() || !layer.others.empty() || !layer.probes.empty();
    }

    // Probes of all gates: floats to remember of a row from block to block.
    size_t n_probes() const { return n_probes_; }

    // Reads and then changes one row, h: (n_embd,), after block il. held: (n_probes,), what the probes say, filled
    // as the row passes their layers.
    void apply(int il, float * h, float * held) const;

private:
    struct Applied {
        const Directions * vector;
        float strength;
        const Operator * op;
        const Gate * gate;  // nullptr: always
        size_t first_probe;
    };
    struct Probed {
        const Probe * probe;
        size_t index;  // into held
    };
    struct Layer {
        int delta_offset = -1;            // into deltas_, or -1
        std::vector<Applied> gated_adds;  // all adds of a layer where one has a gate; there is no delta then
        std::vector<Applied> others;
        std::vector<Probed> probes;
    };
    void apply_gated_adds(const Layer & layer, int il, float * h, const float * held) const;
    void apply_by(float share, const Applied & other, int il, float * h) const;

    int n_embd_;
    std::vector<Term> terms_;  // keeps the directions and the gates alive
    std::vector<Layer> layers_;
    std::vector<float> deltas_;
    size_t n_probes_ = 0;
    mutable std::vector<float> scratch_;  // (n_embd,); an engine applies one mix at a time
};

}  // namespace pyemo
