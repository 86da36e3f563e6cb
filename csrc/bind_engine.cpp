// What Python sees of an engine: its sequences, their steps, scores and readings.
#include <mutex>
#include <variant>

#include "bindings.h"
#include "engine.h"
#include "errors.h"

namespace pyemo {
namespace {

using release_gil = py::call_guard<ReleasedGil>;

using PySpans = std::vector<std::pair<int, std::vector<Term>>>;

std::vector<Span> to_spans(PySpans spans) {
    std::vector<Span> out;
    for (auto & [begin, terms] : spans) {
        out.push_back({begin, std::move(terms)});
    }
    return out;
}

unsigned long main_thread = 0;

// Runs on the thread that called into the core. Python runs signal handlers on its main thread only, so no other asks
// for the GIL here. A handler that raises (Ctrl-C) leaves its exception set; the translator in bind_errors.cpp then
// lets it through.
bool python_interrupted() {
    if (PyThread_get_thread_ident() != main_thread) {
        return false;
    }
    py::gil_scoped_acquire acquire;
    return PyErr_CheckSignals() != 0;
}

py::list to_arrays(const std::vector<std::vector<float>> & rows) {
    py::list out;
    for (const auto & values : rows) out.append(to_array(values));
    return out;
}

}  // namespace

Interrupted python_interrupts() {
    return PyThread_get_thread_ident() == main_thread ? Interrupted(python_interrupted) : Interrupted();
}

void register_engine(py::module_ & m) {
    main_thread = py::module_::import("threading").attr("main_thread")().attr("ident").cast<unsigned long>();

    py::class_<Grammar, std::shared_ptr<Grammar>>(m, "Grammar", "What a reply may be. Immutable.")
        .def(py::init<const std::string &, const std::string &>(), py::arg("text"), py::arg("root"), release_gil())
        .def("allowed", [](std::shared_ptr<Grammar> grammar, const Model & model, const std::vector<llama_token> & tokens) {
                 for (llama_token token : tokens) model.require_token(token);
                 std::vector<bool> allowed;
                 unlocked([&] {
                     GrammarMatcher matcher(grammar, model.pieces());
                     matcher.follow(tokens.data(), tokens.size());
                     matcher.allowed(allowed);
                     return 0;
                 });
                 py::array_t<bool> out(py::ssize_t(allowed.size()));
                 std::copy(allowed.begin(), allowed.end(), out.mutable_data());
                 return out;
             }, py::arg("model"), py::arg("tokens"), "Return which tokens may come behind these; bool (n_vocab,).");

    py::class_<SamplerParams>(m, "SamplerParams")
        .def(py::init([](float temperature, int top_k, float top_p, float min_p, float repeat_penalty, int repeat_last_n, uint64_t seed,
                         float dry_multiplier, float dry_base, int dry_allowed_length, int dry_last_n,
                         float frequency_penalty, float presence_penalty, std::shared_ptr<const Scripts> scripts,
                         std::vector<int> more_scripts, std::shared_ptr<const Grammar> grammar,
                         std::vector<std::pair<llama_token, float>> logit_bias) {
                 return SamplerParams{temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, seed,
                                      dry_multiplier, dry_base, dry_allowed_length, dry_last_n,
                                      frequency_penalty, presence_penalty, std::move(scripts), std::move(more_scripts),
                                      std::move(grammar), std::move(logit_bias)};
             }),
             py::kw_only(), py::arg("temperature"), py::arg("top_k"), py::arg("top_p"), py::arg("min_p"),
             py::arg("repeat_penalty"), py::arg("repeat_last_n"), py::arg("seed"),
             py::arg("dry_multiplier"), py::arg("dry_base"), py::arg("dry_allowed_length"), py::arg("dry_last_n"),
             py::arg("frequency_penalty"), py::arg("presence_penalty"), py::arg("scripts") = nullptr,
             py::arg("more_scripts") = std::vector<int>(), py::arg("grammar") = nullptr,
             py::arg("logit_bias") = std::vector<std::pair<llama_token, float>>());

    py::class_<StepResult>(m, "StepResult")
        .def_readonly("token", &StepResult::token)
        .def_readonly("logprob", &StepResult::logprob)
        .def_readonly("entropy", &StepResult::entropy)
        .def_readonly("is_end", &StepResult::is_end)
        .def_readonly("is_whole", &StepResult::is_whole)
        .def_property_readonly("piece", [](const StepResult & r) { return py::bytes(r.piece); })
        .def_readonly("top", &StepResult::top)
        .def_property_readonly("gauges", [](const StepResult & r) {
            std::vector<std::pair<float, float>> out;
            for (const GaugeReading & g : r.gauges) out.emplace_back(g.value, g.dose);
            return out;
        })
        .def_readonly("dose", &StepResult::dose);

    py::class_<Engine>(m, "Engine")
        .def(py::init([](std::shared_ptr<Model> model, int n_ctx, int n_batch, int n_seq_max, int n_outputs_max,
                         int n_threads, int n_threads_batch, const std::string & kv_type, bool kv_unified, bool hook_through_copies) {
                 auto engine = std::make_unique<Engine>(std::move(model),
                     EngineParams{n_ctx, n_batch, n_seq_max, n_outputs_max, n_threads, n_threads_batch, kv_type, kv_unified, hook_through_copies},
                     python_interrupted);
                 static std::once_flag once;
                 std::call_once(once, end_before_work_in_flight);
                 return engine;
             }),
             py::arg("model").none(false), py::kw_only(), py::arg("n_ctx"), py::arg("n_batch"), py::arg("n_seq_max"),
             py::arg("n_outputs_max"), py::arg("n_threads"), py::arg("n_threads_batch"), py::arg("kv_type"), py::arg("kv_unified") = true,
             py::arg("hook_through_copies") = false, release_gil())
        .def_property_readonly("steering_unsupported", &Engine::steering_unsupported)
        .def_property_readonly("n_ctx", &Engine::n_ctx, "Cells of the KV cache, shared by all sequences.")
        .def_property_readonly("n_ctx_seq", &Engine::n_ctx_seq, "Tokens of one sequence at most.")
        .def_property_readonly("n_batch", &Engine::n_batch, "Rows of one decode at most.")
        .def_property_readonly("n_seq_max", &Engine::n_seq_max)
        .def_property_readonly("n_free_sequences", py::cpp_function(&Engine::n_free_sequences, release_gil()))
        .def_property_readonly("n_free_cells", py::cpp_function(&Engine::n_free_cells, release_gil()),
                               "Cells that no open sequence holds or will need for its pending tokens.")
        .def_property_readonly("n_threads", py::cpp_function(&Engine::n_threads, release_gil()))
        .def("set_n_threads", &Engine::set_n_threads, py::arg("n_threads"), py::arg("n_threads_batch"), release_gil())
        .def("add_sequence", &Engine::add_sequence, py::arg("sampler"), release_gil())
        .def("fork", &Engine::fork, py::arg("seq"), release_gil())
        .def("remove", &Engine::remove, py::arg("seq"), release_gil())
        .def("tokens", &Engine::tokens, py::arg("seq"), release_gil())
        .def("n_tokens", [](const Engine & e, int seq) {
                 // The GIL is kept where nothing is waited for: whoever lets it go beside a busy thread waits for it.
                 if (const auto n = e.n_tokens_now(seq)) return *n;
                 return unlocked([&] { return e.n_tokens(seq); });
             }, py::arg("seq"))
        .def("n_room", &Engine::n_room, py::arg("seq"), release_gil(), "Tokens that it can still take, beside the others.")
        .def("n_pending", &Engine::n_pending, py::arg("seq"), release_gil())
        .def("append", &Engine::append, py::arg("seq"), py::arg("tokens"), release_gil())
        .def("set_sampler", &Engine::set_sampler, py::arg("seq"), py::arg("sampler"), release_gil())
        .def("set_grammar_begin", &Engine::set_grammar_begin, py::arg("seq"), py::arg("begin"), release_gil())
        .def("set_spans", [](Engine & e, int seq, PySpans spans) { e.set_spans(seq, to_spans(std::move(spans))); },
             py::arg("seq"), py::arg("spans"), release_gil())
        .def("rollback", &Engine::rollback, py::arg("seq"), py::arg("n"), py::arg("is_followed") = false, release_gil())
        .def("refresh", [](Engine & e, int seq, PySpans spans, int begin) { e.refresh(seq, to_spans(std::move(spans)), begin); },
             py::arg("seq"), py::arg("spans"), py::arg("begin") = 0, release_gil())
        .def("drop_cells", &Engine::drop_cells, py::arg("seq"), release_gil())
        .def("n_common", [](const Engine & e, int seq, const std::vector<llama_token> & tokens, PySpans spans) {
                 return e.n_common(seq, tokens, to_spans(std::move(spans)));
             }, py::arg("seq"), py::arg("tokens"), py::arg("spans"), release_gil(),
             "How many first tokens it has in common with these, its decoded ones under the same terms.")
        .def_property_readonly("cache_unsupported", &Engine::cache_unsupported)
        .def("cache_widths", &Engine::cache_widths, "Return (layer, width of a key, width of a value) of each layer with cells.")
        .def("edit_cache", [](Engine & e, int seq, int begin, int end, const std::vector<std::tuple<int, bool, FloatArray>> & deltas) {
                 std::vector<CacheDelta> native;
                 for (const auto & [il, of_keys, rows] : deltas) {
                     native.push_back({il, of_keys, std::vector<float>(rows.data(), rows.data() + rows.size())});
                 }
                 unlocked([&] { e.edit_cache(seq, begin, end, std::move(native)); });
             }, py::arg("seq"), py::arg("begin"), py::arg("end"), py::arg("deltas").noconvert(),
             "Add to cells: (layer, whether to its keys, float32 (n_cells, width)) each.")
        .def("undo_cache_edit", &Engine::undo_cache_edit, py::arg("seq"), release_gil())
        .def("read_cache", [](Engine & e, int seq, int begin, int end) {
                 py::list out;
                 for (const CacheRows & rows : unlocked([&] { return e.read_cache(seq, begin, end); })) {
                     out.append(py::make_tuple(rows.il, to_array(rows.keys), to_array(rows.values)));
                 }
                 return out;
             }, py::arg("seq"), py::arg("begin"), py::arg("end"),
             "Return (layer, keys, values) of each layer with cells; float32, flat (n_cells * width), copies.")
        .def("fail_cache_step", &Engine::fail_cache_step, py::arg("step"), release_gil(),
             "For tests: 1 lets edits fail as they read the cells, 2 as they write them, 3 as they put the old ones back too.")
        .def("set_gauges", &Engine::set_gauges, py::arg("seq"), py::arg("gauges"), release_gil())
        .def("start_reading", &Engine::start_reading, py::arg("seq"), py::arg("layers"), py::arg("pooling"),
             py::arg("pos_begin"), py::arg("pos_end"), release_gil())
        .def("reading", [](const Engine & e, int seq) {
                 const auto [n_read, values] = unlocked([&] { return e.reading(seq); });
                 return py::make_tuple(n_read, to_array(values));
             }, py::arg("seq"), "Return (positions read, float32 values, flat); a copy.")
        .def("stop_reading", &Engine::stop_reading, py::arg("seq"), release_gil())
        .def("forward", &Engine::forward, py::arg("seqs"), release_gil())
        .def("step", [](Engine & e, const std::vector<int> & seqs, const std::variant<int, std::vector<int>> & n_top,
                        const std::vector<std::pair<int, int>> & fills) {
                 const int * one = std::get_if<int>(&n_top);
                 std::vector<Fill> native;
                 for (const auto & [seq, n_rows] : fills) native.push_back({seq, n_rows});
                 return e.step(seqs, one != nullptr ? std::vector<int>{*one} : std::get<std::vector<int>>(n_top), native);
             }, py::arg("seqs"), py::arg("n_top") = 0, py::arg("fills") = std::vector<std::pair<int, int>>(), release_gil())
        .def("interrupt", &Engine::interrupt, py::arg("seq"))
        .def("logits", [](Engine & e, int seq) {
                 return to_array(unlocked([&] { return e.logits(seq); }));
             }, py::arg("seq"), "Return the logits after the last token; float32 (n_vocab,), a copy.")
        .def("score", [](Engine & e, const std::vector<std::tuple<std::vector<llama_token>, int, PySpans>> & jobs) {
                 std::vector<ScoreJob> native;
                 for (const auto & [tokens, n_given, spans] : jobs) native.push_back({tokens, n_given, to_spans(spans)});
                 return to_arrays(unlocked([&] { return e.score(native); }));
             }, py::arg("jobs"), "Score (tokens, n_given, spans) jobs; one float32 array of log-probabilities each.")
        .def("score_next", [](Engine & e, int seq, const std::vector<llama_token> & tokens) {
                 return to_array(unlocked([&] { return e.score_next(seq, tokens); }));
             }, py::arg("seq"), py::arg("tokens"),
             "Append tokens and return their log-probabilities given all before; float32, a copy.")
        .def("read", [](Engine & e, const std::vector<std::tuple<std::vector<llama_token>, int, int, PySpans>> & jobs,
                        const std::vector<int> & layers, Pooling pooling) {
                 std::vector<ReadJob> native;
                 for (const auto & [tokens, begin, end, spans] : jobs) native.push_back({tokens, begin, end, to_spans(spans)});
                 return to_arrays(unlocked([&] { return e.read(native, layers, pooling); }));
             }, py::arg("jobs"), py::arg("layers"), py::arg("pooling"),
             "Read (tokens, pos_begin, pos_end, spans) jobs; one flat float32 array of hidden states each.");
}

}  // namespace pyemo
