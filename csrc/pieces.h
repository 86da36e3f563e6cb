// The bytes of a vocabulary's tokens, in the order of a dictionary, so that tokens that begin alike stand together.
#pragma once

#include <string>
#include <vector>

#include "llama.h"

namespace pyemo {

class Model;

class Pieces {
public:
    explicit Pieces(const Model & model);

    struct Entry {
        llama_token token;
        int n_shared;  // first bytes that are those of the entry before
    };

    int n_vocab() const { return int(bytes_.size()); }
    // Empty for control tokens.
    const std::string & bytes(llama_token token) const { return bytes_[token]; }
    bool is_end(llama_token token) const { return is_end_[token]; }
    // Tokens that stand for text and end nothing, in order.
    const std::vector<Entry> & entries() const { return entries_; }
    const std::vector<llama_token> & ends() const { return ends_; }

private:
    std::vector<std::string> bytes_;
    std::vector<bool> is_end_;
    std::vector<Entry> entries_;
    std::vector<llama_token> ends_;
};

}  // namespace pyemo
