#include "model.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>

#include "abort_guard.h"
#include "errors.h"
#include "gguf.h"
#include "log.h"
#include "mapped_file.h"
#include "model_file.h"

namespace pyemo {
namespace {

// Length of the well-formed UTF-8 character at s, or 0 (RFC 3629: no overlong forms, no surrogates).
size_t utf8_length(const unsigned char * s, size_t n) {
    if (s[0] < 0x80) return 1;
    size_t length = 0;
    unsigned char low = 0x80, high = 0xBF;
    if (s[0] >= 0xC2 && s[0] <= 0xDF) {
        length = 2;
    } else if (s[0] >= 0xE0 && s[0] <= 0xEF) {
        length = 3;
        if (s[0] == 0xE0) low = 0xA0;
        if (s[0] == 0xED) high = 0x9F;
    } else if (s[0] >= 0xF0 && s[0] <= 0xF4) {
        length = 4;
        if (s[0] == 0xF0) low = 0x90;
        if (s[0] == 0xF4) high = 0x8F;
    }
    if (length == 0 || length > n || s[1] < low || s[1] > high) return 0;
    for (size_t i = 2; i < length; ++i) {
        if (s[i] < 0x80 || s[i] > 0xBF) return 0;
    }
    return length;
}

struct Loading {
    const ModelParams & params;
    bool maps;
    const std::atomic<bool> & given_up;
};

// Called before each tensor is copied; the first time, nothing but the header has been used. False stops the load.
bool on_progress(float done, void * data) {
    const auto & loading = *static_cast<const Loading *>(data);
    if (done == 0.0f && loading.maps) release_mapped_pages(loading.params.path);
    return !loading.given_up;
}

void init_backend_once() {
    static std::once_flag once;
    std::call_once(once, [] { llama_backend_init(); });
}

struct Loaded {
    std::shared_ptr<llama_model> model;
    int n_positions = 0;
};

Loaded load(const ModelParams & params, const std::atomic<bool> & given_up) {
    Loaded loaded;
    loaded.n_positions = check_model_file(params.path);
    init_backend_once();
    capture_log();
    llama_model_params p = llama_model_default_params();
    p.n_gpu_layers = params.n_gpu_layers;
    p.load_mode = params.use_mmap ? (params.use_mlock ? LLAMA_LOAD_MODE_MMAP_MLOCK : LLAMA_LOAD_MODE_MMAP)
                                  : (params.use_mlock ? LLAMA_LOAD_MODE_MLOCK : LLAMA_LOAD_MODE_NONE);
    Loading loading{params, params.use_mmap && !params.use_mlock, given_up};
    p.progress_callback = on_progress;
    p.progress_callback_user_data = &loading;
    try {
        const AbortGuard guard(ErrorKind::model_load);
        loaded.model.reset(llama_model_load_from_file(params.path.c_str(), p), llama_model_free);
    } catch (const std::exception & e) {
        throw Error(ErrorKind::model_load, "llama.cpp could not load " + params.path + ": " + e.what());
    }
    if (!loaded.model) {
        throw Error(ErrorKind::model_load, "llama.cpp could not load " + params.path + ": " + last_error_line());
    }
    if (loading.maps) {
        release_mapped_pages(params.path);
    }
    release_freed_memory();  // llama.cpp has read the vocabulary through a copy of the header
    return loaded;
}

}  // namespace

Model::Model(const ModelParams & params, const Interrupted & interrupted) {
    Loaded loaded = interruptible(
        [params](const std::atomic<bool> & given_up) { return load(params, given_up); }, interrupted);
    model_ = std::move(loaded.model);
    n_positions_ = loaded.n_positions;
    vocab_ = llama_model_get_vocab(model_.get());
    n_vocab_ = llama_vocab_n_tokens(vocab_);
    if (n_vocab_ < 1 || !llama_model_has_decoder(model_.get()) || llama_model_has_encoder(model_.get()) ||
        llama_model_is_diffusion(model_.get())) {
        throw Error(ErrorKind::model_load, params.path + " is not a decoder that generates text from left to right");
    }
    if (n_positions_ == 0 && llama_model_rope_type(model_.get()) == LLAMA_ROPE_TYPE_NONE && !is_recurrent_or_hybrid()) {
        n_positions_ = n_ctx_train();  // a table in another part of the model, or one that is computed
    }
    if (llama_vocab_type(vocab_) == LLAMA_VOCAB_TYPE_SPM) {
        adds_space_prefix_ = true;
        for (const auto & [key, value] : metadata()) {
            if (key == "tokenizer.ggml.add_space_prefix") {
                adds_space_prefix_ = value == "true";
            }
        }
    }
}

std::string Model::architecture() const {
    std::string name(128, '\0');
    const int n = llama_model_meta_val_str(model_.get(), "general.architecture", name.data(), name.size());
    name.resize(size_t(std::clamp(n, 0, int(name.size()) - 1)));
    return name;
}

int Model::n_layer() const { return llama_model_n_layer(model_.get()); }
int Model::n_embd() const { return llama_model_n_embd(model_.get()); }
int Model::n_ctx_train() const { return llama_model_n_ctx_train(model_.get()); }
int Model::n_swa() const { return llama_model_n_swa(model_.get()); }
uint64_t Model::size_bytes() const { return llama_model_size(model_.get()); }

bool Model::is_recurrent_or_hybrid() const {
    return llama_model_is_recurrent(model_.get()) || llama_model_is_hybrid(model_.get());
}

std::vector<std::pair<std::string, std::string>> Model::metadata() const {
    std::vector<std::pair<std::string, std::string>> out;
    const int n = llama_model_meta_count(model_.get());
    std::vector<char> buffer(256);
    auto read = [&](auto && call) {
        int length = call(buffer.data(), buffer.size());
        if (length >= int(buffer.size())) {
            buffer.resize(size_t(length) + 1);
            length = call(buffer.data(), buffer.size());
        }
        return length < 0 ? std::string() : std::string(buffer.data(), size_t(length));
    };
    for (int i = 0; i < n; ++i) {
        std::string key = read([&](char * b, size_t size) { return llama_model_meta_key_by_index(model_.get(), i, b, size); });
        std::string value = read([&](char * b, size_t size) { return llama_model_meta_val_str_by_index(model_.get(), i, b, size); });
        out.emplace_back(std::move(key), std::move(value));
    }
    return out;
}

std::vector<llama_token> Model::tokenize_utf8(const char * text, size_t n, bool add_special, bool parse_special) const {
    if (n > size_t(INT32_MAX) / 2) {
        throw Error(ErrorKind::input, "text of " + std::to_string(n) + " bytes; at most 1 GiB can be tokenized at once");
    }
    std::vector<llama_token> tokens(n / 3 + 8);
    const auto tokenize = [&] {
        return llama_tokenize(vocab_, text, int(n), tokens.data(), int(tokens.size()), add_special, parse_special);
    };
    int count = 0;
    try {
        const AbortGuard guard(ErrorKind::input);
        count = tokenize();
        if (count < 0) {
            tokens.resize(size_t(-int64_t(count)));
            count = tokenize();
        }
    } catch (const std::exception & e) {
        throw Error(ErrorKind::input, std::string("the model's vocabulary has no tokens for this text: ") + e.what());
    }
    tokens.resize(size_t(std::max(count, 0)));
    return tokens;
}

llama_token Model::byte_token(uint8_t byte) const {
    // Only texts with stray bytes come here, so the table is searched, not kept.
    for (llama_token token = 0; token < n_vocab_; ++token) {
        const std::string bytes = piece(token, false);
        if (bytes.size() == 1 && uint8_t(bytes[0]) == byte) {
            return token;
        }
    }
    static const char * digits = "0123456789ABCDEF";
    throw Error(ErrorKind::input, std::string("the text is not UTF-8 and this vocabulary has no token for the byte 0x") +
                digits[byte >> 4] + digits[byte & 15] + "; pass valid UTF-8");
}

std::vector<llama_token> Model::tokenize(const std::string & bytes, bool add_special, bool parse_special) const {
    const auto * s = reinterpret_cast<const unsigned char *>(bytes.data());
    const size_t n = bytes.size();
    std::vector<llama_token> tokens;
    std::array<llama_token, 256> byte_tokens;
    byte_tokens.fill(-1);
    size_t begin = 0, i = 0;
    bool first = true;
    bool stray_seen = false;
    auto push_byte = [&](uint8_t byte) {
        if (byte_tokens[byte] < 0) {
            byte_tokens[byte] = byte_token(byte);
        }
        tokens.push_back(byte_tokens[byte]);
    };
    auto flush = [&](size_t end) {
        if (end == begin && !first) {
            return;
        }
        if (stray_seen && adds_space_prefix_) {
            // A second run would get a space of its own in front.
            for (size_t k = begin; k < end; ++k) push_byte(s[k]);
        } else {
            const auto run = tokenize_utf8(bytes.data() + begin, end - begin, add_special && first, parse_special);
            tokens.insert(tokens.end(), run.begin(), run.end());
        }
        first = false;
    };
    while (i < n) {
        const size_t length = utf8_length(s + i, n - i);
        if (length > 0) {
            i += length;
            continue;
        }
        flush(i);
        stray_seen = true;
        push_byte(s[i]);
        begin = ++i;
    }
    flush(n);
    return tokens;
}

std::string Model::piece(llama_token token, bool special) const {
    require_token(token);
    std::string out(128, '\0');
    const auto read = [&] { return llama_token_to_piece(vocab_, token, out.data(), int(out.size()), 0, special); };
    int n = 0;
    try {
        const AbortGuard guard(ErrorKind::input);
        n = read();
        if (n < 0) {
            out.resize(size_t(-n));
            n = read();
        }
    } catch (const std::exception & e) {
        throw Error(ErrorKind::input, "the model's vocabulary has no text for token " + std::to_string(token) + ": " + e.what());
    }
    out.resize(size_t(std::max(n, 0)));
    return out;
}

std::vector<SpecialToken> Model::special_tokens() const {
    std::vector<SpecialToken> out;
    for (llama_token token = 0; token < n_vocab_; ++token) {
        const int attr = llama_vocab_get_attr(vocab_, token);
        const bool is_control = attr & (LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN);
        if (is_control || (attr & LLAMA_TOKEN_ATTR_USER_DEFINED)) {
            out.push_back({token, llama_vocab_get_text(vocab_, token), is_control,
                           (attr & LLAMA_TOKEN_ATTR_LSTRIP) != 0, (attr & LLAMA_TOKEN_ATTR_RSTRIP) != 0});
        }
    }
    return out;
}

std::shared_ptr<const Pieces> Model::pieces() const {
    const std::lock_guard<std::mutex> lock(pieces_mutex_);
    if (pieces_ == nullptr) {
        pieces_ = std::make_shared<const Pieces>(*this);
    }
    return pieces_;
}

void Model::require_token(llama_token token) const {
    if (token < 0 || token >= n_vocab_) {
        throw Error(ErrorKind::input, "token id " + std::to_string(token) + " is outside 0 to " + std::to_string(n_vocab_ - 1));
    }
}

namespace {

using GgufContext = std::unique_ptr<gguf_context, decltype(&gguf_free)>;

GgufContext open_header(const std::string & path) {
    gguf_init_params params = {/*no_alloc =*/true, /*ctx =*/nullptr};
    GgufContext gguf(gguf_init_from_file(path.c_str(), params), gguf_free);
    if (!gguf) {
        throw Error(ErrorKind::model_load, "cannot read the header of " + path);
    }
    return gguf;
}

// Adds name -> bytes of the float32 norm tensors in one file of a model.
void add_norms(const std::string & path, std::map<std::string, std::string> & norms) {
    const GgufContext gguf = open_header(path);
    const std::unique_ptr<FILE, decltype(&fclose)> file(fopen(path.c_str(), "rb"), fclose);
    if (!file) {
        throw Error(ErrorKind::model_load, "cannot open " + path);
    }
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf.get()); ++i) {
        const std::string name = gguf_get_tensor_name(gguf.get(), i);
        if (name.find("norm") == std::string::npos || gguf_get_tensor_type(gguf.get(), i) != GGML_TYPE_F32) {
            continue;
        }
        std::string data(gguf_get_tensor_size(gguf.get(), i), '\0');
        const auto offset = long(gguf_get_data_offset(gguf.get()) + gguf_get_tensor_offset(gguf.get(), i));
        if (fseek(file.get(), offset, SEEK_SET) != 0 || fread(data.data(), 1, data.size(), file.get()) != data.size()) {
            throw Error(ErrorKind::model_load, path + " ends inside tensor " + name);
        }
        norms.emplace(name, std::move(data));
    }
}

}  // namespace

std::string fingerprint_material(const std::string & path) {
    check_model_file(path);  // sizes and offsets are believed below
    std::map<std::string, std::string> norms;
    for (const std::string & part : model_parts(path)) {
        add_norms(part, norms);
    }
    std::string out;
    for (const auto & [name, data] : norms) {
        out += name;
        out += '\0';
        out += data;
    }
    const GgufContext gguf = open_header(path);  // the first file of a model has its vocabulary
    const int64_t key = gguf_find_key(gguf.get(), "tokenizer.ggml.tokens");
    if (key >= 0 && gguf_get_kv_type(gguf.get(), key) == GGUF_TYPE_ARRAY &&
        gguf_get_arr_type(gguf.get(), key) == GGUF_TYPE_STRING) {
        for (size_t i = 0; i < gguf_get_arr_n(gguf.get(), key); ++i) {
            out += gguf_get_arr_str(gguf.get(), key, i);
            out += '\0';
        }
    }
    return out;
}

}  // namespace pyemo
