#include "gguf_header.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <unordered_set>

#include "errors.h"
#include "ggml.h"
#include "gguf.h"

namespace pyemo {
namespace {

// The least bytes that one key or one tensor takes, whatever its name and value.
constexpr uint64_t least_key_bytes = 8 + 1 + 4 + 1;
constexpr uint64_t least_tensor_bytes = 8 + 1 + 4 + 4 + 8;
constexpr uint64_t max_key_bytes = 65535;
constexpr uint64_t max_header_bytes = 256 << 20;  // a vocabulary of 262,144 tokens takes 10 MB

// Bytes of a number; 0 for what is none.
size_t size_of(uint32_t type) {
    switch (type) {
        case GGUF_TYPE_UINT8: case GGUF_TYPE_INT8: case GGUF_TYPE_BOOL: return 1;
        case GGUF_TYPE_UINT16: case GGUF_TYPE_INT16: return 2;
        case GGUF_TYPE_UINT32: case GGUF_TYPE_INT32: case GGUF_TYPE_FLOAT32: return 4;
        case GGUF_TYPE_UINT64: case GGUF_TYPE_INT64: case GGUF_TYPE_FLOAT64: return 8;
        default: return 0;
    }
}

// Types that llama.cpp multiplies activations by. It keeps others for its own intermediate results,
// and calls through a null pointer where weights have them.
bool is_weight_type(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32: case GGML_TYPE_F16: case GGML_TYPE_BF16: return true;
        case GGML_TYPE_Q8_1: case GGML_TYPE_Q8_K: return false;
        default: return ggml_is_quantized(type);
    }
}

uint64_t round_up(uint64_t n, uint64_t alignment) { return (n + alignment - 1) / alignment * alignment; }

}  // namespace

std::string shown(std::string_view text) {
    constexpr size_t longest = 80;
    std::string out = "'";
    for (char c : text.substr(0, longest)) {
        out += c >= 0x20 && c < 0x7f ? c : '?';
    }
    return out + (text.size() > longest ? "...'" : "'");
}

GgufHeader::GgufHeader(const std::string & path) : path_(path) {
    std::error_code error;
    const auto status = std::filesystem::status(path, error);
    if (!std::filesystem::exists(status)) {
        fail(error ? "cannot be read: " + error.message() : "is not there; give the path of a .gguf model");
    }
    // Looked at before it is opened: opening a pipe waits for its writer.
    if (!std::filesystem::is_regular_file(status)) {
        fail("is not a file; give the path of a .gguf model");
    }
    size_ = std::filesystem::file_size(path, error);
    file_.reset(std::fopen(path.c_str(), "rb"));
    if (error || !file_) {
        fail("cannot be read: " + (error ? error.message() : std::string(std::strerror(errno))));
    }
    read_preamble();
    read_keys();
    read_tensors();
    file_.reset();
}

void GgufHeader::fail(const std::string & what) const { throw Error(ErrorKind::model_load, path_ + " " + what); }

void GgufHeader::damaged(const std::string & what) const { fail("is damaged: " + what + "; fetch the file again"); }

size_t GgufHeader::take(uint64_t n) {
    if (n > left()) {
        fail("is cut off or damaged: its header would end past its " + std::to_string(size_) +
             " bytes; fetch the file again");
    }
    if (n > max_header_bytes || position_ + n > max_header_bytes) {
        fail("has a header of more than " + std::to_string(max_header_bytes >> 20) +
             " MiB, as no model has; fetch the file again");
    }
    const size_t begin = position_;
    position_ += size_t(n);
    if (position_ > bytes_.size()) {
        constexpr size_t chunk = 1 << 20;
        const size_t had = bytes_.size();
        const size_t wanted = size_t(std::min<uint64_t>(size_, std::max(position_, had + chunk)));
        if (wanted > bytes_.capacity()) bytes_.reserve(std::max(wanted, 2 * had));
        bytes_.resize(wanted);
        if (std::fread(bytes_.data() + had, 1, wanted - had, file_.get()) != wanted - had) {
            fail("cannot be read to the end of its header");
        }
    }
    return begin;
}

std::string_view GgufHeader::text() {
    const auto length = number<uint64_t>();
    const size_t begin = take(length);
    return text_at(begin, position_);
}

void GgufHeader::take_numbers(const std::string & key, uint32_t type, uint64_t count) {
    const size_t size = size_of(type);
    if (size == 0) {
        damaged("key " + shown(key) + " has type " + std::to_string(type) + ", which GGUF does not have here");
    }
    take(count > left() / size ? UINT64_MAX : count * size);
}

void GgufHeader::read_preamble() {
    if (size_ == 0) {
        fail("is empty; fetch the file again");
    }
    const size_t n_magic = size_t(std::min<uint64_t>(4, size_));
    take(n_magic);
    if (text_at(0, n_magic) != "GGUF") {
        fail("is not a GGUF file: it begins with " + shown(text_at(0, n_magic)) + "; give the path of a .gguf model");
    }
    const auto version = number<uint32_t>();
    if ((version & 0xFFFF) == 0) {
        fail("is written for a big-endian machine; convert it");
    }
    if (version != 2 && version != 3) {
        fail("is GGUF version " + std::to_string(version) + "; llama.cpp reads versions 2 and 3");
    }
    n_tensors_ = number<uint64_t>();
    n_keys_ = number<uint64_t>();
    if (n_keys_ > left() / least_key_bytes || n_tensors_ > left() / least_tensor_bytes) {
        fail("is cut off or damaged: its " + std::to_string(size_) + " bytes cannot hold the " + std::to_string(n_keys_) +
             " keys and " + std::to_string(n_tensors_) + " tensors it claims; fetch the file again");
    }
}

void GgufHeader::read_keys() {
    values_.reserve(size_t(n_keys_));
    for (uint64_t i = 0; i < n_keys_; ++i) {
        const std::string key(text());
        if (key.empty() || key.size() > max_key_bytes) {
            damaged("key " + std::to_string(i) + " has a name of " + std::to_string(key.size()) + " bytes");
        }
        if (!values_.emplace(key, read_value(key)).second) {
            damaged("it has the key " + shown(key) + " twice");
        }
    }
    alignment_ = GGUF_DEFAULT_ALIGNMENT;
    if (const auto alignment = integer("general.alignment")) {
        if (*alignment < 8 || *alignment > (1 << 20) || (*alignment & (*alignment - 1)) != 0) {
            damaged("general.alignment is " + std::to_string(*alignment) + ", not a power of two from 8 on");
        }
        alignment_ = uint64_t(*alignment);
    }
}

GgufHeader::Value GgufHeader::read_value(const std::string & key) {
    Value value;
    value.type = number<uint32_t>();
    if (value.type == GGUF_TYPE_ARRAY) {
        value.element = number<uint32_t>();
        value.count = number<uint64_t>();
        value.begin = position_;
        if (value.element == GGUF_TYPE_STRING) {
            for (uint64_t i = 0; i < value.count; ++i) take(number<uint64_t>());
        } else {
            take_numbers(key, value.element, value.count);
        }
    } else if (value.type == GGUF_TYPE_STRING) {
        const auto length = number<uint64_t>();
        value.begin = take(length);
    } else {
        value.begin = position_;
        take_numbers(key, value.type, 1);
    }
    value.end = position_;
    return value;
}

void GgufHeader::read_tensors() {
    std::unordered_set<std::string> names;
    for (uint64_t i = 0; i < n_tensors_; ++i) {
        tensors_.push_back(read_tensor());
        if (!names.insert(tensors_.back().name).second) {
            damaged("it has the tensor " + shown(tensors_.back().name) + " twice");
        }
    }
    check_extents();
}

GgufHeader::Tensor GgufHeader::read_tensor() {
    const std::string name(text());
    const std::string what = "tensor " + shown(name);
    if (name.empty() || name.size() >= GGML_MAX_NAME) {
        damaged("the name of " + what + " has " + std::to_string(name.size()) + " bytes");
    }
    const auto n_dims = number<uint32_t>();
    if (n_dims > GGML_MAX_DIMS) {
        damaged(what + " claims " + std::to_string(n_dims) + " dimensions");
    }
    int64_t n_elements = 1, n_row = 1;
    for (uint32_t d = 0; d < n_dims; ++d) {
        const auto n = number<int64_t>();
        if (n < 1 || n_elements > INT64_MAX / n) {
            damaged(what + " claims a size of " + std::to_string(n) + " in dimension " + std::to_string(d));
        }
        n_elements *= n;
        if (d == 0) n_row = n;
    }
    const auto type_number = number<uint32_t>();
    const auto offset = number<uint64_t>();
    if (type_number >= GGML_TYPE_COUNT || ggml_blck_size(ggml_type(type_number)) == 0) {
        damaged(what + " has type " + std::to_string(type_number) + ", which this llama.cpp does not know");
    }
    const auto type = ggml_type(type_number);
    // Integers stand in tables only, such as deepseek4's of the experts for a token.
    if (!is_weight_type(type) && !(type == GGML_TYPE_I32 && name.find("tid2eid") != std::string::npos)) {
        damaged(what + " is of type " + ggml_type_name(type) + ", which weights cannot have");
    }
    const int64_t n_block = ggml_blck_size(type);
    const uint64_t block_bytes = ggml_type_size(type);
    if (n_row % n_block != 0 || uint64_t(n_elements / n_block) > size_ / block_bytes) {
        damaged(what + " of " + std::to_string(n_elements) + " values of type " + ggml_type_name(type) +
                ", in rows of " + std::to_string(n_row) + ", cannot be in a file of " + std::to_string(size_) + " bytes");
    }
    return {name, type_number, n_elements, offset, uint64_t(n_elements / n_block) * block_bytes};
}

// Each tensor's data begins where the one before ends, and is in the file.
void GgufHeader::check_extents() const {
    const uint64_t data_begin = round_up(position_, alignment_);
    uint64_t expected = 0;
    for (const Tensor & tensor : tensors_) {
        if (tensor.offset != expected) {
            damaged("tensor " + shown(tensor.name) + " is at offset " + std::to_string(tensor.offset) + ", not at " +
                    std::to_string(expected) + " where the one before it ends");
        }
        if (data_begin > size_ || tensor.offset > size_ - data_begin || tensor.n_bytes > size_ - data_begin - tensor.offset) {
            fail("is cut off: tensor " + shown(tensor.name) + " would end past its " + std::to_string(size_) +
                 " bytes; fetch the file again");
        }
        expected = tensor.offset + round_up(tensor.n_bytes, alignment_);
    }
}

const GgufHeader::Value * GgufHeader::find(const std::string & key) const {
    const auto found = values_.find(key);
    return found == values_.end() ? nullptr : &found->second;
}

std::optional<std::string_view> GgufHeader::string(const std::string & key) const {
    const Value * value = find(key);
    if (value == nullptr || value->type != GGUF_TYPE_STRING) return std::nullopt;
    return text_at(value->begin, value->end);
}

std::optional<int64_t> GgufHeader::integer(const std::string & key) const {
    const Value * value = find(key);
    const std::vector<int64_t> all = integers(key);
    if (all.empty() || value->type == GGUF_TYPE_ARRAY) return std::nullopt;
    return all.front();
}

std::optional<double> GgufHeader::real(const std::string & key) const {
    const Value * value = find(key);
    if (value == nullptr || value->type != GGUF_TYPE_FLOAT32) return std::nullopt;
    return at<float>(value->begin);
}

std::vector<int64_t> GgufHeader::integers(const std::string & key) const {
    const Value * value = find(key);
    std::vector<int64_t> out;
    if (value == nullptr) return out;
    const uint32_t type = value->type == GGUF_TYPE_ARRAY ? value->element : value->type;
    const size_t size = size_of(type);
    for (size_t i = value->begin; size > 0 && i < value->end; i += size) {
        switch (type) {
            case GGUF_TYPE_UINT8:  out.push_back(at<uint8_t>(i)); break;
            case GGUF_TYPE_INT8:   out.push_back(at<int8_t>(i)); break;
            case GGUF_TYPE_UINT16: out.push_back(at<uint16_t>(i)); break;
            case GGUF_TYPE_INT16:  out.push_back(at<int16_t>(i)); break;
            case GGUF_TYPE_UINT32: out.push_back(at<uint32_t>(i)); break;
            case GGUF_TYPE_INT32:  out.push_back(at<int32_t>(i)); break;
            case GGUF_TYPE_UINT64: case GGUF_TYPE_INT64: out.push_back(at<int64_t>(i)); break;
            default: return {};
        }
    }
    return out;
}

}  // namespace pyemo
