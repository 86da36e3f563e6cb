// Table of contents of the extension pyemo._core.
#include "bindings.h"
#include "in_flight.h"

PYBIND11_MODULE(_core, m) {
    m.doc() = "The native core of pyemo: llama.cpp with a steered residual stream. Private; use pyemo.Engine.";
    m.attr("llama_cpp_python") = PYEMO_LLAMA_CPP_PYTHON;  // the version this was built against
    pyemo::end_before_work_in_flight();
    pyemo::register_errors(m);
    pyemo::register_model(m);
    pyemo::register_steering(m);
    pyemo::register_engine(m);
}
