// What Python sees of a mood: directions, terms, conditions and gauges.
#include <cmath>
#include <map>

#include "bindings.h"
#include "errors.h"
#include "mix.h"
#include "residual_hook.h"

namespace pyemo {
namespace {

const float * row_of(const FloatArray & array, int n_embd, const char * what) {
    if (array.ndim() != 1 || array.shape(0) != n_embd) {
        throw Error(ErrorKind::vector_shape, std::string(what) + " must have the shape (" + std::to_string(n_embd) + ",)");
    }
    return array.data();
}

}  // namespace

void register_steering(py::module_ & m) {
    m.def("operator_names", &operator_names, "Return the names of the operators a Term takes.");
    py::native_enum<Pooling>(m, "Pooling", "enum.Enum")
        .value("mean", Pooling::mean)
        .value("last", Pooling::last)
        .value("all", Pooling::all)
        .finalize();

    py::class_<Directions, std::shared_ptr<Directions>>(m, "Directions", "A control vector in the core. Immutable.")
        .def(py::init([](int n_layer, int n_embd, const std::vector<std::pair<int, FloatArray>> & directions,
                         const std::map<int, std::pair<float, float>> & projections,
                         const std::map<int, std::tuple<FloatArray, FloatArray, float>> & ellipsoids) {
                 auto out = std::make_shared<Directions>(n_layer, n_embd);
                 for (const auto & [il, row] : directions) {
                     const auto found = projections.find(il);
                     const auto [neutral, own] = found == projections.end() ? std::pair(0.0f, 0.0f) : found->second;
                     out->set(il, row_of(row, n_embd, "a direction"), neutral, own);
                 }
                 for (const auto & [il, ellipsoid] : ellipsoids) {
                     const auto & [components, center, radius2] = ellipsoid;
                     out->set_ellipsoid(il, {components.data(), components.data() + components.size()},
                                        {center.data(), center.data() + center.size()}, radius2);
                 }
                 return out;
             }), py::arg("n_layer"), py::arg("n_embd"), py::arg("directions"),
             py::arg("projections") = std::map<int, std::pair<float, float>>(),
             py::arg("ellipsoids") = std::map<int, std::tuple<FloatArray, FloatArray, float>>());

    py::class_<Term>(m, "Term", "One control vector at one strength, with an operator, on layers [il_begin, il_end).")
        .def(py::init([](std::shared_ptr<Directions> vector, float strength, const std::string & op, int il_begin, int il_end,
                         std::shared_ptr<Gate> gate) {
                 return Term{std::move(vector), strength, &operator_named(op), il_begin, il_end, std::move(gate)};
             }), py::arg("vector").none(false), py::arg("strength"), py::arg("operator"), py::arg("il_begin"), py::arg("il_end"),
             py::arg("gate") = py::none());

    py::class_<Gauge>(m, "Gauge", "A unit direction at a layer; see pyemo.engine.gauges.")
        .def(py::init([](const FloatArray & unit, int il, float neutral, float residual_norm) {
                 if (unit.ndim() != 1) {
                     throw Error(ErrorKind::vector_shape, "a gauge's direction must have the shape (n_embd,)");
                 }
                 Gauge gauge;
                 gauge.unit.assign(unit.data(), unit.data() + unit.size());
                 for (float x : gauge.unit) {
                     if (!std::isfinite(x)) throw Error(ErrorKind::vector_shape, "a gauge's direction holds NaN or infinity");
                 }
                 gauge.il = il;
                 gauge.neutral = neutral;
                 gauge.residual_norm = residual_norm;
                 return gauge;
             }), py::arg("unit").noconvert(), py::arg("il"), py::arg("neutral"), py::arg("residual_norm"));

    py::class_<Probe>(m, "Probe", "A gauge with a threshold; see pyemo.engine.rules.")
        .def(py::init([](Gauge gauge, float threshold, bool above, float softness) {
                 return Probe{std::move(gauge), threshold, above, softness};
             }), py::arg("gauge"), py::arg("threshold"), py::arg("above"), py::arg("softness"));

    py::class_<Gate, std::shared_ptr<Gate>> gate(m, "Gate", "A rule over probes, in postfix. Immutable.");
    gate.def(py::init<std::vector<Probe>, std::vector<int>>(), py::arg("probes"), py::arg("program"));
    gate.attr("NOT") = Gate::op_not;
    gate.attr("AND") = Gate::op_and;
    gate.attr("OR") = Gate::op_or;

    // For tests against NumPy: what a mix makes of one row.
    m.def("apply_terms", [](const FloatArray & h, const std::vector<Term> & terms, int il, int n_layer) {
              if (h.ndim() != 1) {
                  throw Error(ErrorKind::vector_shape, "a row must have the shape (n_embd,)");
              }
              std::vector<float> row(h.data(), h.data() + h.size());
              const Mix mix(terms, n_layer, int(row.size()));
              std::vector<float> held(mix.n_probes());
              mix.apply(il, row.data(), held.data());
              return to_array(row);
          }, py::arg("h").noconvert(), py::arg("terms"), py::arg("il"), py::arg("n_layer"),
          "Return the row after the terms of layer il; float32 (n_embd,), a copy.");
}

}  // namespace pyemo
