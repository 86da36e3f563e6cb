// The only place where native errors become Python ones, and llama.cpp's log reaches Python.
#include <array>
#include <utility>

#include "bindings.h"
#include "errors.h"
#include "log.h"

namespace pyemo {
namespace {

constexpr std::array<std::pair<ErrorKind, const char *>, 8> python_names = {{
    {ErrorKind::model_load, "ModelLoadError"},
    {ErrorKind::steering_unsupported, "SteeringUnsupportedError"},
    {ErrorKind::vector_shape, "VectorShapeError"},
    {ErrorKind::input, "InputError"},
    {ErrorKind::closed, "ClosedError"},
    {ErrorKind::context_full, "ContextFullError"},
    {ErrorKind::sequence_limit, "SequenceLimitError"},
    {ErrorKind::decode_aborted, "DecodeAbortedError"},
}};

const char * python_name(ErrorKind kind) {
    for (const auto & [k, name] : python_names) {
        if (k == kind) return name;
    }
    return "PyemoError";
}

}  // namespace

void register_errors(py::module_ & m) {
    py::register_exception_translator([](std::exception_ptr p) {
        try {
            if (p) std::rethrow_exception(p);
        } catch (const Error & e) {
            if (PyErr_Occurred()) return;  // a decode stopped by Ctrl-C: KeyboardInterrupt is already set
            const py::object type = py::module_::import("pyemo.errors").attr(python_name(e.kind()));
            PyErr_SetObject(type.ptr(), to_text(e.what()).ptr());
        }
    });

    m.def("error_names", [] {
        std::vector<std::string> names;
        for (int kind = 0; kind <= int(ErrorKind::decode_aborted); ++kind) {
            names.emplace_back(python_name(ErrorKind(kind)));
        }
        return names;
    }, "Return the name in pyemo.errors of every native error kind.");

    m.def("raise_error", [](int kind, const std::string & message) {
        throw Error(ErrorKind(kind), message);
    }, py::arg("kind"), py::arg("message"), "Raise the native error of this kind; for tests of the mapping.");

    m.def("drain_log", [] {
        static constexpr int levels[] = {10, 20, 30, 40};  // those of the logging module
        std::vector<std::pair<int, py::str>> out;
        for (const auto & [level, line] : drain_log()) {
            out.emplace_back(levels[int(level)], to_text(line));
        }
        return out;
    }, "Return and forget llama.cpp's log lines, oldest first, as (logging level, line).");
}

}  // namespace pyemo
