#include "reader.h"

#include <algorithm>

namespace pyemo {

Reader::Reader(std::vector<int> layers, Pooling pooling, int pos_begin, int pos_end, int n_embd)
    : layers_(std::move(layers)), pooling_(pooling), pos_begin_(pos_begin), pos_end_(pos_end), n_embd_(n_embd),
      counts_(layers_.size(), 0) {
    const size_t n = layers_.size() * size_t(n_embd);
    if (pooling_ == Pooling::mean) sums_.assign(n, 0.0);
    if (pooling_ == Pooling::last) rows_.assign(n, 0.0f);
}

void Reader::take(size_t layer_index, int pos, const float * h) {
    const size_t offset = layer_index * size_t(n_embd_);
    switch (pooling_) {
        case Pooling::mean:
            for (int i = 0; i < n_embd_; ++i) sums_[offset + i] += h[i];
            break;
        case Pooling::last:
            std::copy(h, h + n_embd_, rows_.begin() + offset);
            break;
        case Pooling::all: {
            const size_t stride = layers_.size() * size_t(n_embd_);
            const size_t index = size_t(pos - pos_begin_);
            if (rows_.size() < (index + 1) * stride) rows_.resize((index + 1) * stride);
            std::copy(h, h + n_embd_, rows_.begin() + index * stride + offset);
            break;
        }
    }
    ++counts_[layer_index];
}

int Reader::rewind(int pos) {
    const int keep = std::max(0, pos - pos_begin_);
    // A decode that failed in the middle has shown some layers more rows than others.
    if (counts_.empty() || *std::max_element(counts_.begin(), counts_.end()) <= keep) {
        return pos;
    }
    if (pooling_ == Pooling::all) {
        rows_.resize(size_t(keep) * layers_.size() * size_t(n_embd_));
        std::fill(counts_.begin(), counts_.end(), keep);
        return pos;
    }
    std::fill(sums_.begin(), sums_.end(), 0.0);
    std::fill(counts_.begin(), counts_.end(), 0);
    return std::min(pos, pos_begin_);
}

int Reader::count() const { return counts_.empty() ? 0 : counts_.front(); }

std::vector<float> Reader::values() const {
    if (pooling_ != Pooling::mean) {
        return rows_;
    }
    std::vector<float> out(sums_.size());
    const double n = std::max(1, count());
    std::transform(sums_.begin(), sums_.end(), out.begin(), [&](double s) { return float(s / n); });
    return out;
}

}  // namespace pyemo
