// Follows a grammar through the tokens of a reply, and says which may come next. What it says is a function of the grammar
// and the tokens alone, so going back and forking need nothing restored; what it keeps only saves work.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "grammar.h"
#include "pieces.h"

namespace pyemo {

class GrammarMatcher {
public:
    GrammarMatcher(std::shared_ptr<const Grammar> grammar, std::shared_ptr<const Pieces> pieces);

    const std::shared_ptr<const Grammar> & grammar() const { return grammar_; }

    // Comes to where these tokens lead. Throws input where they do not follow the grammar, or where it can be read in so
    // many ways that following it would not end; the same holds for what is asked below.
    void follow(const llama_token * tokens, size_t n_tokens);

    bool allows(llama_token token);
    // Which tokens may come next, (n_vocab,); false if none may.
    bool allowed(std::vector<bool> & out);
    // Whether the text is whole behind this token, which is allowed, and nothing more may come.
    bool is_complete_after(llama_token token);

private:
    // A reading waits for characters at a position; when its rule has ended, it goes on at its frame's.
    using Reading = std::pair<int, int>;  // (position, frame)
    struct Frame {
        int position, outer;
    };
    struct State {
        std::vector<Reading> readings;  // sorted
        bool may_end = false;
        bool operator<(const State & other) const {
            return std::tie(may_end, readings) < std::tie(other.may_end, other.readings);
        }
    };
    // Where a text leads: a state, and the character that is not whole yet.
    struct Point {
        int state = -1;  // -1: nowhere
        uint32_t value = 0;
        int n_missing = 0, n_bytes = 0;
    };

    void restart();
    void spend();
    int frame(int position, int outer);
    int intern(State state);
    void close(std::vector<Reading> todo, State & out);
    int after(int state, uint32_t code_point);
    Point after_byte(const Point & point, uint8_t byte);
    Point after_token(Point point, llama_token token);
    bool may_stop(const Point & point) const;
    bool may_end(const Point & point) const;

    std::shared_ptr<const Grammar> grammar_;
    std::shared_ptr<const Pieces> pieces_;
    std::vector<llama_token> tokens_;  // that were followed
    std::vector<Point> points_;        // before the first of them, and behind each
    int64_t budget_ = 0;
    std::vector<Frame> frames_;
    std::unordered_map<uint64_t, int> frame_ids_;
    std::map<State, int> state_ids_;
    std::vector<const State *> states_;  // its keys
    size_t n_readings_ = 0;              // of all of them
    std::unordered_map<uint64_t, int> steps_;  // (state, code point) -> state
    std::unordered_set<uint64_t> seen_;
};

}  // namespace pyemo
