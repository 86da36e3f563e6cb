#include "scripts.h"

#include <algorithm>

#include "errors.h"

namespace pyemo {
namespace {

constexpr uint32_t n_low = 0x800;  // those of two bytes: Latin, Greek, Cyrillic, Hebrew, Arabic

bool continues(unsigned char byte) { return (byte & 0xC0) == 0x80; }

// Bytes of the character that this one begins; 0 where none does.
size_t length_of(unsigned char byte) {
    if (byte < 0x80) return 1;
    if (byte >= 0xC2 && byte < 0xE0) return 2;
    if (byte >= 0xE0 && byte < 0xF0) return 3;
    return byte >= 0xF0 && byte < 0xF5 ? 4 : 0;
}

// The code point of the first length bytes; those that are not there yet count as if they were the lowest.
uint32_t value_of(std::string_view bytes, size_t length) {
    const auto first = static_cast<unsigned char>(bytes[0]);
    uint32_t out = length == 1 ? first : first & (0x7Fu >> length);
    for (size_t i = 1; i < length; ++i) {
        out = out << 6 | (i < bytes.size() ? static_cast<unsigned char>(bytes[i]) & 0x3Fu : 0u);
    }
    return out;
}

// Calls visit(code point) for each whole character until it says false. Returns where an unfinished one begins, or the
// number of bytes. What is not UTF-8 is passed over.
template <typename Visit>
size_t each_character(std::string_view bytes, Visit visit) {
    const size_t n = bytes.size();
    for (size_t i = 0; i < n;) {
        const size_t length = length_of(static_cast<unsigned char>(bytes[i]));
        size_t has = 1;
        while (has < length && i + has < n && continues(static_cast<unsigned char>(bytes[i + has]))) ++has;
        if (length == 0) {
            ++i;
        } else if (has == length) {
            if (!visit(value_of(bytes.substr(i), length))) return n;
            i += length;
        } else if (i + has == n) {
            return i;
        } else {
            i += has;
        }
    }
    return n;
}

}  // namespace

Scripts::Scripts(const Model & model, std::vector<ScriptRange> ranges, std::vector<std::vector<int>> brings)
    : ranges_(std::move(ranges)), brings_(std::move(brings)) {
    const auto check = [&](int script) { require_range("script", script, 0, n_scripts() - 1); };
    uint32_t last = 0;
    for (const ScriptRange & range : ranges_) {
        check(range.script);
        if (range.begin < last || range.end <= range.begin) {
            throw Error(ErrorKind::input, "ranges of scripts must ascend");
        }
        last = range.end;
    }
    for (const auto & others : brings_) {
        for (int script : others) check(script);
    }
    for (uint32_t i = 0; i < n_low; ++i) low_.push_back(search(i));
    begins_.push_back(0);
    for (llama_token token = 0; token < model.n_vocab(); ++token) {
        bytes_ += model.piece(token, false);
        begins_.push_back(uint32_t(bytes_.size()));
    }
}

std::string_view Scripts::piece(llama_token token) const {
    require_range("token", token, 0, int(begins_.size()) - 2);
    return std::string_view(bytes_).substr(begins_[token], begins_[token + 1] - begins_[token]);
}

const ScriptRange * Scripts::find(uint32_t code_point) const {
    return code_point < low_.size() ? low_[code_point] : search(code_point);
}

const ScriptRange * Scripts::search(uint32_t code_point) const {
    const auto after = std::upper_bound(ranges_.begin(), ranges_.end(), code_point,
                                        [](uint32_t value, const ScriptRange & range) { return value < range.begin; });
    if (after == ranges_.begin() || code_point >= (after - 1)->end) {
        return nullptr;
    }
    return &*(after - 1);
}

std::vector<bool> Scripts::known(const std::vector<llama_token> & tokens, const std::vector<int> & more) const {
    std::string text;
    for (llama_token token : tokens) text += piece(token);
    std::vector<bool> found(brings_.size(), false);
    found[0] = true;
    const auto add = [&](int script) {
        found[script] = true;
        for (int other : brings_[script]) found[other] = true;
    };
    for (int script : more) {
        require_range("script", script, 0, n_scripts() - 1);
        add(script);
    }
    bool has_letter = !more.empty();
    each_character(text, [&](uint32_t code_point) {
        const ScriptRange * range = find(code_point);
        if (range != nullptr && range->is_letter) {
            has_letter = true;
            if (!found[range->script]) add(range->script);
        }
        return true;
    });
    return has_letter ? found : std::vector<bool>(found.size(), true);
}

std::string Scripts::open_end(const std::vector<llama_token> & tokens) const {
    std::string text;
    for (size_t i = tokens.size(); i > 0 && text.size() < 4; --i) {
        text.insert(0, piece(tokens[i - 1]));
    }
    return text.substr(each_character(text, [](uint32_t) { return true; }));
}

bool Scripts::fits(const std::string & open, llama_token token, const std::vector<bool> & known) const {
    std::string joined;
    std::string_view bytes = piece(token);
    if (!open.empty()) {
        joined = open;
        bytes = joined += bytes;
    }
    bool holds = true;
    const size_t tail = each_character(bytes, [&](uint32_t code_point) {
        const ScriptRange * range = find(code_point);
        holds = range == nullptr || !range->is_letter || known[range->script];
        return holds;
    });
    if (!holds || tail == bytes.size()) {
        return holds;
    }
    const size_t length = length_of(static_cast<unsigned char>(bytes[tail]));
    const size_t n_missing = length - (bytes.size() - tail);
    const uint32_t first = value_of(bytes.substr(tail), length);
    return can_end(first, first + (1u << 6 * n_missing) - 1, known);
}

// Whether a character from first to last is in a known script, or shared by all.
bool Scripts::can_end(uint32_t first, uint32_t last, const std::vector<bool> & known) const {
    return std::any_of(ranges_.begin(), ranges_.end(), [&](const ScriptRange & range) {
        return range.begin <= last && first < range.end && known[range.script];
    });
}

}  // namespace pyemo
