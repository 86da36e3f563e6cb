#include "pieces.h"

#include <algorithm>

#include "model.h"

namespace pyemo {

Pieces::Pieces(const Model & model) : bytes_(model.n_vocab()), is_end_(model.n_vocab()) {
    for (llama_token token = 0; token < n_vocab(); ++token) {
        bytes_[token] = model.piece(token, false);
        is_end_[token] = model.is_end_of_generation(token);
        if (is_end_[token]) {
            ends_.push_back(token);
        } else if (!bytes_[token].empty()) {
            entries_.push_back({token, 0});
        }
    }
    std::sort(entries_.begin(), entries_.end(), [&](const Entry & a, const Entry & b) { return bytes_[a.token] < bytes_[b.token]; });
    for (size_t i = 1; i < entries_.size(); ++i) {
        const std::string & before = bytes_[entries_[i - 1].token];
        const std::string & here = bytes_[entries_[i].token];
        const auto differs = std::mismatch(before.begin(), before.begin() + std::ptrdiff_t(std::min(before.size(), here.size())), here.begin());
        entries_[i].n_shared = int(differs.first - before.begin());
    }
}

}  // namespace pyemo
