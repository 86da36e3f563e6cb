// Turns an abort of llama.cpp into an error where that is safe.
//
// llama.cpp and ggml hold over 2,000 asserts, and a model file decides many of them. model_file.cpp
// refuses what is known to fail before loading; for the rest ggml calls a function before it aborts, and
// that function may throw instead. What was being made is then given up: a model, a context, a text's
// tokens. That is why nothing that must go on afterwards runs under a guard, such as an engine's decode.
#pragma once

#include "errors.h"

namespace pyemo {

// While one lives, an abort on this thread throws Error(kind). The guarded code must not compute with
// more than one thread: an exception cannot leave the threads' common work.
class AbortGuard {
public:
    explicit AbortGuard(ErrorKind kind);
    ~AbortGuard();
    AbortGuard(const AbortGuard &) = delete;
    AbortGuard & operator=(const AbortGuard &) = delete;

private:
    const ErrorKind * outer_;
    ErrorKind kind_;
};

}  // namespace pyemo
