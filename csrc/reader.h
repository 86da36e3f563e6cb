// Hidden states of one sequence, collected while the hook shows them.
#pragma once

#include <cstddef>
#include <vector>

namespace pyemo {

// How hidden states of one sequence are collected: positions [pos_begin, pos_end) of the given layers.
enum class Pooling { mean, last, all };

class Reader {
public:
    Reader(std::vector<int> layers, Pooling pooling, int pos_begin, int pos_end, int n_embd);

    const std::vector<int> & layers() const { return layers_; }
    bool wants(int pos) const { return pos >= pos_begin_ && pos < pos_end_; }
    void take(size_t layer_index, int pos, const float * h);
    // Positions from pos on are about to be undone. Returns how far the sequence has to go back so that
    // reading on gives what a fresh reading would: a mean or a last row cannot be taken apart.
    int rewind(int pos);

    int count() const;  // positions read so far
    // mean, last: (n_layers, n_embd); all: (count, n_layers, n_embd)
    std::vector<float> values() const;

private:
    std::vector<int> layers_;
    Pooling pooling_;
    int pos_begin_, pos_end_, n_embd_;
    std::vector<double> sums_;    // mean: (n_layers, n_embd)
    std::vector<float> rows_;     // last: (n_layers, n_embd); all: (count, n_layers, n_embd)
    std::vector<int> counts_;     // positions seen, by layer
};

}  // namespace pyemo
