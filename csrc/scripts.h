// Which writing systems ("scripts") the letters of a vocabulary's tokens belong to, and which tokens leave those of a
// text. Knows no script by name: what is a letter of which is handed in (pyemo/engine/scripts.py).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model.h"

namespace pyemo {

// Code points begin to end - 1. What no range names is not assigned.
struct ScriptRange {
    uint32_t begin = 0, end = 0;
    int script = 0;          // 0: shared by all, such as punctuation and emoji
    bool is_letter = false;  // a letter or a mark on one; a script's digits and punctuation are drawn in every text
};

class Scripts {
public:
    // ranges ascend. brings[s]: further scripts that a text in script s is written in.
    Scripts(const Model & model, std::vector<ScriptRange> ranges, std::vector<std::vector<int>> brings);
    Scripts(const Scripts &) = delete;
    Scripts & operator=(const Scripts &) = delete;

    int n_scripts() const { return int(brings_.size()); }
    // For each script, whether a letter of these tokens is in it, or more names it. All are, where nothing has a letter.
    std::vector<bool> known(const std::vector<llama_token> & tokens, const std::vector<int> & more) const;
    // The bytes of a character that the tokens leave unfinished at their end.
    std::string open_end(const std::vector<llama_token> & tokens) const;
    // Whether a token has no letter of another script behind these open bytes, and leaves none as the only way to finish a
    // character that it begins.
    bool fits(const std::string & open, llama_token token, const std::vector<bool> & known) const;

private:
    std::string_view piece(llama_token token) const;
    const ScriptRange * find(uint32_t code_point) const;  // nullptr: not assigned
    const ScriptRange * search(uint32_t code_point) const;
    bool can_end(uint32_t first, uint32_t last, const std::vector<bool> & known) const;

    std::vector<ScriptRange> ranges_;
    std::vector<const ScriptRange *> low_;  // what search finds for the first code points, most letters of most texts
    std::vector<std::vector<int>> brings_;
    std::string bytes_;               // of all tokens, one behind the other
    std::vector<uint32_t> begins_;    // (n_vocab + 1,)
};

}  // namespace pyemo
