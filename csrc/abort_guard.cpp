#include "abort_guard.h"

#include <cstdio>
#include <cstring>
#include <mutex>
#include <string>

#include "ggml.h"

namespace pyemo {
namespace {

thread_local const ErrorKind * guarded = nullptr;  // the innermost guard's kind
ggml_abort_callback_t previous = nullptr;

// "/where/it/was/built/gpt2.cpp:61: GGML_ASSERT(...) failed" without the folders
std::string without_folders(const char * message) {
    const char * end = std::strchr(message, ':');
    const char * begin = message;
    for (const char * c = message; end != nullptr && c < end; ++c) {
        if (*c == '/' || *c == '\\') begin = c + 1;
    }
    return begin;
}

// Called by ggml_abort, which aborts when this returns.
void on_abort(const char * message) {
    if (guarded != nullptr) {
        throw Error(*guarded, without_folders(message));
    }
    if (previous != nullptr) {
        previous(message);
    } else {
        std::fprintf(stderr, "%s\n", message);
    }
}

}  // namespace

AbortGuard::AbortGuard(ErrorKind kind) : outer_(guarded), kind_(kind) {
    static std::once_flag once;
    std::call_once(once, [] { previous = ggml_set_abort_callback(on_abort); });
    guarded = &kind_;
}

AbortGuard::~AbortGuard() { guarded = outer_; }

}  // namespace pyemo
