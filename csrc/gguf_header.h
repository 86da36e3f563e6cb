// The header of a GGUF file, read once and believed nothing.
//
// No count or length is used before it is compared with the file's size, and no more is allocated than
// the header is long. Owns the GGUF layout (versions 2 and 3, little-endian, as ggml/docs/gguf.md has it);
// knows nothing of what the keys mean.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace pyemo {

// A stranger's bytes in a message: short, printable, in quotes.
std::string shown(std::string_view text);

class GgufHeader {
public:
    // A key's value, by where it stands in the header; an array has a type of elements and a count.
    struct Value {
        uint32_t type = 0;     // gguf_type
        uint32_t element = 0;  // gguf_type
        uint64_t count = 1;
        size_t begin = 0, end = 0;
    };

    // What the header says of a tensor; its offset counts from the start of the data.
    struct Tensor {
        std::string name;
        uint32_t type = 0;  // ggml_type
        int64_t n_elements = 0;
        uint64_t offset = 0, n_bytes = 0;
    };

    // Throws model_load with the path and what is wrong with the file.
    explicit GgufHeader(const std::string & path);

    uint64_t n_tensors() const { return n_tensors_; }
    const std::vector<Tensor> & tensors() const { return tensors_; }
    const Value * find(const std::string & key) const;
    // Nothing where the key is missing or of another type: llama.cpp refuses that by name.
    std::optional<std::string_view> string(const std::string & key) const;
    std::optional<int64_t> integer(const std::string & key) const;
    std::optional<double> real(const std::string & key) const;
    // Of a number, that number; of an array, all of them.
    std::vector<int64_t> integers(const std::string & key) const;

    // Into the header's bytes.
    template <typename T>
    T at(size_t begin) const {
        T value;
        std::memcpy(&value, bytes_.data() + begin, sizeof(T));
        return value;
    }
    std::string_view text_at(size_t begin, size_t end) const { return {bytes_.data() + begin, end - begin}; }

    [[noreturn]] void fail(const std::string & what) const;     // "PATH what"
    [[noreturn]] void damaged(const std::string & what) const;  // "PATH is damaged: what; fetch the file again"

private:
    struct Closer {
        void operator()(FILE * file) const { std::fclose(file); }
    };

    uint64_t left() const { return size_ - position_; }
    size_t take(uint64_t n);  // goes on past n bytes; returns where they begin
    template <typename T>
    T number() { return at<T>(take(sizeof(T))); }
    std::string_view text();  // holds until the next byte is taken
    void take_numbers(const std::string & key, uint32_t type, uint64_t count);

    void read_preamble();
    void read_keys();
    Value read_value(const std::string & key);
    void read_tensors();
    Tensor read_tensor();
    void check_extents() const;

    std::string path_;
    std::unique_ptr<FILE, Closer> file_;
    uint64_t size_ = 0, n_tensors_ = 0, n_keys_ = 0, alignment_ = 0;
    std::vector<char> bytes_;  // the file's first, as far as they were needed
    size_t position_ = 0;
    std::unordered_map<std::string, Value> values_;
    std::vector<Tensor> tensors_;
};

}  // namespace pyemo
