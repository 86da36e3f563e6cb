// A loaded model: weights, vocabulary, tokens and text. Immutable, so engines may share it.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "interruptible.h"
#include "llama.h"
#include "pieces.h"

namespace pyemo {

struct ModelParams {
    std::string path;
    bool use_mmap = true;
    bool use_mlock = false;
    int n_gpu_layers = 0;
};

struct SpecialToken {
    llama_token id;
    std::string text;
    bool is_control;
    bool strips_left;   // takes the white space before it away
    bool strips_right;  // and behind it
};

class Model {
public:
    // Loads on a thread of its own where something can interrupt the caller.
    Model(const ModelParams & params, const Interrupted & interrupted);
    Model(const Model &) = delete;
    Model & operator=(const Model &) = delete;

    llama_model * get() const { return model_.get(); }
    const llama_vocab * vocab() const { return vocab_; }

    // What the file says it is, such as "llama".
    std::string architecture() const;
    int n_layer() const;
    int n_embd() const;
    int n_vocab() const { return n_vocab_; }
    int n_ctx_train() const;
    int n_swa() const;
    uint64_t size_bytes() const;
    bool is_recurrent_or_hybrid() const;
    // GPT-2, StarCoder and their kin look positions up in a table and abort past its end: its rows, or 0 without one.
    int n_positions() const { return n_positions_; }

    // All scalar metadata of the file, as llama.cpp prints it.
    std::vector<std::pair<std::string, std::string>> metadata() const;

    // bytes -> token ids. Every byte sequence survives: llama.cpp's tokenizers expect UTF-8 and replace
    // what is not, so stray bytes go in as the vocabulary's single-byte tokens.
    std::vector<llama_token> tokenize(const std::string & bytes, bool add_special, bool parse_special) const;

    // The vocabulary's token for one byte.
    llama_token byte_token(uint8_t byte) const;

    // The bytes of one token; empty for control tokens unless special is true.
    std::string piece(llama_token token, bool special) const;

    // The tokens that llama.cpp looks for in a text before it splits the rest: control tokens, and those that somebody
    // added to the vocabulary. A control token is found only where special tokens are parsed.
    std::vector<SpecialToken> special_tokens() const;

    bool is_end_of_generation(llama_token token) const { return llama_vocab_is_eog(vocab_, token); }
    llama_token bos() const { return llama_vocab_bos(vocab_); }
    llama_token eos() const { return llama_vocab_eos(vocab_); }
    // The tokenizer puts a space before a text's first word; detokenizing takes it off again.
    bool adds_space_prefix() const { return adds_space_prefix_; }

    // All tokens' bytes in order; made when they are first asked for.
    std::shared_ptr<const Pieces> pieces() const;

    void require_token(llama_token token) const;

private:
    std::vector<llama_token> tokenize_utf8(const char * text, size_t n, bool add_special, bool parse_special) const;
    std::shared_ptr<llama_model> model_;
    const llama_vocab * vocab_ = nullptr;
    int n_vocab_ = 0;
    int n_positions_ = 0;
    bool adds_space_prefix_ = false;
    mutable std::mutex pieces_mutex_;
    mutable std::shared_ptr<const Pieces> pieces_;
};

// The bytes that identify the weights across quantizations: the float32 norm tensors, in the order of their names, and
// the vocabulary. Of a split model all parts are read, so that it has the bytes of the whole one. Hashed in Python.
std::string fingerprint_material(const std::string & path);

}  // namespace pyemo
