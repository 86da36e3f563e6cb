// Sequences: their tokens, moods, gauges and readings, and the chunked decode that all of it goes through.
// How the engine is opened: context.cpp. Scoring and reading many texts: jobs.cpp.
#include "engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <new>

#include "errors.h"
#include "log.h"

namespace pyemo {

// The sanitizer of gcc 12 does not know the call by which a mutex is waited for on the steady clock.
#ifdef __SANITIZE_THREAD__
using WaitClock = std::chrono::system_clock;
#else
using WaitClock = std::chrono::steady_clock;
#endif

// A thread that waits can be interrupted: what it waits for may take minutes.
Engine::Turn::Turn(const Engine & engine) : engine_(const_cast<Engine *>(&engine)) {
    if (engine_->owner_.load() == std::this_thread::get_id()) {
        throw Error(ErrorKind::input, "the engine is at work in this very thread, and this call comes from a signal handler "
                    "or a finalizer that runs meanwhile; make it after the work has ended, or raise to stop the work");
    }
    while (!engine_->mutex_.try_lock_until(WaitClock::now() + std::chrono::microseconds(interrupt_check_us))) {
        if (engine_->interrupted_ && engine_->interrupted_()) {
            throw Error(ErrorKind::decode_aborted, "interrupted while waiting for another thread's work on this engine");
        }
    }
    engine_->owner_.store(std::this_thread::get_id());
    engine_->free_removed();
}

Engine::Turn::Turn(const Engine & engine, std::try_to_lock_t) : engine_(nullptr) {
    auto & mine = const_cast<Engine &>(engine);
    if (mine.owner_.load() != std::this_thread::get_id() && mine.mutex_.try_lock()) {
        engine_ = &mine;
        mine.owner_.store(std::this_thread::get_id());
        mine.free_removed();
    }
}

Engine::Turn::~Turn() {
    if (engine_ != nullptr) {
        engine_->owner_.store(std::thread::id());
        engine_->mutex_.unlock();
    }
}

int Engine::handle_of(int slot) const {
    return sequences_[slot].generation * int(sequences_.size()) + slot;
}

int Engine::find_slot(int seq) const {
    const int slot = seq % int(sequences_.size());
    return seq >= 0 && sequences_[slot].used && handle_of(slot) == seq ? slot : -1;
}

int Engine::slot_of(int seq) const {
    const int slot = find_slot(seq);
    if (slot < 0) {
        throw Error(ErrorKind::closed, "sequence " + std::to_string(seq) + " is closed; add a new one");
    }
    return slot;
}

std::vector<int> Engine::slots_of(const std::vector<int> & seqs) const {
    std::vector<int> slots;
    for (int seq : seqs) slots.push_back(slot_of(seq));
    return slots;
}

Engine::Sequence & Engine::at(int seq) { return sequences_[slot_of(seq)]; }

const Engine::Sequence & Engine::at(int seq) const { return sequences_[slot_of(seq)]; }

int Engine::n_free_sequences() const {
    const Turn turn(*this);
    return int(std::count_if(sequences_.begin(), sequences_.end(), [](const Sequence & s) { return !s.used; }));
}

// Of all open sequences; what forks share counts once.
int Engine::n_held_cells() const {
    std::vector<int64_t> cells;
    for (const Sequence & s : sequences_) {
        cells.insert(cells.end(), s.cells.begin(), s.cells.end());
    }
    std::sort(cells.begin(), cells.end());
    return int(std::unique(cells.begin(), cells.end()) - cells.begin());
}

int Engine::n_pending_tokens() const {
    int n = 0;
    for (const Sequence & s : sequences_) n += int(s.tokens.size()) - s.n_decoded;
    return n;
}

int Engine::n_free_cells() const {
    const Turn turn(*this);
    if (!params_.kv_unified) {
        const auto n_free = std::count_if(sequences_.begin(), sequences_.end(), [](const Sequence & s) { return !s.used; });
        return int(n_free) * n_ctx_seq_;
    }
    return std::max(0, n_ctx_ - n_held_cells() - n_pending_tokens());
}

int Engine::n_room(int seq) const {
    const Turn turn(*this);
    const int room = n_ctx_seq_ - int(at(seq).tokens.size());
    if (!params_.kv_unified) {
        return room;
    }
    return std::clamp(n_ctx_ - n_held_cells() - n_pending_tokens(), 0, room);
}

// Throws where the tokens before these goals have no cells, before any is decoded.
void Engine::require_cells(const std::vector<Goal> & goals) const {
    if (!params_.kv_unified || llama_model_is_recurrent(model_->get())) {
        return;  // a sequence has cells of its own, or a state instead
    }
    int64_t n_rows = 0, n_decoded = 0;
    for (const Goal & goal : goals) n_rows += std::max(0, goal.end - sequences_[goal.slot].n_decoded);
    for (const Sequence & s : sequences_) n_decoded += s.n_decoded;
    if (n_decoded + n_rows <= n_ctx_) {
        return;
    }
    const int n_used = n_held_cells();
    if (n_used + n_rows > n_ctx_) {
        throw Error(ErrorKind::context_full, "the context of n_ctx = " + std::to_string(n_ctx_) + " cells has " +
                    std::to_string(n_ctx_ - n_used) + " left, and " + std::to_string(n_rows) +
                    " more are needed; close a sequence, or open the engine with a larger n_ctx");
    }
}

int Engine::n_threads() const {
    const Turn turn(*this);
    return llama_n_threads(ctx_.get());
}

void Engine::set_n_threads(int n_threads, int n_threads_batch) {
    require_range("n_threads", n_threads, 1, 512);
    require_range("n_threads_batch", n_threads_batch, 1, 512);
    const Turn turn(*this);
    llama_set_n_threads(ctx_.get(), n_threads, n_threads_batch);
}

int Engine::free_sequence() {
    for (size_t i = 0; i < sequences_.size(); ++i) {
        if (!sequences_[i].used) return int(i);
    }
    throw Error(ErrorKind::sequence_limit, "all " + std::to_string(sequences_.size()) +
                " sequences are in use; close one, or open the engine with a larger n_seq_max");
}

void Engine::reset_sequence(int slot) {
    llama_memory_seq_rm(memory_, slot, -1, -1);
    const int n_generations = std::numeric_limits<int>::max() / int(sequences_.size());
    const int next = (sequences_[slot].generation + 1) % n_generations;
    sequences_[slot] = Sequence();
    sequences_[slot].generation = next;
}

int Engine::add_sequence(const SamplerParams & sampler) {
    const Turn turn(*this);
    const int slot = free_sequence();
    Sequence & s = sequences_[slot];
    s.used = true;
    give_sampler(s, sampler);
    return handle_of(slot);
}

int Engine::fork(int seq) {
    const Turn turn(*this);
    const Sequence & from = at(seq);
    const int twin = free_sequence();
    llama_memory_seq_cp(memory_, slot_of(seq), twin, -1, -1);  // unified KV: tags the cells
    Sequence & s = sequences_[twin];
    s.used = true;
    s.tokens = from.tokens;
    s.n_decoded = from.n_decoded;
    s.cells = from.cells;
    for (const ActiveSpan & span : from.spans) {
        s.spans.push_back({span.begin, span.terms, nullptr});
    }
    s.edits = from.edits;
    s.n_returns = from.n_returns;
    give_sampler(s, from.sampler_params);
    s.grammar_begin = from.grammar_begin;
    s.has_logits = from.has_logits;
    if (from.has_logits) {
        const float * row = logits_of(from);
        s.saved_logits.assign(row, row + model_->n_vocab());
    }
    s.gauges = from.gauges;
    s.readings = from.readings;
    s.dose = from.dose;
    return handle_of(twin);
}

// Called by finalizers, which Python may run anywhere, inside a decode of this engine too: so it waits for nobody.
void Engine::remove(int seq) {
    {
        const std::lock_guard<std::mutex> lock(removed_mutex_);
        removed_.push_back(seq);
    }
    if (owner_.load() != std::this_thread::get_id() && mutex_.try_lock()) {
        free_removed();
        mutex_.unlock();
    }
}

void Engine::free_removed() {
    std::vector<int> removed;
    {
        const std::lock_guard<std::mutex> lock(removed_mutex_);
        removed.swap(removed_);
    }
    for (int seq : removed) {
        const int slot = find_slot(seq);
        if (slot >= 0) {
            reset_sequence(slot);
        }
    }
}

std::vector<llama_token> Engine::tokens(int seq) const {
    const Turn turn(*this);
    return at(seq).tokens;
}

int Engine::n_tokens(int seq) const {
    const Turn turn(*this);
    return int(at(seq).tokens.size());
}

std::optional<int> Engine::n_tokens_now(int seq) const {
    const Turn turn(*this, std::try_to_lock);
    return turn ? std::optional<int>(int(at(seq).tokens.size())) : std::nullopt;
}

int Engine::n_pending(int seq) const {
    const Turn turn(*this);
    const Sequence & s = at(seq);
    return int(s.tokens.size()) - s.n_decoded;
}

void Engine::append(int seq, const std::vector<llama_token> & tokens) {
    const Turn turn(*this);
    append_to(at(seq), tokens);
}

void Engine::append_to(Sequence & s, const std::vector<llama_token> & tokens) {
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
    const Turn turn(*this);
    give_sampler(at(seq), sampler);
}

void Engine::give_sampler(Sequence & s, const SamplerParams & sampler) {
    const bool is_same = s.matcher != nullptr && s.matcher->grammar() == sampler.grammar;
    auto drawing = std::make_unique<Sampler>(sampler, model_->n_vocab());
    if (sampler.grammar == nullptr) {
        s.matcher.reset();
    } else if (!is_same) {
        s.matcher = std::make_unique<GrammarMatcher>(sampler.grammar, model_->pieces());
    }
    s.sampler_params = sampler;
    s.sampler = std::move(drawing);
}

void Engine::set_grammar_begin(int seq, int begin) {
    const Turn turn(*this);
    Sequence & s = at(seq);
    require_range("grammar_begin", begin, -1, int(s.tokens.size()));
    s.grammar_begin = begin;
}

// A token of the logits' distribution where the grammar allows it, else one of those that it allows.
void Engine::draw(Sequence & s, const float * logits, StepResult & out) {
    out.token = s.sampler->sample(logits, s.tokens);
    if (s.matcher == nullptr || s.grammar_begin < 0) {
        return;
    }
    const size_t begin = std::min(size_t(s.grammar_begin), s.tokens.size());
    s.matcher->follow(s.tokens.data() + begin, s.tokens.size() - begin);
    if (!s.matcher->allows(out.token)) {
        if (!s.matcher->allowed(allowed_)) {
            throw Error(ErrorKind::input, "no token of the model can go on as the grammar asks; change the grammar");
        }
        out.token = s.sampler->sample_among(allowed_, logits, s.tokens);
    }
    out.is_whole = s.matcher->is_complete_after(out.token);
}

void Engine::require_steering() const {
    if (!steering_unsupported_.empty()) {
        throw Error(ErrorKind::steering_unsupported, "models of " + model_->architecture() + " run, but cannot be steered or read: " +
                    steering_unsupported_ + "; use it without a vector, a gauge or a reading, or take another model");
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
        if (term.gate != nullptr) {
            check_gate(term);
        }
    }
}

void Engine::check_gate(const Term & term) const {
    for (const Probe & probe : term.gate->probes()) {
        require_gauge(probe.gauge);
    }
    for (int il = term.il_begin; il < std::min(term.gate->il(), term.il_end); ++il) {
        if (term.vector->has(il)) {
            throw Error(ErrorKind::input, "a condition reads layer " + std::to_string(term.gate->il()) +
                        ", but its term steers layer " + std::to_string(il) + " already; a row is read before it is steered");
        }
    }
}

void Engine::require_gauge(const Gauge & gauge) const {
    require_range("gauge layer", gauge.il, 0, n_layer_ - 1);
    if (int(gauge.unit.size()) != n_embd_) {
        throw Error(ErrorKind::vector_shape, "gauge of width " + std::to_string(gauge.unit.size()) +
                    ", the model has " + std::to_string(n_embd_));
    }
    if (!(gauge.residual_norm > 0.0f) || !std::isfinite(gauge.residual_norm) || !std::isfinite(gauge.neutral)) {
        throw Error(ErrorKind::input, "a gauge needs a residual norm above 0 and a finite neutral projection");
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
    const Turn turn(*this);
    Sequence & s = at(seq);
    if (spans.empty() || spans.front().begin < s.n_decoded) {
        throw Error(ErrorKind::input, "spans must begin at position " + std::to_string(s.n_decoded) + " or later");
    }
    add_spans(s, spans, spans.front().begin);
}

// Leaves exactly n_decoded tokens in the KV cache, or none where llama.cpp cannot go back that far.
void Engine::rewind(int slot, int n_decoded) {
    Sequence & s = sequences_[slot];
    if (n_decoded >= s.n_decoded) {
        return;
    }
    // The cells of an edit are kept or computed anew together, and a reader goes back as far as it can.
    for (int wanted = -1; wanted != n_decoded;) {
        wanted = n_decoded;
        if (s.reader) {
            n_decoded = s.reader->rewind(n_decoded);
        }
        for (const CacheEdit & edit : s.edits) {
            if (edit.deltas && edit.begin < n_decoded && n_decoded < edit.end) n_decoded = edit.begin;
        }
    }
    // A sliding-window cache always says yes, even when the window behind the new end has been
    // overwritten, and recurrent models refuse a partial removal: both then compute anew.
    bool kept = n_decoded > 0 && llama_memory_seq_rm(memory_, slot, n_decoded, -1);
    if (kept && model_->n_swa() > 0) {
        kept = llama_memory_seq_pos_min(memory_, slot) <= std::max(0, n_decoded - model_->n_swa());
    }
    if (!kept) {
        llama_memory_seq_rm(memory_, slot, -1, -1);
        n_decoded = 0;
    }
    s.n_decoded = n_decoded;
    s.cells.resize(std::min(s.cells.size(), size_t(n_decoded)));
    s.has_logits = false;
}

void Engine::rollback(int seq, int n, bool is_followed) {
    const Turn turn(*this);
    Sequence & s = at(seq);
    require_range("tokens to keep", n, 0, int(s.tokens.size()));
    if (n == int(s.tokens.size())) {
        return;
    }
    // What stays keeps its own terms; what comes next has the newest.
    std::vector<Term> newest = s.spans.empty() ? std::vector<Term>() : s.spans.back().terms;
    s.tokens.resize(size_t(n));
    ++s.n_returns;
    rewind(slot_of(seq), is_followed ? n : std::max(0, n - 1));
    s.edits.erase(std::remove_if(s.edits.begin(), s.edits.end(), [n](const CacheEdit & edit) { return edit.end > n; }),
                  s.edits.end());
    s.has_logits = false;
    add_spans(s, {{n, std::move(newest)}}, n);
}

void Engine::refresh(int seq, const std::vector<Span> & spans, int begin) {
    const Turn turn(*this);
    Sequence & s = at(seq);
    require_range("first token to compute again", begin, 0, int(s.tokens.size()));
    for (const Span & span : spans) {
        check_terms(span.terms);
    }
    ++s.n_returns;
    rewind(slot_of(seq), begin);
    add_spans(s, spans, begin);
}

void Engine::drop_cells(int seq) {
    const Turn turn(*this);
    rewind(slot_of(seq), 0);
}

int Engine::n_common(int seq, const std::vector<llama_token> & tokens, const std::vector<Span> & spans) const {
    const Turn turn(*this);
    const Sequence & s = at(seq);
    const size_t n_shorter = std::min(s.tokens.size(), tokens.size());
    const int n_same = int(std::mismatch(tokens.begin(), tokens.begin() + n_shorter, s.tokens.begin()).first - tokens.begin());
    const auto n_alike = [&] {
        static const std::vector<Term> none;
        size_t mine = 0, theirs = 0;  // spans that have begun
        // From each position on where the terms of either may change, to the next one.
        for (int pos = 0; pos < std::min(n_same, s.n_decoded);) {
            while (mine < s.spans.size() && s.spans[mine].begin <= pos) ++mine;
            while (theirs < spans.size() && spans[theirs].begin <= pos) ++theirs;
            if (!same_terms(mine > 0 ? s.spans[mine - 1].terms : none, theirs > 0 ? spans[theirs - 1].terms : none)) {
                return pos;
            }
            int next = n_same;
            if (mine < s.spans.size()) next = std::min(next, s.spans[mine].begin);
            if (theirs < spans.size()) next = std::min(next, spans[theirs].begin);
            pos = next;
        }
        return n_same;
    };
    int n = n_alike();
    for (const CacheEdit & edit : s.edits) n = std::min(n, edit.begin);
    // A recurrent state goes on from where it is, or from nothing.
    return n < int(s.tokens.size()) && model_->is_recurrent_or_hybrid() ? 0 : n;
}

void Engine::set_gauges(int seq, std::vector<Gauge> gauges) {
    const Turn turn(*this);
    Sequence & s = at(seq);
    if (!gauges.empty()) {
        require_steering();
    }
    for (const Gauge & gauge : gauges) {
        require_gauge(gauge);
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
    const Turn turn(*this);
    Sequence & s = at(seq);
    check_reading(layers);
    require_range("first position", pos_begin, s.n_decoded, n_ctx_);
    s.reader = std::make_unique<Reader>(layers, pooling, pos_begin, pos_end, n_embd_);
}

std::pair<int, std::vector<float>> Engine::reading(int seq) const {
    const Turn turn(*this);
    const Sequence & s = at(seq);
    if (!s.reader) {
        throw Error(ErrorKind::input, "this sequence is not being read; start reading first");
    }
    return {s.reader->count(), s.reader->values()};
}

void Engine::stop_reading(int seq) {
    const Turn turn(*this);
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

std::vector<Engine::Row> Engine::next_chunk(const std::vector<Goal> & goals) const {
    std::vector<Row> rows;
    int n_outputs = 0;
    for (const auto & [seq, end] : goals) {
        const Sequence & s = sequences_[seq];
        int n = end;
        for (const CacheEdit & edit : s.edits) {
            if (edit.deltas && edit.end > s.n_decoded) n = std::min(n, edit.end);  // what comes after it sees the edit
        }
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
    stopped_seq_ = -1;
    hook_.begin(std::move(plans), skip_head);
    const size_t log_mark = mark_log();
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
        if (rc == 2 || !hooked) {
            demote_log(log_mark);  // it was us who stopped it
        }
        if (hook_.out_of_memory()) {
            throw std::bad_alloc();
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
        s.cells.push_back(n_cells_named_++);
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
    for (size_t r = 0; r < rows.size(); ++r) {
        if (r + 1 == rows.size() || rows[r + 1].seq != rows[r].seq) apply_edits(rows[r].seq);
    }
}

void Engine::forward_unlocked(const std::vector<int> & slots, bool skip_head, const std::vector<Goal> & fills) {
    std::vector<Goal> goals;
    const auto add = [&](Goal goal) {
        for (const Goal & before : goals) {
            if (before.slot == goal.slot) {
                throw Error(ErrorKind::input, "sequence " + std::to_string(handle_of(goal.slot)) + " is named twice");
            }
        }
        goals.push_back(goal);
    };
    for (int slot : slots) {
        const Sequence & s = sequences_[slot];
        if (s.tokens.empty()) {
            throw Error(ErrorKind::input, "an empty sequence predicts nothing; append at least one token");
        }
        add({slot, int(s.tokens.size()) - (s.n_given >= 0 ? 1 : 0)});  // a scored text's last token predicts nothing
    }
    for (const Goal & fill : fills) add(fill);
    for (int slot : slots) {
        Sequence & s = sequences_[slot];
        if (s.sampler && !s.has_logits) {
            rewind(slot, int(s.tokens.size()) - 1);  // at least the last token is decoded, for its logits
        }
    }
    if (!params_.kv_unified) {
        std::sort(goals.begin(), goals.end(), [](const Goal & a, const Goal & b) { return a.slot < b.slot; });
    }
    require_cells(goals);
    for (auto rows = next_chunk(goals); !rows.empty(); rows = next_chunk(goals)) {
        decode(rows, skip_head);
    }
}

void Engine::forward(const std::vector<int> & seqs) {
    const Turn turn(*this);
    forward_unlocked(slots_of(seqs), false);
}

std::vector<StepResult> Engine::step(const std::vector<int> & seqs, const std::vector<int> & n_top, const std::vector<Fill> & fills) {
    for (int n : n_top) require_range("n_top", n, 0, model_->n_vocab());
    if (n_top.size() != 1 && n_top.size() != seqs.size()) {
        throw Error(ErrorKind::input, std::to_string(n_top.size()) + " values of n_top for " + std::to_string(seqs.size()) +
                    " sequences; pass one, or one for each");
    }
    const Turn turn(*this);
    // Look before the work: a step that cannot be finished must not be begun.
    for (int seq : seqs) {
        if (int(at(seq).tokens.size()) >= n_ctx_seq_) {
            throw Error(ErrorKind::context_full, "the sequence fills the context of " + std::to_string(n_ctx_seq_) +
                        " tokens; roll it back, or open the engine with a larger n_ctx");
        }
    }
    std::vector<Goal> goals;
    for (const Fill & fill : fills) {
        const Sequence & s = at(fill.seq);
        require_range("rows to fill", fill.n_rows, 1, std::numeric_limits<int>::max());
        goals.push_back({slot_of(fill.seq), s.n_decoded + std::min(fill.n_rows, int(s.tokens.size()) - s.n_decoded)});
    }
    forward_unlocked(slots_of(seqs), false, goals);
    std::vector<StepResult> results(seqs.size());
    for (size_t i = 0; i < seqs.size(); ++i) {
        Sequence & s = at(seqs[i]);
        StepResult & out = results[i];
        const float * row = logits_of(s);
        draw(s, row, out);
        const LogitStats stats = logit_stats(row, model_->n_vocab(), out.token);
        out.logprob = stats.logprob;
        out.entropy = stats.entropy;
        if (const int n = n_top[n_top.size() == 1 ? 0 : i]; n > 0) {
            out.top = top_logprobs(row, model_->n_vocab(), n);
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
    const Turn turn(*this);
    forward_unlocked({slot_of(seq)}, false);
    const float * row = logits_of(at(seq));
    return std::vector<float>(row, row + model_->n_vocab());
}

}  // namespace pyemo
