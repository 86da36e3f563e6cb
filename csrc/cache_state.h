// A few cells of the KV cache as llama.cpp's public state functions hand them out, taken apart byte by byte: where each
// layer's keys and values lie. Nothing else describes the layout than llama.cpp's state_write (src/llama-kv-cache.cpp),
// so whatever does not fit to the last byte is refused.
#pragma once

#include <cstdint>
#include <vector>

#include "ggml.h"

namespace pyemo {

class CacheState {
public:
    // The bytes of a sequence that holds exactly the positions begin to end - 1.
    // Throws what an engine's users can act on: positions that are gone, quantized cells, a layout that is not known.
    CacheState(std::vector<uint8_t> bytes, int begin, int end);

    // Layers that have cells, in the order of the bytes: a model with sliding windows has those without one first.
    int n_layers() const { return int(keys_.size()); }
    int width(int layer, bool of_keys) const { return rows(layer, of_keys).width; }
    // The bytes of a layer's key at a position, which tell one layer from another.
    const uint8_t * key_bytes(int layer, int pos) const;
    size_t n_key_bytes(int layer) const { return keys_[size_t(layer)].cell_stride; }

    float get(int layer, bool of_keys, int pos, int i) const;
    // False if the sum is not finite in the cache's type; then nothing has changed. Adding 0 changes no bit.
    bool add(int layer, bool of_keys, int pos, int i, float delta);

    const std::vector<uint8_t> & bytes() const { return bytes_; }

private:
    struct Rows {
        ggml_type type;
        size_t offset, cell_stride, element_stride;
        int width;
        size_t cache;  // which of cells_
    };
    const Rows & rows(int layer, bool of_keys) const { return (of_keys ? keys_ : values_)[size_t(layer)]; }
    size_t offset_of(const Rows & rows, int pos, int i) const;

    std::vector<uint8_t> bytes_;
    int begin_;
    std::vector<std::vector<size_t>> cells_;  // by cache: position - begin -> index of the cell
    std::vector<Rows> keys_, values_;
};

}  // namespace pyemo
