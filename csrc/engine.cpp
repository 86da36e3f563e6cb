#include "engine.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "abort_guard.h"
#include "errors.h"
#include "log.h"

namespace pyemo {
namespace {

constexpr int64_t interrupt_check_us = 50'000;
constexpr int max_sequences = 256;  // LLAMA_MAX_SEQ: llama.cpp aborts above it

ggml_type kv_type_of(const std::string & name) {
    static const std::map<std::string, ggml_type> types = {
        {"f32", GGML_TYPE_F32}, {"f16", GGML_TYPE_F16}, {"bf16", GGML_TYPE_BF16},
        {"q8_0", GGML_TYPE_Q8_0}, {"q4_0", GGML_TYPE_Q4_0},
    };
    const auto found = types.find(name);
    if (found == types.end()) {
        throw Error(ErrorKind::input, "kv_type '" + name + "' is unknown; use f32, f16, bf16, q8_0 or q4_0");
    }
    return found->second;
}

void require_range(const char * name, int value, int low, int high) {
    if (value < low || value > high) {
        throw Error(ErrorKind::input, std::string(name) + " = " + std::to_string(value) + " is outside " +
                    std::to_string(low) + " to " + std::to_string(high));
    }
}

}  // namespace

Engine::Engine(std::shared_ptr<Model> model, const EngineParams & params)
    : model_(std::move(model)), params_(params),
      hook_(model_->n_layer(), model_->n_embd(), params.hook_through_copies),
      n_layer_(model_->n_layer()), n_embd_(model_->n_embd()) {
    require_range("n_ctx", params_.n_ctx, 8, 1 << 24);
    require_range("n_batch", params_.n_batch, 1, 1 << 16);
    require_range("n_seq_max", params_.n_seq_max, 1, max_sequences);
    require_range("n_outputs_max", params_.n_outputs_max, 1, 1 << 16);
    require_range("n_threads", params_.n_threads, 1, 512);
    require_range("n_threads_batch", params_.n_threads_batch, 1, 512);
    // Every sequence may want logits in the same decode, and one decode must hold a row of each.
    params_.n_batch = std::max({std::min(params_.n_batch, params_.n_ctx), params_.n_seq_max, 2});
    params_.n_outputs_max = std::min(std::max(params_.n_outputs_max, params_.n_seq_max), params_.n_batch);

    llama_context_params p = llama_context_default_params();
    p.n_ctx = uint32_t(params_.n_ctx);
    p.n_batch = p.n_ubatch = uint32_t(params_.n_batch);  // one ubatch a decode, so row j is token j
    p.n_seq_max = uint32_t(params_.n_seq_max);
    p.n_outputs_max = uint32_t(params_.n_outputs_max);
    p.n_threads = params_.n_threads;
    p.n_threads_batch = params_.n_threads_batch;
    p.type_k = p.type_v = kv_type_of(params_.kv_type);
    if (p.type_k == GGML_TYPE_F32) {
        // Flash attention on the CPU rounds K and V to f16 even from a float32 cache, which is only chosen
        // for exactness.
        p.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    }
    p.kv_unified = params_.kv_unified;
    p.swa_full = true;    // sliding windows keep their cells, so that going back is possible
    p.cb_eval = ResidualHook::callback;
    p.cb_eval_user_data = &hook_;
    p.abort_callback = on_abort_check;
    p.abort_callback_data = this;
    p.no_perf = true;
    capture_log();
    try {
        const AbortGuard guard(ErrorKind::model_load);
        ctx_.reset(llama_init_from_model(model_->get(), p));
    } catch (const std::exception & e) {
        throw Error(ErrorKind::model_load, std::string("llama.cpp could not make a context: ") + e.what());
    }
    if (!ctx_) {
        throw Error(ErrorKind::model_load, "llama.cpp could not make a context of n_ctx " +
                    std::to_string(params_.n_ctx) + ": " + last_error_line());
    }
    memory_ = llama_get_memory(ctx_.get());
    n_ctx_ = params_.n_ctx;  // llama.cpp rounds its own up
    n_ctx_seq_ = params_.kv_unified ? n_ctx_ : n_ctx_ / params_.n_seq_max;
    if (model_->has_learned_positions()) {
        n_ctx_seq_ = std::min(n_ctx_seq_, model_->n_ctx_train());
    }
    sequences_.resize(params_.n_seq_max);
    batch_ = llama_batch_init(params_.n_batch, 0, 1);
    batch_owner_.reset(&batch_);
    prove_hook();
}

// Two tokens through the whole graph with every block asked for: it must show each block's output once,
// in the expected shape. This also reads the weights from disk, so the first reply does not wait for it.
void Engine::prove_hook() {
    llama_token token = model_->bos();
    if (token < 0) token = 0;
    batch_.n_tokens = 2;
    std::vector<RowPlan> plans(2);
    for (int i = 0; i < 2; ++i) {
        batch_.token[i] = token;
        batch_.pos[i] = i;
        batch_.n_seq_id[i] = 1;
        batch_.seq_id[i][0] = 0;
        batch_.logits[i] = i == 1;
        plans[i].token = token;
        plans[i].pos = i;
        plans[i].output = i == 1;
    }
    hook_.begin_probe(std::move(plans));
    int rc = 0;
    try {
        // What no check of the file foresaw shows here, on one thread, where an abort can still be refused.
        const AbortGuard guard(ErrorKind::model_load);
        llama_set_n_threads(ctx_.get(), 1, 1);
        rc = llama_decode(ctx_.get(), batch_);
    } catch (const std::exception & e) {
        throw Error(ErrorKind::model_load, std::string("the model cannot be computed: ") + e.what());
    }
    llama_set_n_threads(ctx_.get(), params_.n_threads, params_.n_threads_batch);
    const bool hooked = hook_.end();
    llama_memory_clear(memory_, false);
    if (!hooked) {
        steering_unsupported_ = hook_.why();
    } else if (rc != 0) {
        throw Error(ErrorKind::model_load, "the model cannot be computed: " + last_error_line());
    }
}

bool Engine::on_abort_check(void * self) {
    auto & engine = *static_cast<Engine *>(self);
    // Asked before every node, so the clock is read before every 32nd only.
    if ((++engine.n_abort_checks_ & 31) != 0 || !engine.interrupted_ ||
        llama_time_us() < engine.next_interrupt_check_us_) {
        return false;
    }
    engine.next_interrupt_check_us_ = llama_time_us() + interrupt_check_us;
    return engine.interrupted_();
}

Engine::Sequence & Engine::at(int seq) {
    return const_cast<Sequence &>(static_cast<const Engine *>(this)->at(seq));
}

const Engine::Sequence & Engine::at(int seq) const {
    if (seq < 0 || seq >= int(sequences_.size()) || !sequences_[seq].used) {
        throw Error(ErrorKind::closed, "sequence " + std::to_string(seq) + " is closed; add a new one");
    }
    return sequences_[seq];
}

int Engine::n_free_sequences() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return int(std::count_if(sequences_.begin(), sequences_.end(), [](const Sequence & s) { return !s.used; }));
}

int Engine::n_threads() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return llama_n_threads(ctx_.get());
}

void Engine::set_n_threads(int n_threads, int n_threads_batch) {
    require_range("n_threads", n_threads, 1, 512);
    require_range("n_threads_batch", n_threads_batch, 1, 512);
    const std::lock_guard<std::mutex> lock(mutex_);
    llama_set_n_threads(ctx_.get(), n_threads, n_threads_batch);
}

int Engine::free_sequence() {
    for (size_t i = 0; i < sequences_.size(); ++i) {
        if (!sequences_[i].used) return int(i);
    }
    throw Error(ErrorKind::sequence_limit, "all " + std::to_string(sequences_.size()) +
                " sequences are in use; close one, or open the engine with a larger n_seq_max");
}

void Engine::reset_sequence(int seq) {
    llama_memory_seq_rm(memory_, seq, -1, -1);
    sequences_[seq] = Sequence();
}

int Engine::add_sequence(const SamplerParams & sampler) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const int seq = free_sequence();
    Sequence & s = sequences_[seq];
    s.used = true;
    s.sampler_params = sampler;
    s.sampler = std::make_unique<Sampler>(sampler, model_->n_vocab());
    return seq;
}

int Engine::fork(int seq) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Sequence & from = at(seq);
    const int twin = free_sequence();
    llama_memory_seq_cp(memory_, seq, twin, -1, -1);  // unified KV: tags the cells
    Sequence & s = sequences_[twin];
    s.used = true;
    s.tokens = from.tokens;
    s.n_decoded = from.n_decoded;
    for (const ActiveSpan & span : from.spans) {
        s.spans.push_back({span.begin, span.terms, nullptr});
    }
    s.sampler_params = from.sampler_params;
    s.sampler = std::make_unique<Sampler>(from.sampler_params, model_->n_vocab());
    s.has_logits = from.has_logits;
    if (from.has_logits) {
        const float * row = logits_of(from);
        s.saved_logits.assign(row, row + model_->n_vocab());
    }
    s.gauges = from.gauges;
    s.readings = from.readings;
    s.dose = from.dose;
    return twin;
}

void Engine::remove(int seq) {
    const std::lock_guard<std::mutex> lock(mutex_);
    at(seq);
    reset_sequence(seq);
}

std::vector<llama_token> Engine::tokens(int seq) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return at(seq).tokens;
}

int Engine::n_tokens(int seq) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return int(at(seq).tokens.size());
}

int Engine::n_pending(int seq) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Sequence & s = at(seq);
    return int(s.tokens.size()) - s.n_decoded;
}

void Engine::append(int seq, const std::vector<llama_token> & tokens) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Sequence & s = at(seq);
    for (llama_token token : tokens) {
        model_->require_token(token);
    }
    if (s.tokens.size() + tokens.size() > size_t(n_ctx_seq_)) {
        throw Error(ErrorKind::context_full, std::to_string(s.tokens.size() + tokens.size()) +
                    " tokens, but a sequence holds at most " + std::to_string(n_ctx_seq_) +
                    "; shorten the text, or open the engine with a larger n_ctx");
    }
    if (!tokens.empty()) {
        s.tokens.insert(s.tokens.end(), tokens.begin(), tokens.end());
        s.has_logits = false;
    }
}

void Engine::set_sampler(int seq, const SamplerParams & sampler) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Sequence & s = at(seq);
    s.sampler_params = sampler;
    s.sampler = std::make_unique<Sampler>(sampler, model_->n_vocab());
}

void Engine::require_steering() const {
    if (!steering_unsupported_.empty()) {
        throw Error(ErrorKind::steering_unsupported, "this model cannot be steered or read: " + steering_unsupported_);
    }
}

void Engine::check_terms(const std::vector<Term> & terms) const {
    if (!terms.empty()) {
        require_steering();
    }
    for (const Term & term : terms) {
        if (term.vector->n_embd() != n_embd_ || term.vector->n_layer() != n_layer_) {
            throw Error(ErrorKind::vector_shape, "the control vector is for " + std::to_string(term.vector->n_layer()) +
                        " layers of width " + std::to_string(term.vector->n_embd()) + ", the model has " +
                        std::to_string(n_layer_) + " of " + std::to_string(n_embd_));
        }
        if (!std::isfinite(term.strength)) {
            throw Error(ErrorKind::input, "strength must be a finite number");
        }
        if (term.il_begin < 0 || term.il_end > n_layer_ || term.il_begin > term.il_end) {
            throw Error(ErrorKind::input, "layers " + std::to_string(term.il_begin) + ":" + std::to_string(term.il_end) +
                        " are outside 0:" + std::to_string(n_layer_));
        }
    }
}

void Engine::add_spans(Sequence & s, const std::vector<Span> & spans, int first) {
    int last = first - 1;
    for (const Span & span : spans) {
        check_terms(span.terms);
        if (span.begin <= last || (&span == &spans.front() && span.begin != first)) {
            throw Error(ErrorKind::input, "spans must ascend and begin where they replace older ones");
        }
        last = span.begin;
    }
    while (!s.spans.empty() && s.spans.back().begin >= first) {
        s.spans.pop_back();
    }
    for (const Span & span : spans) {
        s.spans.push_back({span.begin, span.terms, nullptr});
    }
}

void Engine::set_spans(int seq, const std::vector<Span> & spans) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Sequence & s = at(seq);
    if (spans.empty() || spans.front().begin < s.n_decoded) {
        throw Error(ErrorKind::input, "spans must begin at position " + std::to_string(s.n_decoded) + " or later");
    }
    add_spans(s, spans, spans.front().begin);
}

// Leaves exactly n_decoded tokens in the KV cache, or none where llama.cpp cannot go back that far.
void Engine::rewind(int seq, int n_decoded) {
    Sequence & s = sequences_[seq];
    if (n_decoded >= s.n_decoded) {
        return;
    }
    if (s.reader) {
        n_decoded = s.reader->rewind(n_decoded);
    }
    // A sliding-window cache always says yes, even when the window behind the new end has been
    // overwritten, and recurrent models refuse a partial removal: both then compute anew.
    bool kept = n_decoded > 0 && llama_memory_seq_rm(memory_, seq, n_decoded, -1);
    if (kept && model_->n_swa() > 0) {
        kept = llama_memory_seq_pos_min(memory_, seq) <= std::max(0, n_decoded - model_->n_swa());
    }
    if (!kept) {
        llama_memory_seq_rm(memory_, seq, -1, -1);
        n_decoded = 0;
    }
    s.n_decoded = n_decoded;
    s.has_logits = false;
}

void Engine::rollback(int seq, int n) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Sequence & s = at(seq);
    require_range("tokens to keep", n, 0, int(s.tokens.size()));
    if (n == int(s.tokens.size())) {
        return;
    }
    // What stays keeps its own terms; what comes next has the newest.
    std::vector<Term> newest = s.spans.empty() ? std::vector<Term>() : s.spans.back().terms;
    s.tokens.resize(size_t(n));
    rewind(seq, std::max(0, n - 1));  // the last token is decoded again, for its logits
    s.has_logits = false;
    add_spans(s, {{n, std::move(newest)}}, n);
}

void Engine::refresh(int seq, const std::vector<Span> & spans) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Sequence & s = at(seq);
    for (const Span & span : spans) {
        check_terms(span.terms);
    }
    rewind(seq, 0);
    add_spans(s, spans, 0);
}

void Engine::set_gauges(int seq, std::vector<Gauge> gauges) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Sequence & s = at(seq);
    if (!gauges.empty()) {
        require_steering();
    }
    for (const Gauge & gauge : gauges) {
        require_range("gauge layer", gauge.il, 0, n_layer_ - 1);
        if (int(gauge.unit.size()) != n_embd_) {
            throw Error(ErrorKind::vector_shape, "gauge of width " + std::to_string(gauge.unit.size()) +
                        ", the model has " + std::to_string(n_embd_));
        }
        if (!(gauge.residual_norm > 0.0f) || !std::isfinite(gauge.residual_norm) || !std::isfinite(gauge.neutral)) {
            throw Error(ErrorKind::input, "a gauge needs a residual norm above 0 and a finite neutral projection");
        }
    }
    s.gauges = std::move(gauges);
    s.readings.assign(s.gauges.size(), GaugeReading());
}

void Engine::check_reading(const std::vector<int> & layers) const {
    require_steering();
    if (layers.empty()) {
        throw Error(ErrorKind::input, "no layers to read; name at least one of 0 to " + std::to_string(n_layer_ - 1));
    }
    for (size_t i = 0; i < layers.size(); ++i) {
        require_range("layer", layers[i], 0, n_layer_ - 1);
        if (std::find(layers.begin(), layers.begin() + i, layers[i]) != layers.begin() + i) {
            throw Error(ErrorKind::input, "layer " + std::to_string(layers[i]) + " is named twice");
        }
    }
}

void Engine::start_reading(int seq, const std::vector<int> & layers, Pooling pooling, int pos_begin, int pos_end) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Sequence & s = at(seq);
    check_reading(layers);
    require_range("first position", pos_begin, s.n_decoded, n_ctx_);
    s.reader = std::make_unique<Reader>(layers, pooling, pos_begin, pos_end, n_embd_);
}

std::pair<int, std::vector<float>> Engine::reading(int seq) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Sequence & s = at(seq);
    if (!s.reader) {
        throw Error(ErrorKind::input, "this sequence is not being read; start reading first");
    }
    return {s.reader->count(), s.reader->values()};
}

void Engine::stop_reading(int seq) {
    const std::lock_guard<std::mutex> lock(mutex_);
    at(seq).reader.reset();
}

const Mix * Engine::mix_at(Sequence & s, int pos) {
    const auto after = std::upper_bound(s.spans.begin(), s.spans.end(), pos,
                                        [](int p, const ActiveSpan & span) { return p < span.begin; });
    if (after == s.spans.begin()) {
        return nullptr;
    }
    ActiveSpan & span = *std::prev(after);
    if (span.terms.empty()) {
        return nullptr;
    }
    if (!span.mix) {
        span.mix = std::make_unique<Mix>(span.terms, n_layer_, n_embd_);
    }
    return span.mix.get();
}

bool Engine::wants_output(const Sequence & s, int pos) const {
    const int n = int(s.tokens.size());
    if (s.n_given >= 0) {
        return pos + 1 < n && pos + 1 >= std::max(1, s.n_given);
    }
    if (s.reader && s.reader->wants(pos) &&
        std::find(s.reader->layers().begin(), s.reader->layers().end(), n_layer_ - 1) != s.reader->layers().end()) {
        return true;  // the last block only keeps rows that have an output
    }
    return pos == n - 1 && s.sampler != nullptr;
}

std::vector<Engine::Row> Engine::next_chunk(const std::vector<int> & seqs) const {
    std::vector<Row> rows;
    int n_outputs = 0;
    for (int seq : seqs) {
        const Sequence & s = sequences_[seq];
        const int n = int(s.tokens.size()) - (s.n_given >= 0 ? 1 : 0);  // a scored text's last token predicts nothing
        // Recurrent layers always take prompts in llama.cpp's own order, which differs from ours when
        // two sequences share a batch.
        if (!rows.empty() && model_->is_recurrent_or_hybrid() && (n - s.n_decoded > 1 || rows.size() > 1)) {
            break;
        }
        // Where each sequence has its own cells, llama.cpp takes several at once only if their ids follow each
        // other and each has one token.
        if (!rows.empty() && !params_.kv_unified && s.n_decoded < n) {
            const bool one_each = n - s.n_decoded == 1 && (rows.size() == 1 || rows[rows.size() - 2].seq != rows.back().seq);
            if (!one_each || seq != rows.back().seq + 1) {
                break;
            }
        }
        for (int pos = s.n_decoded; pos < n; ++pos) {
            const bool output = wants_output(s, pos);
            if (int(rows.size()) == params_.n_batch || (output && n_outputs == params_.n_outputs_max)) {
                return rows;
            }
            n_outputs += output;
            rows.push_back({seq, pos, output});
        }
    }
    return rows;
}

// Logits live in the context until the next decode: keep those that are still wanted.
void Engine::save_logits() {
    for (Sequence & s : sequences_) {
        if (s.used && s.has_logits && s.logits_row >= 0) {
            const float * row = logits_of(s);
            s.saved_logits.assign(row, row + model_->n_vocab());
            s.logits_row = -1;
        }
    }
}

const float * Engine::logits_of(const Sequence & s) const {
    if (s.logits_row < 0) {
        return s.saved_logits.data();
    }
    const float * row = llama_get_logits_ith(ctx_.get(), s.logits_row);
    if (row == nullptr) {
        throw Error(ErrorKind::decode_aborted, "llama.cpp gave no logits: " + last_error_line());
    }
    return row;
}

void Engine::decode(const std::vector<Row> & rows, bool skip_head) {
    save_logits();
    std::vector<RowPlan> plans(rows.size());
    batch_.n_tokens = int(rows.size());
    for (size_t r = 0; r < rows.size(); ++r) {
        Sequence & s = sequences_[rows[r].seq];
        const int pos = rows[r].pos;
        batch_.token[r] = s.tokens[pos];
        batch_.pos[r] = pos;
        batch_.n_seq_id[r] = 1;
        batch_.seq_id[r][0] = rows[r].seq;
        batch_.logits[r] = rows[r].output;
        plans[r].token = s.tokens[pos];
        plans[r].pos = pos;
        plans[r].output = rows[r].output;
        plans[r].mix = mix_at(s, pos);
        plans[r].reader = s.reader.get();
        if (!s.gauges.empty() && s.n_given < 0) {
            plans[r].gauges = &s.gauges;
            plans[r].readings = &s.readings;
            plans[r].dose = &s.dose;
        }
    }
    next_interrupt_check_us_ = llama_time_us() + interrupt_check_us;
    hook_.begin(std::move(plans), skip_head);
    int rc = 0;
    std::string thrown;
    try {
        rc = llama_decode(ctx_.get(), batch_);
    } catch (const std::exception & e) {
        thrown = e.what();
    }
    const bool hooked = hook_.end();
    if (rc != 0 || !thrown.empty() || (!hooked && rc == 0)) {
        // Nothing of this chunk may stay: it is pending again. llama.cpp forgets it too on most paths.
        for (const Row & row : rows) {
            Sequence & s = sequences_[row.seq];
            const int n = s.n_decoded;
            s.n_decoded = n + 1;  // so that rewind has something to undo
            rewind(row.seq, n);
        }
        if (rc == 1) {
            throw Error(ErrorKind::context_full, "the context of n_ctx = " + std::to_string(n_ctx_) +
                        " cells has no room for " + std::to_string(rows.size()) +
                        " more; close a sequence, or open the engine with a larger n_ctx");
        }
        if (!hooked && hook_.overflowed()) {
            throw Error(ErrorKind::decode_aborted, "the steering is far too strong: " + hook_.why() +
                        "; lower the strength");
        }
        if (!hooked) {
            throw Error(ErrorKind::steering_unsupported, "the decode could not be steered or read: " + hook_.why());
        }
        throw Error(ErrorKind::decode_aborted, rc == 2 ? "the decode was interrupted; its tokens are pending again"
                    : "llama.cpp could not decode: " + (thrown.empty() ? last_error_line() : thrown));
    }
    for (size_t r = 0; r < rows.size(); ++r) {
        Sequence & s = sequences_[rows[r].seq];
        s.n_decoded = rows[r].pos + 1;
        if (s.n_given >= 0) {
            if (rows[r].output) {
                const float * row = llama_get_logits_ith(ctx_.get(), int(r));
                s.logprobs.push_back(logit_stats(row, model_->n_vocab(), s.tokens[rows[r].pos + 1]).logprob);
            }
        } else if (s.sampler && rows[r].output && rows[r].pos == int(s.tokens.size()) - 1) {
            s.has_logits = true;
            s.logits_row = int(r);
        }
        // Only the newest mix stays compiled; one with a span for each token would fill the memory.
        for (size_t i = 0; i + 1 < s.spans.size(); ++i) {
            s.spans[i].mix.reset();
        }
    }
}

void Engine::forward_unlocked(std::vector<int> seqs, bool skip_head) {
    for (size_t i = 0; i < seqs.size(); ++i) {
        if (std::find(seqs.begin(), seqs.begin() + i, seqs[i]) != seqs.begin() + i) {
            throw Error(ErrorKind::input, "sequence " + std::to_string(seqs[i]) + " is named twice");
        }
        if (at(seqs[i]).tokens.empty()) {
            throw Error(ErrorKind::input, "an empty sequence predicts nothing; append at least one token");
        }
    }
    for (int seq : seqs) {
        Sequence & s = sequences_[seq];
        if (s.sampler && !s.has_logits) {
            rewind(seq, int(s.tokens.size()) - 1);  // at least the last token is decoded, for its logits
        }
    }
    if (!params_.kv_unified) {
        std::sort(seqs.begin(), seqs.end());
    }
    for (auto rows = next_chunk(seqs); !rows.empty(); rows = next_chunk(seqs)) {
        decode(rows, skip_head);
    }
}

void Engine::forward(const std::vector<int> & seqs) {
    const std::lock_guard<std::mutex> lock(mutex_);
    forward_unlocked(seqs, false);
}

std::vector<StepResult> Engine::step(const std::vector<int> & seqs, int n_top) {
    require_range("n_top", n_top, 0, model_->n_vocab());
    const std::lock_guard<std::mutex> lock(mutex_);
    // Look before the work: a step that cannot be finished must not be begun.
    for (int seq : seqs) {
        if (int(at(seq).tokens.size()) >= n_ctx_seq_) {
            throw Error(ErrorKind::context_full, "the sequence fills the context of " + std::to_string(n_ctx_seq_) +
                        " tokens; roll it back, or open the engine with a larger n_ctx");
        }
    }
    forward_unlocked(seqs, false);
    std::vector<StepResult> results(seqs.size());
    for (size_t i = 0; i < seqs.size(); ++i) {
        Sequence & s = at(seqs[i]);
        StepResult & out = results[i];
        const float * row = logits_of(s);
        out.token = s.sampler->sample(row, s.tokens);
        const LogitStats stats = logit_stats(row, model_->n_vocab(), out.token);
        out.logprob = stats.logprob;
        out.entropy = stats.entropy;
        if (n_top > 0) {
            out.top = top_logprobs(row, model_->n_vocab(), n_top);
        }
        out.is_end = model_->is_end_of_generation(out.token);
        out.piece = model_->piece(out.token, false);
        out.gauges = s.readings;
        out.dose = s.dose;
    }
    // Only after every sequence has its token: a failure above leaves all of them as they were.
    for (size_t i = 0; i < seqs.size(); ++i) {
        Sequence & s = at(seqs[i]);
        s.tokens.push_back(results[i].token);
        s.has_logits = false;
    }
    return results;
}

std::vector<float> Engine::logits(int seq) {
    const std::lock_guard<std::mutex> lock(mutex_);
    forward_unlocked({seq}, false);
    const float * row = logits_of(at(seq));
    return std::vector<float>(row, row + model_->n_vocab());
}

template <typename Job>
int Engine::check_jobs(const std::vector<Job> & jobs) const {
    int n_used = 0;  // an upper bound: forks share cells
    for (const Sequence & s : sequences_) {
        n_used += int(s.tokens.size());
    }
    for (size_t i = 0; i < jobs.size(); ++i) {
        const size_t n = jobs[i].tokens.size();
        const int room = std::max(0, std::min(n_ctx_seq_, n_ctx_ - n_used));
        if (n == 0 || n > size_t(room)) {
            throw Error(n == 0 ? ErrorKind::input : ErrorKind::context_full, "text " + std::to_string(i) + " has " +
                        std::to_string(n) + " tokens; there is room for 1 to " + std::to_string(room) +
                        " of n_ctx = " + std::to_string(n_ctx_) + "; close sequences, or open the engine with a larger n_ctx");
        }
        for (llama_token token : jobs[i].tokens) model_->require_token(token);
        for (const Span & span : jobs[i].spans) check_terms(span.terms);
    }
    return n_used;
}

template <typename Job, typename Start, typename Finish>
void Engine::run_jobs(const std::vector<const Job *> & jobs, int n_used, bool skip_head, Start start, Finish finish) {
    for (size_t done = 0; done < jobs.size();) {
        std::vector<int> group;
        int n_cells = n_used;  // a row looks at the cells of its whole group, so it holds no more than a decode takes
        try {
            while (done + group.size() < jobs.size()) {
                const Job & job = *jobs[done + group.size()];
                const bool room = std::any_of(sequences_.begin(), sequences_.end(), [](const Sequence & s) { return !s.used; });
                const int n = n_cells + int(job.tokens.size());
                if (!group.empty() && (!room || n > n_ctx_ || n - n_used > params_.n_batch)) {
                    break;
                }
                const int seq = free_sequence();
                Sequence & s = sequences_[seq];
                s.used = true;
                s.tokens = job.tokens;
                group.push_back(seq);
                n_cells += int(job.tokens.size());
                add_spans(s, job.spans, 0);
                start(s, job);
            }
            share_beginnings(group);
            forward_unlocked(group, skip_head);
            for (size_t i = 0; i < group.size(); ++i) {
                finish(sequences_[group[i]]);
            }
        } catch (...) {
            for (int seq : group) reset_sequence(seq);
            throw;
        }
        for (int seq : group) reset_sequence(seq);
        done += group.size();
    }
}

// Texts that are scored after the same beginning, none of them steered: what comes before the row that predicts the
// first scored token is computed once, and its cells are tagged for the others.
void Engine::share_beginnings(const std::vector<int> & seqs) {
    if (!params_.kv_unified || model_->is_recurrent_or_hybrid()) {
        return;
    }
    const auto is_steered = [](const Sequence & s) {
        return std::any_of(s.spans.begin(), s.spans.end(), [](const ActiveSpan & span) { return !span.terms.empty(); });
    };
    int first = -1;
    for (int seq : seqs) {
        Sequence & s = sequences_[seq];
        if (s.n_given < 2 || is_steered(s)) {
            first = -1;
            continue;
        }
        const int n = s.n_given - 1;
        const Sequence * from = first < 0 ? nullptr : &sequences_[first];
        if (from == nullptr || from->n_given != s.n_given ||
            !std::equal(s.tokens.begin(), s.tokens.begin() + s.n_given, from->tokens.begin())) {
            first = seq;
            continue;
        }
        while (from->n_decoded < n) {
            std::vector<Row> rows;
            for (int pos = from->n_decoded; pos < std::min(n, from->n_decoded + params_.n_batch); ++pos) {
                rows.push_back({first, pos, false});
            }
            decode(rows, false);
        }
        llama_memory_seq_cp(memory_, first, seq, -1, -1);
        s.n_decoded = n;
    }
}

std::vector<std::vector<float>> Engine::score(const std::vector<ScoreJob> & jobs) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const int n_used = check_jobs(jobs);
    std::vector<size_t> order(jobs.size());  // those that begin alike side by side
    std::iota(order.begin(), order.end(), 0);
    const auto end_of_given = [](const ScoreJob & job) {
        return job.tokens.begin() + std::clamp(job.n_given, 0, int(job.tokens.size()));
    };
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
        return std::lexicographical_compare(jobs[a].tokens.begin(), end_of_given(jobs[a]),
                                            jobs[b].tokens.begin(), end_of_given(jobs[b]));
    });
    std::vector<const ScoreJob *> sorted;
    for (size_t i : order) sorted.push_back(&jobs[i]);
    std::vector<std::vector<float>> out(jobs.size());
    size_t n_done = 0;
    run_jobs(sorted, n_used, false,
             [](Sequence & s, const ScoreJob & job) { s.n_given = std::max(0, job.n_given); },
             [&](Sequence & s) { out[order[n_done++]] = std::move(s.logprobs); });
    return out;
}

std::vector<float> Engine::score_next(int seq, const std::vector<llama_token> & tokens) {
    append(seq, tokens);
    const std::lock_guard<std::mutex> lock(mutex_);
    Sequence & s = at(seq);
    const size_t n_before = s.tokens.size() - tokens.size();
    if (n_before > 0) {
        rewind(seq, int(n_before) - 1);  // the last token before is decoded with them: it predicts the first
    }
    s.n_given = int(n_before);  // from here on the sequence is scored, as a job of score() is
    s.logprobs.clear();
    try {
        for (auto rows = next_chunk({seq}); !rows.empty(); rows = next_chunk({seq})) {
            decode(rows, false);
        }
    } catch (...) {
        s.n_given = -1;
        s.tokens.resize(n_before);
        rewind(seq, std::min(s.n_decoded, int(n_before)));
        throw;
    }
    s.n_given = -1;
    s.has_logits = false;
    return std::move(s.logprobs);
}

std::vector<std::vector<float>> Engine::read(const std::vector<ReadJob> & jobs, const std::vector<int> & layers, Pooling pooling) {
    check_reading(layers);
    const std::lock_guard<std::mutex> lock(mutex_);
    const int n_used = check_jobs(jobs);
    std::vector<const ReadJob *> all;
    for (const ReadJob & job : jobs) all.push_back(&job);
    std::vector<std::vector<float>> out;
    // Without the last block no output is needed, so the graph can stop after the last layer read.
    const bool skip_head = std::find(layers.begin(), layers.end(), n_layer_ - 1) == layers.end();
    run_jobs(all, n_used, skip_head,
             [&](Sequence & s, const ReadJob & job) {
                 if (job.pos_begin < 0 || job.pos_begin >= job.pos_end || job.pos_end > int(job.tokens.size())) {
                     throw Error(ErrorKind::input, "positions " + std::to_string(job.pos_begin) + ":" +
                                 std::to_string(job.pos_end) + " are outside 0:" + std::to_string(job.tokens.size()));
                 }
                 s.reader = std::make_unique<Reader>(layers, pooling, job.pos_begin, job.pos_end, n_embd_);
             },
             [&](Sequence & s) { out.push_back(s.reader->values()); });
    return out;
}

}  // namespace pyemo
