// One register function for each binding file; module.cpp calls them in order. Only files that
// include this header know pybind11.
#pragma once

#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

namespace py = pybind11;

namespace pyemo {

void register_errors(py::module_ & m);
void register_model(py::module_ & m);
void register_steering(py::module_ & m);
void register_engine(py::module_ & m);

// Refuses what is not float32 and C-contiguous instead of converting it silently; use with noconvert().
using FloatArray = py::array_t<float, py::array::c_style>;

// Bytes that may come from a stranger's file, as text: what is not UTF-8 becomes U+FFFD.
inline py::str to_text(const std::string & bytes) {
    return py::reinterpret_steal<py::str>(PyUnicode_DecodeUTF8(bytes.data(), py::ssize_t(bytes.size()), "replace"));
}

template <typename T>
py::array_t<T> to_array(const std::vector<T> & values, const std::vector<py::ssize_t> & shape) {
    py::array_t<T> out(shape);
    std::copy(values.begin(), values.end(), out.mutable_data());
    return out;
}

}  // namespace pyemo
