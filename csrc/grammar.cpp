#include "grammar.h"

#include <algorithm>
#include <map>
#include <optional>

#include "errors.h"

namespace pyemo {
namespace {

constexpr size_t most_bytes = 1 << 20;
constexpr size_t most_elements = 1 << 18;
constexpr int most_nesting = 200;
constexpr size_t most_name = 200;  // each part of a rule has its name
constexpr uint32_t last_code_point = 0x10FFFF;

using Elements = std::vector<Grammar::Element>;

// Ascending ranges that do not touch; what is outside of them where `negated`, NUL never, as in llama.cpp.
Grammar::Ranges normalised(Grammar::Ranges ranges, bool negated) {
    std::sort(ranges.begin(), ranges.end());
    Grammar::Ranges joined;
    for (const auto & [low, high] : ranges) {
        if (!joined.empty() && low <= joined.back().second + 1) {
            joined.back().second = std::max(joined.back().second, high);
        } else {
            joined.push_back({low, high});
        }
    }
    if (!negated) {
        return joined;
    }
    Grammar::Ranges rest;
    uint32_t begin = 1;
    for (const auto & [low, high] : joined) {
        if (low > begin) rest.push_back({begin, low - 1});
        begin = std::max(begin, high + 1);
    }
    if (begin <= last_code_point) rest.push_back({begin, last_code_point});
    return rest;
}

}  // namespace

class GrammarParser {
public:
    GrammarParser(Grammar & grammar, const std::string & text) : grammar_(grammar), text_(text) {}

    // Returns the rules' names.
    std::vector<std::string> parse(const std::string & root) {
        if (text_.size() > most_bytes) {
            throw Error(ErrorKind::input, "the grammar has " + std::to_string(text_.size()) + " bytes; " +
                        std::to_string(most_bytes) + " are the most");
        }
        skip_space(true);
        while (more()) parse_rule();
        if (names_.empty()) fail("the grammar has no rules; write one such as root ::= \"yes\" | \"no\"");
        for (const auto & [name, id] : ids_) {
            if (!is_defined_[id]) fail("the rule " + name + " is used and not defined");
        }
        const auto found = ids_.find(root);
        if (found == ids_.end()) fail("the grammar has no rule " + root + ", with which it begins");
        grammar_.root_ = found->second;
        return names_;
    }

private:
    [[noreturn]] void fail(const std::string & why) const {
        const size_t n = std::min(at_, text_.size());
        const auto line = 1 + std::count(text_.begin(), text_.begin() + std::ptrdiff_t(n), '\n');
        throw Error(ErrorKind::input, "the grammar is not understood at line " + std::to_string(line) + ": " + why);
    }

    bool more() const { return at_ < text_.size(); }
    char peek(size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }

    void skip_space(bool over_lines) {
        for (; more(); ++at_) {
            const char c = peek();
            if (c == '#') {
                while (more() && peek() != '\n' && peek() != '\r') ++at_;
                if (!over_lines || !more()) return;
            } else if (c != ' ' && c != '\t' && !(over_lines && (c == '\n' || c == '\r'))) {
                return;
            }
        }
    }

    static bool is_name(char c) {
        return ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || ('0' <= c && c <= '9') || c == '-';
    }

    std::string parse_name() {
        const size_t begin = at_;
        while (more() && is_name(peek())) ++at_;
        if (at_ == begin) fail("a rule's name is missing (letters, digits and -)");
        if (at_ - begin > most_name) {
            fail("a rule's name has " + std::to_string(at_ - begin) + " characters; " + std::to_string(most_name) + " are the most");
        }
        return text_.substr(begin, at_ - begin);
    }

    int id_of(const std::string & name) {
        const auto [found, is_new] = ids_.emplace(name, int(names_.size()));
        if (is_new) add_rule(name);
        return found->second;
    }

    int add_rule(const std::string & name) {
        names_.push_back(name);
        is_defined_.push_back(false);
        grammar_.rules_.emplace_back();
        return int(names_.size()) - 1;
    }

    void parse_rule() {
        const std::string name = parse_name();
        skip_space(false);
        if (text_.compare(at_, 3, "::=") != 0) fail("::= is missing behind the rule's name " + name);
        at_ += 3;
        skip_space(true);
        const int rule = id_of(name);
        if (is_defined_[rule]) fail("the rule " + name + " is defined twice");
        parse_alternatives(rule, 0);
        if (more() && peek() != '\n' && peek() != '\r') fail("there is something that is no part of a rule");
        skip_space(true);
    }

    void parse_alternatives(int rule, int depth) {
        if (depth > most_nesting) fail("parentheses are nested more than " + std::to_string(most_nesting) + " deep");
        std::vector<Elements> alternatives{parse_sequence(rule, depth)};
        while (peek() == '|') {
            ++at_;
            skip_space(true);
            alternatives.push_back(parse_sequence(rule, depth));
        }
        define(rule, alternatives);
    }

    void define(int rule, const std::vector<Elements> & alternatives) {
        is_defined_[rule] = true;
        for (const Elements & elements : alternatives) {
            grammar_.rules_[rule].push_back(int(grammar_.elements_.size()));
            grammar_.elements_.insert(grammar_.elements_.end(), elements.begin(), elements.end());
            grammar_.elements_.push_back({Grammar::Kind::end, 0});
        }
        require_size(0);
    }

    void require_size(uint64_t n_more) const {
        if (grammar_.elements_.size() + n_more > most_elements || grammar_.rules_.size() > most_elements) {
            fail("written out, the grammar has more than " + std::to_string(most_elements) + " parts; repeat less");
        }
    }

    Elements parse_sequence(int rule, int depth) {
        Elements out;
        std::optional<size_t> last;  // where what may be repeated begins
        while (more()) {
            const char c = peek();
            if (c == '"') {
                last = out.size();
                parse_literal(out);
            } else if (c == '[') {
                last = out.size();
                out.push_back(parse_set());
            } else if (c == '.') {
                last = out.size();
                ++at_;
                out.push_back(add_set({{1, last_code_point}}));
            } else if (is_name(c)) {
                last = out.size();
                out.push_back({Grammar::Kind::rule, id_of(parse_name())});
            } else if (c == '(') {
                last = out.size();
                ++at_;
                skip_space(true);
                const int inner = add_rule(names_[rule]);
                parse_alternatives(inner, depth + 1);
                if (peek() != ')') fail("a ) is missing");
                ++at_;
                out.push_back({Grammar::Kind::rule, inner});
            } else if (c == '*' || c == '+' || c == '?' || c == '{') {
                if (!last) fail(std::string("there is nothing before ") + c + " to repeat");
                parse_repetition(out, *last, rule, depth);
            } else if (c == '<' || c == '!') {
                fail("tokens (<...>) are not understood; write their text");
            } else {
                break;
            }
            skip_space(depth > 0);
            require_size(out.size());
        }
        return out;
    }

    void parse_literal(Elements & out) {
        ++at_;
        while (peek() != '"' || !more()) {
            const uint32_t c = parse_char("a \" is missing at the end of a text");
            out.push_back(add_set({{c, c}}));
            require_size(out.size());
        }
        ++at_;
    }

    Grammar::Element parse_set() {
        ++at_;
        const bool negated = peek() == '^';
        if (negated) ++at_;
        Grammar::Ranges ranges;
        while (peek() != ']' || !more()) {
            const uint32_t low = parse_char("a ] is missing");
            uint32_t high = low;
            if (peek() == '-' && peek(1) != ']') {
                ++at_;
                high = parse_char("a ] is missing");
                if (high < low) fail("a range of characters ends before it begins");
            }
            ranges.push_back({low, high});
        }
        ++at_;
        if (ranges.empty() && !negated) fail("[] has no characters");
        return add_set(normalised(std::move(ranges), negated));
    }

    Grammar::Element add_set(Grammar::Ranges ranges) {
        grammar_.sets_.push_back(std::move(ranges));
        return {Grammar::Kind::chars, int(grammar_.sets_.size()) - 1};
    }

    uint32_t parse_char(const char * why_missing) {
        if (!more()) fail(why_missing);
        if (peek() != '\\') return parse_utf8();
        const char c = peek(1);
        at_ += 2;
        switch (c) {
            case 'x': return parse_hex(2);
            case 'u': return parse_hex(4);
            case 'U': return parse_hex(8);
            case 't': return '\t';
            case 'r': return '\r';
            case 'n': return '\n';
            case '\\': case '"': case '[': case ']': case '-': return uint32_t(c);
            default: fail("an unknown escape; there are \\\\ \\\" \\[ \\] \\- \\t \\r \\n \\xHH \\uHHHH \\UHHHHHHHH");
        }
    }

    uint32_t parse_hex(int n_digits) {
        uint32_t value = 0;
        for (int i = 0; i < n_digits; ++i, ++at_) {
            const char c = peek();
            const int digit = '0' <= c && c <= '9' ? c - '0' : 'a' <= c && c <= 'f' ? c - 'a' + 10 : 'A' <= c && c <= 'F' ? c - 'A' + 10 : -1;
            if (digit < 0) fail(std::to_string(n_digits) + " hexadecimal digits are expected");
            value = value * 16 + uint32_t(digit);
        }
        if (value > last_code_point) fail("a character beyond \\U0010FFFF");
        return value;
    }

    // The text is UTF-8, as Python made it.
    uint32_t parse_utf8() {
        const uint8_t first = uint8_t(peek());
        const int n = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
        uint32_t value = n == 1 ? first : first & (0xFF >> (n + 1));
        for (int i = 1; i < n; ++i) value = (value << 6) | (uint8_t(peek(size_t(i))) & 0x3F);
        at_ += size_t(n);
        return value;
    }

    uint64_t parse_number() {
        uint64_t value = 0;
        const size_t begin = at_;
        for (; '0' <= peek() && peek() <= '9'; ++at_) value = std::min<uint64_t>(value * 10 + uint64_t(peek() - '0'), most_elements);
        if (at_ == begin) fail("a number is missing in {}");
        return value;
    }

    void parse_repetition(Elements & out, size_t begin, int rule, int depth) {
        const char c = peek();
        ++at_;
        uint64_t least = c == '+' ? 1 : 0;
        std::optional<uint64_t> most;
        if (c == '?') most = 1;
        if (c == '{') {
            skip_space(depth > 0);
            least = parse_number();
            most = least;
            skip_space(depth > 0);
            if (peek() == ',') {
                ++at_;
                skip_space(depth > 0);
                most.reset();
                if (peek() != '}') most = parse_number();
                skip_space(depth > 0);
            }
            if (peek() != '}') fail("a } is missing");
            ++at_;
            if (most && *most < least) fail("a repetition's most is below its least");
        }
        repeat(out, begin, rule, least, most);
    }

    // x{2,4} becomes x x x' with x' ::= x x'' | and x'' ::= x | ; x* becomes x' with x' ::= x x' | .
    void repeat(Elements & out, size_t begin, int rule, uint64_t least, std::optional<uint64_t> most) {
        const Elements part(out.begin() + std::ptrdiff_t(begin), out.end());
        require_size((part.size() + 3) * (most ? *most : least + 1));
        out.resize(begin);
        for (uint64_t i = 0; i < least; ++i) out.insert(out.end(), part.begin(), part.end());
        if (!most) {
            const int more = add_rule(names_[rule]);
            Elements again = part;
            again.push_back({Grammar::Kind::rule, more});
            define(more, {again, {}});
            out.push_back({Grammar::Kind::rule, more});
            return;
        }
        std::optional<int> inner;
        for (uint64_t i = least; i < *most; ++i) {
            Elements once = part;
            if (inner) once.push_back({Grammar::Kind::rule, *inner});
            inner = add_rule(names_[rule]);
            define(*inner, {once, {}});
        }
        if (inner) out.push_back({Grammar::Kind::rule, *inner});
    }

    Grammar & grammar_;
    const std::string & text_;
    size_t at_ = 0;
    std::map<std::string, int> ids_;
    std::vector<std::string> names_;  // a part's is that of the rule it stands in
    std::vector<bool> is_defined_;
};

Grammar::Grammar(const std::string & text, const std::string & root) {
    const std::vector<std::string> names = GrammarParser(*this, text).parse(root);
    check_recursion(names);
}

bool Grammar::contains(int set, uint32_t code_point) const { return meets(set, code_point, code_point); }

bool Grammar::meets(int set, uint32_t low, uint32_t high) const {
    const Ranges & ranges = sets_[set];
    const auto found = std::lower_bound(ranges.begin(), ranges.end(), low,
                                        [](const auto & range, uint32_t value) { return range.second < value; });
    return found != ranges.end() && found->first <= high;
}

// The rules that have a text, with characters or without any.
std::vector<bool> Grammar::rules_that_end(bool with_characters) const {
    const int n = int(rules_.size());
    std::vector<bool> ends(n, false);
    std::vector<std::vector<int>> users(n);  // of a rule: those that have it
    for (int r = 0; r < n; ++r) {
        for (int begin : rules_[r]) {
            for (int p = begin; elements_[p].kind != Kind::end; ++p) {
                if (elements_[p].kind == Kind::rule) users[elements_[p].value].push_back(r);
            }
        }
    }
    const auto passes = [&](const Element & element) {
        return element.kind == Kind::rule ? bool(ends[element.value]) : element.kind == Kind::chars && with_characters;
    };
    std::vector<std::vector<int>> reached = rules_;  // of each alternative: up to where it is known to pass
    std::vector<int> todo(n);
    for (int r = 0; r < n; ++r) todo[r] = r;
    while (!todo.empty()) {
        const int r = todo.back();
        todo.pop_back();
        const bool comes_to_end = std::any_of(reached[r].begin(), reached[r].end(), [&](int & p) {
            while (passes(elements_[p])) ++p;
            return elements_[p].kind == Kind::end;
        });
        if (!ends[r] && comes_to_end) {
            ends[r] = true;
            todo.insert(todo.end(), users[r].begin(), users[r].end());
        }
    }
    return ends;
}

// A rule that comes to itself before any character, with something left to do behind, would never end. One with nothing
// left behind (x* where x may be empty) is harmless: it comes to what was seen already.
void Grammar::check_recursion(const std::vector<std::string> & names) const {
    const int n = int(rules_.size());
    const std::vector<bool> may_be_empty = rules_that_end(false);
    if (!rules_that_end(true)[root_]) {
        throw Error(ErrorKind::input, "the grammar's rule " + names[root_] + " never comes to an end; no text follows it");
    }
    struct Edge {
        int to;
        bool grows;
    };
    std::vector<std::vector<Edge>> edges(n);  // to the rules that a rule may begin with
    for (int r = 0; r < n; ++r) {
        for (int p : rules_[r]) {
            for (; elements_[p].kind == Kind::rule; ++p) {
                edges[r].push_back({elements_[p].value, elements_[p + 1].kind != Kind::end});
                if (!may_be_empty[elements_[p].value]) break;
            }
        }
    }
    // Tarjan 1972, without recursion: which rules come to each other.
    std::vector<int> index(n, -1), low(n, 0), component(n, -1), stack;
    int n_seen = 0, n_components = 0;
    for (int first = 0; first < n; ++first) {
        if (index[first] >= 0) continue;
        std::vector<std::pair<int, size_t>> path{{first, 0}};
        while (!path.empty()) {
            auto & [r, next] = path.back();
            if (next == 0) {
                index[r] = low[r] = n_seen++;
                stack.push_back(r);
            }
            if (next < edges[r].size()) {
                const int to = edges[r][next++].to;
                if (index[to] < 0) {
                    path.push_back({to, 0});
                } else if (component[to] < 0) {
                    low[r] = std::min(low[r], index[to]);
                }
                continue;
            }
            const int done = r;
            if (low[done] == index[done]) {
                for (int member = -1; member != done; stack.pop_back()) {
                    member = stack.back();
                    component[member] = n_components;
                }
                ++n_components;
            }
            path.pop_back();
            if (!path.empty()) low[path.back().first] = std::min(low[path.back().first], low[done]);
        }
    }
    for (int r = 0; r < n; ++r) {
        for (const Edge & edge : edges[r]) {
            if (edge.grows && component[r] == component[edge.to]) {
                throw Error(ErrorKind::input, "the grammar's rule " + names[r] +
                            " begins with itself (left recursion), so it would never end; let it repeat instead: item (\",\" item)*");
            }
        }
    }
}

}  // namespace pyemo
