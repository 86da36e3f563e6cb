#include "grammar_matcher.h"

#include <algorithm>

#include "errors.h"

namespace pyemo {
namespace {

constexpr int no_frame = -1;
constexpr int64_t most_work = 10'000'000;  // readings looked at in one call: under a second
constexpr size_t most_readings = 4096;     // at one place of the text
constexpr size_t most_kept = 1 << 20;      // steps, frames and readings of states before all is forgotten: some 64 MB

uint64_t key(int a, int b) { return uint64_t(uint32_t(a)) << 32 | uint32_t(b); }

[[noreturn]] void fail(const std::string & why) { throw Error(ErrorKind::input, why); }

}  // namespace

GrammarMatcher::GrammarMatcher(std::shared_ptr<const Grammar> grammar, std::shared_ptr<const Pieces> pieces)
    : grammar_(std::move(grammar)), pieces_(std::move(pieces)) {}

void GrammarMatcher::restart() {
    frames_.clear();
    frame_ids_.clear();
    states_.clear();
    state_ids_.clear();
    steps_.clear();
    n_readings_ = 0;
    tokens_.clear();
    State first;
    std::vector<Reading> todo;
    for (int begin : grammar_->alternatives(grammar_->root())) todo.push_back({begin, no_frame});
    close(std::move(todo), first);
    Point point;
    point.state = intern(std::move(first));
    points_.assign(1, point);
}

void GrammarMatcher::spend() {
    if (--budget_ < 0) {
        fail("the grammar can be read in too many ways to be followed; let each text have one reading");
    }
}

int GrammarMatcher::frame(int position, int outer) {
    const auto [found, is_new] = frame_ids_.emplace(key(position, outer), int(frames_.size()));
    if (is_new) frames_.push_back({position, outer});
    return found->second;
}

int GrammarMatcher::intern(State state) {
    if (state.readings.empty() && !state.may_end) return -1;
    const auto [found, is_new] = state_ids_.emplace(std::move(state), int(states_.size()));
    if (is_new) {
        states_.push_back(&found->first);
        n_readings_ += found->first.readings.size();
    }
    return found->second;
}

// Goes on from these until each waits for a character.
void GrammarMatcher::close(std::vector<Reading> todo, State & out) {
    seen_.clear();
    while (!todo.empty()) {
        auto [position, outer] = todo.back();
        todo.pop_back();
        spend();
        while (grammar_->at(position).kind == Grammar::Kind::end && outer != no_frame) {
            std::tie(position, outer) = std::pair(frames_[outer].position, frames_[outer].outer);
        }
        if (!seen_.insert(key(position, outer)).second) continue;
        const Grammar::Element & element = grammar_->at(position);
        if (element.kind == Grammar::Kind::end) {
            out.may_end = true;
        } else if (element.kind == Grammar::Kind::chars) {
            out.readings.push_back({position, outer});
            if (out.readings.size() > most_readings) budget_ = 0;
        } else {
            const bool is_last = grammar_->at(position + 1).kind == Grammar::Kind::end;
            const int inner = is_last ? outer : frame(position + 1, outer);
            for (int begin : grammar_->alternatives(element.value)) todo.push_back({begin, inner});
        }
    }
    std::sort(out.readings.begin(), out.readings.end());
}

int GrammarMatcher::after(int state, uint32_t code_point) {
    const uint64_t step = key(state, int(code_point));
    if (const auto found = steps_.find(step); found != steps_.end()) return found->second;
    std::vector<Reading> todo;
    for (const auto & [position, outer] : states_[state]->readings) {
        spend();
        if (grammar_->contains(grammar_->at(position).value, code_point)) todo.push_back({position + 1, outer});
    }
    State next;
    close(std::move(todo), next);
    const int id = intern(std::move(next));
    steps_.emplace(step, id);
    return id;
}

GrammarMatcher::Point GrammarMatcher::after_byte(const Point & point, uint8_t byte) {
    const Point nowhere;
    Point next = point;
    if (point.n_missing == 0) {
        if (byte < 0x80) {
            next.state = after(point.state, byte);
            return next;
        }
        next.n_bytes = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : 2;
        next.value = byte & (0xFF >> (next.n_bytes + 1));
        next.n_missing = next.n_bytes - 1;
        return byte < 0xC2 || byte > 0xF4 ? nowhere : next;
    }
    if ((byte & 0xC0) != 0x80) return nowhere;
    next.value = next.value << 6 | (byte & 0x3F);
    if (--next.n_missing > 0) return next;
    const uint32_t least = next.n_bytes == 2 ? 0x80 : next.n_bytes == 3 ? 0x800 : 0x10000;
    const bool is_surrogate = 0xD800 <= next.value && next.value <= 0xDFFF;
    if (next.value < least || next.value > 0x10FFFF || is_surrogate) return nowhere;
    next.state = after(point.state, next.value);
    next.value = 0;
    next.n_bytes = 0;
    return next;
}

GrammarMatcher::Point GrammarMatcher::after_token(Point point, llama_token token) {
    if (pieces_->is_end(token)) {
        return may_end(point) ? point : Point();
    }
    for (char byte : pieces_->bytes(token)) {
        if (point.state < 0) break;
        point = after_byte(point, uint8_t(byte));
    }
    return point;
}

// Whether a text may come to a token's end here: some end of the character that is not whole yet is allowed.
bool GrammarMatcher::may_stop(const Point & point) const {
    if (point.state < 0 || point.n_missing == 0) return point.state >= 0;
    const uint32_t least = point.n_bytes == 2 ? 0x80 : point.n_bytes == 3 ? 0x800 : 0x10000;
    const int shift = 6 * point.n_missing;
    const uint32_t low = std::max(point.value << shift, least);
    const uint32_t high = std::min<uint32_t>((point.value << shift) | ((1u << shift) - 1), 0x10FFFF);
    const auto & readings = states_[point.state]->readings;
    const bool is_surrogate = 0xD800 <= low && high <= 0xDFFF;
    return low <= high && !is_surrogate && std::any_of(readings.begin(), readings.end(), [&](const Reading & reading) {
        return grammar_->meets(grammar_->at(reading.first).value, low, high);
    });
}

bool GrammarMatcher::may_end(const Point & point) const {
    return point.state >= 0 && point.n_missing == 0 && states_[point.state]->may_end;
}

void GrammarMatcher::follow(const llama_token * tokens, size_t n_tokens) {
    budget_ = most_work;
    if (points_.empty() || frames_.size() + states_.size() + steps_.size() + n_readings_ > most_kept) restart();
    const size_t n_most = std::min(n_tokens, tokens_.size());
    const size_t n_same = size_t(std::mismatch(tokens_.begin(), tokens_.begin() + std::ptrdiff_t(n_most), tokens).first - tokens_.begin());
    tokens_.resize(n_same);
    points_.resize(n_same + 1);
    for (size_t i = n_same; i < n_tokens; ++i) {
        const Point point = after_token(points_.back(), tokens[i]);
        if (!may_stop(point)) {
            fail("token " + std::to_string(i) + " of the reply is not what its grammar allows there");
        }
        tokens_.push_back(tokens[i]);
        points_.push_back(point);
    }
}

bool GrammarMatcher::allows(llama_token token) {
    budget_ = most_work;
    const bool says_something = pieces_->is_end(token) || !pieces_->bytes(token).empty();
    return says_something && may_stop(after_token(points_.back(), token));
}

bool GrammarMatcher::allowed(std::vector<bool> & out) {
    budget_ = most_work;
    out.assign(size_t(pieces_->n_vocab()), false);
    bool any = false;
    if (may_end(points_.back())) {
        for (llama_token token : pieces_->ends()) any = out[token] = true;
    }
    std::vector<Point> path{points_.back()};  // behind each byte of the present token, up to where it leads nowhere
    for (const Pieces::Entry & entry : pieces_->entries()) {
        if (path.back().state < 0 && size_t(entry.n_shared) >= path.size() - 1) continue;  // begins as the last one did
        path.resize(size_t(entry.n_shared) + 1);
        const std::string & bytes = pieces_->bytes(entry.token);
        while (path.back().state >= 0 && path.size() <= bytes.size()) {
            spend();
            path.push_back(after_byte(path.back(), uint8_t(bytes[path.size() - 1])));
        }
        if (path.back().state >= 0 && may_stop(path.back())) any = out[entry.token] = true;
    }
    return any;
}

bool GrammarMatcher::is_complete_after(llama_token token) {
    budget_ = most_work;
    const Point point = after_token(points_.back(), token);
    return may_end(point) && states_[point.state]->readings.empty();
}

}  // namespace pyemo
