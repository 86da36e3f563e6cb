#include "log.h"

#include <algorithm>
#include <deque>
#include <mutex>

#include "llama.h"

namespace pyemo {
namespace {

// llama.cpp may log from any of its threads and without the GIL, so lines wait here.
constexpr size_t max_lines = 512;

struct Ring {
    std::mutex mutex;
    std::deque<std::pair<LogLevel, std::string>> lines;
    std::string last_error;
    size_t n_lines = 0;      // so far
    bool line_open = false;  // the newest line has not ended with '\n' yet
};

Ring & ring() {
    static Ring & instance = *new Ring;  // never destroyed: work that was given up may log while the process ends
    return instance;
}

LogLevel level_of(ggml_log_level level) {
    switch (level) {
        case GGML_LOG_LEVEL_ERROR: return LogLevel::error;
        case GGML_LOG_LEVEL_WARN:  return LogLevel::warning;
        case GGML_LOG_LEVEL_INFO:  return LogLevel::info;
        default:                   return LogLevel::debug;
    }
}

void on_log(ggml_log_level level, const char * text, void *) {
    Ring & r = ring();
    const std::lock_guard<std::mutex> lock(r.mutex);
    std::string line(text);
    const bool ends = !line.empty() && line.back() == '\n';
    if (ends) {
        line.pop_back();
    }
    // The line after the cause of a failed load says no more than that it failed.
    constexpr char no_cause[] = ": failed to load model";
    if (level == GGML_LOG_LEVEL_ERROR && !line.empty() && line.find(no_cause) == std::string::npos) {
        constexpr char cause[] = "error loading model: ";
        const size_t at = line.find(cause);
        r.last_error = at == std::string::npos ? line : line.substr(at + sizeof(cause) - 1);
    }
    if (r.line_open && !r.lines.empty()) {
        r.lines.back().second += line;
    } else if (!line.empty()) {
        r.lines.emplace_back(level_of(level), std::move(line));
        ++r.n_lines;
        if (r.lines.size() > max_lines) {
            r.lines.pop_front();
        }
    }
    r.line_open = !ends;
}

}  // namespace

void capture_log() {
    {
        Ring & r = ring();
        const std::lock_guard<std::mutex> lock(r.mutex);
        r.last_error.clear();
    }
    llama_log_set(on_log, nullptr);
}

std::vector<std::pair<LogLevel, std::string>> drain_log() {
    Ring & r = ring();
    const std::lock_guard<std::mutex> lock(r.mutex);
    std::vector<std::pair<LogLevel, std::string>> out(r.lines.begin(), r.lines.end());
    r.lines.clear();
    r.line_open = false;
    return out;
}

size_t mark_log() {
    Ring & r = ring();
    const std::lock_guard<std::mutex> lock(r.mutex);
    return r.n_lines;
}

void demote_log(size_t mark) {
    Ring & r = ring();
    const std::lock_guard<std::mutex> lock(r.mutex);
    const size_t n = std::min(r.n_lines - mark, r.lines.size());
    for (size_t i = r.lines.size() - n; i < r.lines.size(); ++i) r.lines[i].first = LogLevel::debug;
}

std::string last_error_line() {
    Ring & r = ring();
    const std::lock_guard<std::mutex> lock(r.mutex);
    return r.last_error;
}

}  // namespace pyemo
