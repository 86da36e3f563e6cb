// Keeps llama.cpp's log lines until Python asks for them.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace pyemo {

enum class LogLevel { debug, info, warning, error };

// Routes llama.cpp's log here. Another user of libllama in the process may take the log over, so
// this is called before each model load and not once.
void capture_log();

// All lines since the last call, oldest first.
std::vector<std::pair<LogLevel, std::string>> drain_log();

// The newest error line, or an empty string; error messages end with it.
std::string last_error_line();

// Where the log is now, and: what was logged since then is of interest to debuggers only.
size_t mark_log();
void demote_log(size_t mark);

}  // namespace pyemo
