#include "model_file.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "gguf.h"
#include "gguf_header.h"
#include "llama.h"

namespace pyemo {
namespace {

constexpr int64_t max_layers = 512;     // LLAMA_MAX_LAYERS
constexpr int64_t max_experts = 1024;   // LLAMA_MAX_EXPERTS
constexpr int64_t max_width = 1 << 20;  // of a row, a head, a state
constexpr int64_t max_splits = 1024;

struct Bounds {
    const char * key;  // after the architecture's name
    int64_t low, high;
};

// llama.cpp divides by these, asserts on them, or allocates by them without comparing them to a tensor.
constexpr Bounds bounds[] = {
    {"block_count", 1, max_layers},
    {"context_length", 1, INT32_MAX},
    {"embedding_length", 1, max_width},
    {"expert_count", 0, max_experts},
    {"attention.key_length", 1, max_width},
    {"attention.value_length", 1, max_width},
    {"attention.key_length_swa", 1, max_width},
    {"attention.value_length_swa", 1, max_width},
    {"rope.dimension_count", 2, max_width},      // its loops go in steps that 0 makes endless
    {"rope.dimension_count_swa", 2, max_width},
    {"ssm.conv_kernel", 1, 1024},
    {"ssm.inner_size", 1, max_width},
    {"ssm.state_size", 1, max_width},
    {"ssm.time_step_rank", 0, max_width},
    {"ssm.group_count", 0, max_width},
    {"wkv.head_size", 1, max_width},
    {"token_shift_count", 1, 16},
    {"shortconv.l_cache", 1, 1024},
};

void require(const GgufHeader & header, const std::string & key, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high) {
        header.damaged(key + " is " + std::to_string(value) + "; it must be " + std::to_string(low) + " to " +
                       std::to_string(high));
    }
}

void check_heads(const GgufHeader & header, const std::string & prefix) {
    const std::string key = prefix + "attention.head_count", key_kv = prefix + "attention.head_count_kv";
    const std::vector<int64_t> heads = header.integers(key), heads_kv = header.integers(key_kv);
    for (int64_t n : heads) require(header, key, n, 0, max_width);
    for (size_t i = 0; i < heads_kv.size() && !heads.empty(); ++i) {
        const int64_t n = heads[heads.size() == 1 ? 0 : std::min(i, heads.size() - 1)];
        require(header, key_kv, heads_kv[i], 0, n);
        if (heads_kv[i] > 0 && n % heads_kv[i] != 0) {
            header.damaged(key_kv + " is " + std::to_string(heads_kv[i]) + ", which does not divide " + std::to_string(n) + " heads");
        }
    }
    const auto n_embd = header.integer(prefix + "embedding_length");
    const auto n_head_k = header.integer(prefix + "attention.key_length");
    if (!heads.empty() && heads.front() > 0 && n_embd) {
        const int64_t width = n_head_k.value_or(*n_embd / heads.front());
        if (width == 0) {
            header.damaged(key + " is " + std::to_string(heads.front()) + ", more than the width " + std::to_string(*n_embd));
        }
        const auto n_rot = header.integer(prefix + "rope.dimension_count");
        if (n_rot && (*n_rot > std::max(width, *n_embd) || *n_rot % 2 != 0)) {
            header.damaged(prefix + "rope.dimension_count is " + std::to_string(*n_rot) + " for heads of " + std::to_string(width));
        }
    }
}

void check_experts(const GgufHeader & header, const std::string & prefix) {
    const int64_t n_expert = header.integer(prefix + "expert_count").value_or(0);
    for (int64_t n : header.integers(prefix + "expert_used_count")) {
        require(header, prefix + "expert_used_count", n, 0, n_expert);
    }
}

void check_hyperparameters(const GgufHeader & header, const std::string & architecture) {
    const std::string prefix = architecture + ".";
    for (const Bounds & b : bounds) {
        for (int64_t value : header.integers(prefix + b.key)) {
            require(header, prefix + b.key, value, b.low, b.high);
        }
    }
    const int64_t n_layer = header.integer(prefix + "block_count").value_or(max_layers);
    if (const auto n = header.integer(prefix + "nextn_predict_layers")) {
        require(header, prefix + "nextn_predict_layers", *n, 0, n_layer - 1);
    }
    for (const char * key : {"attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon", "rope.freq_base",
                             "rope.freq_base_swa", "rope.scaling.factor"}) {
        const auto value = header.real(prefix + key);
        if (value && !(*value >= 0.0 && std::isfinite(*value))) {
            header.damaged(prefix + key + " is " + std::to_string(*value) + ", not a finite number from 0 on");
        }
    }
    check_heads(header, prefix);
    check_experts(header, prefix);
}

// 64 bits of FNV-1a, eight bytes at a step.
uint64_t hash(std::string_view text) {
    uint64_t h = 0xcbf29ce484222325ull ^ text.size();
    while (!text.empty()) {
        uint64_t piece = 0;
        const size_t n = std::min<size_t>(8, text.size());
        std::memcpy(&piece, text.data(), n);
        text.remove_prefix(n);
        h = (h ^ piece) * 0x9E3779B97F4A7C15ull;
        h ^= h >> 32;
    }
    return h;
}

constexpr int max_probes = 10'000;  // an honest vocabulary's longest run in a table half full has a few dozen

// llama.cpp asserts that no two tokens have the same text. Open addressing: a set of strings would take
// a tenth of a second for the 262,144 tokens of Gemma.
void check_tokens(const GgufHeader & header, const GgufHeader::Value & tokens) {
    if (tokens.count == 0 || tokens.count > INT32_MAX / 2) {
        header.damaged("its vocabulary has " + std::to_string(tokens.count) + " tokens");
    }
    struct Slot { uint64_t hash; size_t begin, end; };
    size_t n_slots = 16;
    while (n_slots < 2 * tokens.count) n_slots *= 2;
    std::vector<Slot> slots(n_slots, Slot{0, 0, 0});
    size_t at = tokens.begin;
    for (uint64_t i = 0; i < tokens.count; ++i) {
        const size_t begin = at + sizeof(uint64_t), end = begin + size_t(header.at<uint64_t>(at));
        at = end;
        const std::string_view text = header.text_at(begin, end);
        if (text.empty()) {
            continue;  // may stand many times
        }
        const uint64_t h = hash(text);
        size_t slot = size_t(h) & (n_slots - 1);
        // A slot is free while its end is 0: no text ends at the file's first byte.
        for (int n_probes = 0; slots[slot].end != 0; slot = (slot + 1) & (n_slots - 1)) {
            if (++n_probes > max_probes) {
                header.damaged("its vocabulary is made to be slow to check");
            }
            if (slots[slot].hash == h && header.text_at(slots[slot].begin, slots[slot].end) == text) {
                header.damaged("its vocabulary has the token " + shown(text) + " twice, the second time as " + std::to_string(i));
            }
        }
        slots[slot] = {h, begin, end};
    }
}

void check_vocabulary(const GgufHeader & header) {
    const GgufHeader::Value * tokens = header.find("tokenizer.ggml.tokens");
    if (tokens == nullptr || tokens->type != GGUF_TYPE_ARRAY || tokens->element != GGUF_TYPE_STRING) {
        return;  // llama.cpp refuses it by name, or needs none
    }
    check_tokens(header, *tokens);
    for (const char * key : {"tokenizer.ggml.scores", "tokenizer.ggml.token_type"}) {
        const GgufHeader::Value * list = header.find(key);
        if (list != nullptr && list->count < tokens->count) {
            header.damaged(std::string(key) + " has " + std::to_string(list->count) + " entries for " +
                           std::to_string(tokens->count) + " tokens");
        }
    }
}

// The files of the model whose first one is path: that one alone unless its header says otherwise.
std::vector<std::string> parts_of(const GgufHeader & header, const std::string & path) {
    std::vector<std::string> out = {path};
    const int64_t n = header.integer("split.count").value_or(0);
    if (n <= 1) {
        return out;
    }
    require(header, "split.count", n, 0, max_splits);
    require(header, "split.no", header.integer("split.no").value_or(0), 0, n - 1);
    if (header.integer("split.no").value_or(0) != 0) {
        header.fail("is part " + std::to_string(*header.integer("split.no") + 1) + " of " + std::to_string(n) +
                    " of a model; give the path of the first part");
    }
    std::vector<char> prefix(path.size() + 64), part(path.size() + 64);
    if (llama_split_prefix(prefix.data(), prefix.size(), path.c_str(), 0, int32_t(n)) == 0) {
        header.fail("is the first of " + std::to_string(n) + " parts and must keep its name, NAME-00001-of-" +
                    "0000N.gguf, so that the others are found");
    }
    for (int32_t i = 1; i < n; ++i) {
        llama_split_path(part.data(), part.size(), prefix.data(), i, int32_t(n));
        out.emplace_back(part.data());
    }
    return out;
}

void check_splits(const GgufHeader & header, const std::string & path) {
    const std::vector<std::string> parts = parts_of(header, path);
    for (size_t i = 1; i < parts.size(); ++i) {
        const GgufHeader other(parts[i]);
        const GgufHeader::Value * number = other.find("split.no");
        if (number == nullptr || number->type != GGUF_TYPE_UINT16 || other.integer("split.no") != int64_t(i)) {
            other.fail("is not part " + std::to_string(i + 1) + " of " + path);
        }
    }
}

}  // namespace

std::vector<std::string> model_parts(const std::string & path) {
    return parts_of(GgufHeader(path), path);
}

int check_model_file(const std::string & path) {
    const GgufHeader header(path);
    const std::string architecture(header.string("general.architecture").value_or(""));
    if (architecture.empty()) {
        header.fail("does not say what it is: general.architecture is missing; give the path of a model");
    }
    if (architecture == "controlvector" || header.string("general.type") == "adapter") {
        header.fail("is a " + std::string(architecture == "controlvector" ? "control vector" : "LoRA adapter") +
                    ", not a model");
    }
    // The first part of a split model may hold the header alone.
    if (header.n_tensors() == 0 && header.integer("split.count").value_or(0) <= 1) {
        header.fail("holds no tensors, only a header or a vocabulary: not a model");
    }
    check_hyperparameters(header, architecture);
    check_vocabulary(header);
    check_splits(header, path);
    const int64_t n_embd = header.integer(architecture + ".embedding_length").value_or(0);
    for (const GgufHeader::Tensor & tensor : header.tensors()) {
        // By the tensor and not by the kind of rope: llama.cpp says of StarCoder, which has the table, that it rotates.
        if (tensor.name == "position_embd.weight" && n_embd > 0) {
            return int(std::min<int64_t>(tensor.n_elements / n_embd, INT32_MAX));
        }
    }
    return 0;
}

}  // namespace pyemo
