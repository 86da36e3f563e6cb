// A grammar of texts, in GBNF as llama.cpp reads it: parsed, checked, and laid out to be followed character by
// character (grammar_matcher.h). Knows nothing of tokens.
//
// Written here and not taken from llama.cpp: its parser recurses as deep as the text nests, its search for left
// recursion takes exponential time and overlooks rules that are empty only through others, and nothing bounds how many
// readings its sampler follows. So a short grammar of a stranger could hold a server for ever. What it accepts, where it
// ends, is the oracle of the tests.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace pyemo {

class Grammar {
public:
    enum class Kind : uint8_t { chars, rule, end };
    struct Element {
        Kind kind;
        int value;  // of chars: which set; of a rule: which
    };
    using Ranges = std::vector<std::pair<uint32_t, uint32_t>>;  // code points, both ends included, ascending

    // Throws input: a fault of the text, with its line; a rule that begins with itself; a grammar too large.
    Grammar(const std::string & text, const std::string & root);

    int root() const { return root_; }
    const Element & at(int position) const { return elements_[position]; }
    // Where the alternatives of a rule begin. Each ends at an element of the kind `end`.
    const std::vector<int> & alternatives(int rule) const { return rules_[rule]; }
    bool contains(int set, uint32_t code_point) const;
    // Whether the set has a code point from low to high.
    bool meets(int set, uint32_t low, uint32_t high) const;

private:
    friend class GrammarParser;
    std::vector<bool> rules_that_end(bool with_characters) const;
    void check_recursion(const std::vector<std::string> & names) const;

    int root_ = 0;
    std::vector<Element> elements_;
    std::vector<std::vector<int>> rules_;
    std::vector<Ranges> sets_;
};

}  // namespace pyemo
