#include "cache_state.h"

#include <cmath>
#include <cstring>
#include <string>

#include "errors.h"

namespace pyemo {
namespace {

constexpr uint32_t magic_of_state = 0xaf143cd8;

[[noreturn]] void refuse_layout(const std::string & what) {
    throw Error(ErrorKind::steering_unsupported, "this model's cache cannot be read or edited: " + what);
}

// Takes numbers from the front, never past the end.
class Cursor {
public:
    explicit Cursor(const std::vector<uint8_t> & bytes) : bytes_(bytes) {}

    template <typename T>
    T take() {
        T value;
        std::memcpy(&value, skip(sizeof(T)), sizeof(T));
        return value;
    }

    const uint8_t * skip(size_t n) {
        if (n > bytes_.size() - position_) {
            refuse_layout("its state ends too early");
        }
        const uint8_t * at = bytes_.data() + position_;
        position_ += n;
        return at;
    }

    size_t position() const { return position_; }
    bool at_end() const { return position_ == bytes_.size(); }

private:
    const std::vector<uint8_t> & bytes_;
    size_t position_ = 0;
};

ggml_type take_type(Cursor & cursor) {
    const auto type = ggml_type(cursor.take<int32_t>());
    if (type != GGML_TYPE_F32 && type != GGML_TYPE_F16 && type != GGML_TYPE_BF16) {
        const bool known = type >= 0 && type < GGML_TYPE_COUNT;
        throw Error(ErrorKind::input, std::string("cells of type ") + (known ? ggml_type_name(type) : "?") +
                    " cannot be read or edited, llama.cpp rotates them; open the engine with kv_type f16 or f32");
    }
    return type;
}

float load(ggml_type type, const uint8_t * at) {
    if (type == GGML_TYPE_F32) {
        float value;
        std::memcpy(&value, at, sizeof(value));
        return value;
    }
    if (type == GGML_TYPE_BF16) {
        ggml_bf16_t value;
        std::memcpy(&value, at, sizeof(value));
        return ggml_bf16_to_fp32(value);
    }
    ggml_fp16_t value;
    std::memcpy(&value, at, sizeof(value));
    return ggml_fp16_to_fp32(value);
}

void store(ggml_type type, uint8_t * at, float number) {
    if (type == GGML_TYPE_F32) {
        std::memcpy(at, &number, sizeof(number));
    } else if (type == GGML_TYPE_BF16) {
        const ggml_bf16_t value = ggml_fp32_to_bf16(number);
        std::memcpy(at, &value, sizeof(value));
    } else {
        const ggml_fp16_t value = ggml_fp32_to_fp16(number);
        std::memcpy(at, &value, sizeof(value));
    }
}

}  // namespace

CacheState::CacheState(std::vector<uint8_t> bytes, int begin, int end) : bytes_(std::move(bytes)), begin_(begin) {
    Cursor cursor(bytes_);
    if (cursor.take<uint32_t>() != magic_of_state) {
        refuse_layout("llama.cpp writes its state in a form that pyemo does not know");
    }
    cursor.take<int32_t>();  // the sequence
    const size_t n_cells = size_t(end - begin);
    while (!cursor.at_end()) {
        if (cursor.take<uint32_t>() != 1) {
            refuse_layout("sequences have cells of their own");
        }
        if (cursor.take<uint32_t>() != n_cells) {
            throw Error(ErrorKind::input, "not all cells from position " + std::to_string(begin) + " to " +
                        std::to_string(end - 1) + " are in the cache any more; refresh the sequence");
        }
        std::vector<size_t> cell_of(n_cells, n_cells);
        for (size_t cell = 0; cell < n_cells; ++cell) {
            const int64_t at = int64_t(cursor.take<int32_t>()) - begin;
            if (cursor.take<uint32_t>() != 1 || at < 0 || at >= int64_t(n_cells) || cell_of[size_t(at)] != n_cells) {
                refuse_layout("its cells have more than a position");
            }
            cursor.take<int32_t>();  // the sequence again
            cell_of[size_t(at)] = cell;
        }
        const bool transposed = cursor.take<uint32_t>() != 0;
        const size_t n_layers = cursor.take<uint32_t>();
        for (size_t layer = 0; layer < n_layers; ++layer) {
            const ggml_type type = take_type(cursor);
            const uint64_t row = cursor.take<uint64_t>();
            const size_t size = ggml_type_size(type);
            keys_.push_back({type, cursor.position(), size_t(row), size, int(row / size), cells_.size()});
            cursor.skip(size_t(row) * n_cells);
        }
        for (size_t layer = 0; layer < n_layers; ++layer) {
            const ggml_type type = take_type(cursor);
            const size_t size = ggml_type_size(type);
            size_t row;
            if (transposed) {
                cursor.take<uint32_t>();  // the element's size
                row = cursor.take<uint32_t>() * size;
                values_.push_back({type, cursor.position(), size, size * n_cells, int(row / size), cells_.size()});
            } else {
                row = size_t(cursor.take<uint64_t>());
                values_.push_back({type, cursor.position(), row, size, int(row / size), cells_.size()});
            }
            cursor.skip(row * n_cells);
        }
        cells_.push_back(std::move(cell_of));
    }
    if (keys_.empty()) {
        refuse_layout("it has none");
    }
}

size_t CacheState::offset_of(const Rows & rows, int pos, int i) const {
    const size_t cell = cells_[rows.cache][size_t(pos - begin_)];
    return rows.offset + cell * rows.cell_stride + size_t(i) * rows.element_stride;
}

const uint8_t * CacheState::key_bytes(int layer, int pos) const {
    return bytes_.data() + offset_of(rows(layer, true), pos, 0);
}

float CacheState::get(int layer, bool of_keys, int pos, int i) const {
    const Rows & found = rows(layer, of_keys);
    return load(found.type, bytes_.data() + offset_of(found, pos, i));
}

bool CacheState::add(int layer, bool of_keys, int pos, int i, float delta) {
    if (delta == 0.0f) {
        return true;
    }
    const Rows & found = rows(layer, of_keys);
    uint8_t * at = bytes_.data() + offset_of(found, pos, i);
    uint8_t before[sizeof(float)];
    std::memcpy(before, at, ggml_type_size(found.type));
    store(found.type, at, load(found.type, at) + delta);
    if (std::isfinite(load(found.type, at))) {
        return true;
    }
    std::memcpy(at, before, ggml_type_size(found.type));
    return false;
}

}  // namespace pyemo
