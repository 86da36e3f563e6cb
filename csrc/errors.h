// Native errors. One class, one kind for each Python class the caller can act on; bind_errors.cpp
// holds the only map from kinds to pyemo.errors.
#pragma once

#include <stdexcept>
#include <string>

namespace pyemo {

enum class ErrorKind {
    model_load,
    steering_unsupported,
    vector_shape,
    input,
    closed,
    context_full,
    sequence_limit,
    decode_aborted,
};

class Error : public std::runtime_error {
public:
    Error(ErrorKind kind, const std::string & message) : std::runtime_error(message), kind_(kind) {}
    ErrorKind kind() const { return kind_; }

private:
    ErrorKind kind_;
};

inline void require_range(const char * name, int value, int low, int high) {
    if (value < low || value > high) {
        throw Error(ErrorKind::input, std::string(name) + " = " + std::to_string(value) + " is outside " +
                    std::to_string(low) + " to " + std::to_string(high));
    }
}

}  // namespace pyemo
