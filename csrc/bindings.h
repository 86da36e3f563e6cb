// One register function for each binding file; module.cpp calls them in order. Only files that
// include this header know pybind11.
#pragma once

#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "in_flight.h"
#include "interruptible.h"

namespace py = pybind11;

namespace pyemo {

void register_errors(py::module_ & m);
void register_model(py::module_ & m);
void register_steering(py::module_ & m);
void register_engine(py::module_ & m);

// Whether a signal handler has raised, for native work to ask; empty on threads that run no handlers.
Interrupted python_interrupts();

// Refuses what is not float32 and C-contiguous instead of converting it silently; use with noconvert().
using FloatArray = py::array_t<float, py::array::c_style>;

// Bytes that may come from a stranger's file, as text: what is not UTF-8 becomes U+FFFD.
inline py::str to_text(const std::string & bytes) {
    return py::reinterpret_steal<py::str>(PyUnicode_DecodeUTF8(bytes.data(), py::ssize_t(bytes.size()), "replace"));
}

// Releases the GIL while it lives. A thread that outlives the interpreter never gets the GIL back: Python ends it
// (pthread_exit in PyEval_RestoreThread), which unwinds, and in a destructor that would end the process in
// std::terminate. So such a thread stops here, for ever, and the process ends with its own code.
class ReleasedGil {
public:
    ReleasedGil() : state_(PyEval_SaveThread()) {}
    ~ReleasedGil() {
        try {
            PyEval_RestoreThread(state_);
        } catch (...) {
            for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
        }
    }
    ReleasedGil(const ReleasedGil &) = delete;
    ReleasedGil & operator=(const ReleasedGil &) = delete;

private:
    InFlight in_flight_;
    PyThreadState * state_;
};

// Returns f(), computed without the GIL.
template <typename F>
auto unlocked(F && f) {
    const ReleasedGil released;
    return f();
}

template <typename T>
py::array_t<T> to_array(const std::vector<T> & values) {
    py::array_t<T> out(py::ssize_t(values.size()));
    std::copy(values.begin(), values.end(), out.mutable_data());
    return out;
}

}  // namespace pyemo
