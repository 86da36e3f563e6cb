// What Python sees of a model: its header, weights, vocabulary and tokens.
#include <mutex>

#include "bindings.h"
#include "ggml.h"
#include "gguf_header.h"
#include "model.h"
#include "model_file.h"
#include "scripts.h"

namespace pyemo {

void register_model(py::module_ & m) {
    py::class_<Model, std::shared_ptr<Model>>(m, "Model", "Loaded weights and vocabulary. Immutable; engines may share it.")
        .def(py::init([](const std::string & path, bool use_mmap, bool use_mlock, int n_gpu_layers) {
                 auto model = std::make_shared<Model>(ModelParams{path, use_mmap, use_mlock, n_gpu_layers}, python_interrupts());
                 static std::once_flag once;
                 std::call_once(once, end_before_work_in_flight);
                 return model;
             }),
             py::arg("path"), py::kw_only(), py::arg("use_mmap") = true, py::arg("use_mlock") = false,
             py::arg("n_gpu_layers") = 0, py::call_guard<ReleasedGil>())
        .def_property_readonly("n_layer", &Model::n_layer)
        .def_property_readonly("n_embd", &Model::n_embd)
        .def_property_readonly("n_vocab", &Model::n_vocab)
        .def_property_readonly("n_ctx_train", &Model::n_ctx_train)
        .def_property_readonly("n_swa", &Model::n_swa, "Sliding window in tokens, 0 if the model has none.")
        .def_property_readonly("size_bytes", &Model::size_bytes, "Size of all weights.")
        .def_property_readonly("bos", &Model::bos, "Beginning-of-sequence token, or -1.")
        .def_property_readonly("eos", &Model::eos, "End-of-sequence token, or -1.")
        .def_property_readonly("adds_space_prefix", &Model::adds_space_prefix)
        .def("metadata", [](const Model & model) {
                 py::dict out;
                 for (const auto & [key, value] : model.metadata()) {
                     out[to_text(key)] = to_text(value);
                 }
                 return out;
             }, "Return the file's scalar metadata as strings.")
        .def("tokenize", [](std::shared_ptr<Model> model, const py::bytes & text, bool add_special, bool parse_special) {
                 // Some vocabularies take minutes for some long texts.
                 constexpr size_t long_text = 1 << 14;
                 const std::string bytes = text;
                 return unlocked([&] {
                     return interruptible(
                         [=](const std::atomic<bool> &) { return model->tokenize(bytes, add_special, parse_special); },
                         bytes.size() > long_text ? python_interrupts() : Interrupted());
                 });
             }, py::arg("text"), py::kw_only(), py::arg("add_special"), py::arg("parse_special"))
        .def("byte_token", [](const Model & model, uint8_t byte) { return model.byte_token(byte); }, py::arg("byte"))
        .def("piece", [](const Model & model, llama_token token, bool special) { return py::bytes(model.piece(token, special)); },
             py::arg("token"), py::kw_only(), py::arg("special") = false)
        .def("special_tokens", [](const Model & model) {
                 py::list out;
                 for (const SpecialToken & t : unlocked([&] { return model.special_tokens(); })) {
                     out.append(py::make_tuple(t.id, to_text(t.text), t.is_control, t.strips_left, t.strips_right));
                 }
                 return out;
             }, "Return (id, text, is_control, strips_left, strips_right) of each token that is looked for in a text.")
        .def("is_end_of_generation", [](const Model & model, llama_token token) {
                 model.require_token(token);
                 return model.is_end_of_generation(token);
             }, py::arg("token"));

    py::class_<Scripts, std::shared_ptr<Scripts>>(m, "Scripts", "In which scripts a vocabulary's tokens have letters.")
        .def(py::init([](const Model & model, const std::vector<std::tuple<uint32_t, uint32_t, int, bool>> & ranges,
                         std::vector<std::vector<int>> brings) {
                 std::vector<ScriptRange> native;
                 for (const auto & [begin, end, script, is_letter] : ranges) native.push_back({begin, end, script, is_letter});
                 return unlocked([&] { return std::make_shared<Scripts>(model, std::move(native), std::move(brings)); });
             }), py::arg("model"), py::arg("ranges"), py::arg("brings"))
        .def("known", &Scripts::known, py::arg("tokens"), py::arg("more") = std::vector<int>())
        .def("fits", [](const Scripts & scripts, const std::vector<llama_token> & tokens, llama_token token, const std::vector<int> & more) {
                 return scripts.fits(scripts.open_end(tokens), token, scripts.known(tokens, more));
             }, py::arg("tokens"), py::arg("token"), py::arg("more") = std::vector<int>(),
             "Return whether a token behind these is in their scripts, or in one of more.");

    m.def("check_model_file", [](const std::string & path) { check_model_file(path); }, py::arg("path"), py::call_guard<ReleasedGil>(),
          "Refuse a file that is not a GGUF model, or whose header says what cannot be; loading does this first.");

    py::class_<GgufHeader>(m, "ModelFile", "The header of a GGUF file: its numbers and tensors, without loading it.")
        .def(py::init<const std::string &>(), py::arg("path"), py::call_guard<ReleasedGil>())
        .def("string", [](const GgufHeader & header, const std::string & key) -> std::optional<py::str> {
                 const auto text = header.string(key);
                 return text ? std::optional(to_text(std::string(*text))) : std::nullopt;
             }, py::arg("key"), "Return a key's text, or None.")
        .def("integers", &GgufHeader::integers, py::arg("key"), "Return a key's whole number or numbers; [] without it.")
        .def("length", [](const GgufHeader & header, const std::string & key) {
                 const GgufHeader::Value * value = header.find(key);
                 return value == nullptr ? uint64_t(0) : value->count;
             }, py::arg("key"), "Return how many values a key has; 0 without it.")
        .def("tensors", [](const GgufHeader & header) {
                 py::list out;
                 for (const GgufHeader::Tensor & t : header.tensors()) {
                     out.append(py::make_tuple(to_text(t.name), ggml_type_name(ggml_type(t.type)), t.n_elements, t.n_bytes));
                 }
                 return out;
             }, "Return (name, ggml type, elements, bytes) of each tensor in this file.");

    m.def("fingerprint_material", [](const std::string & path) {
              return py::bytes(unlocked([&] { return fingerprint_material(path); }));
          }, py::arg("path"), "Return the bytes that identify the weights of a GGUF file across quantizations.");
}

}  // namespace pyemo
