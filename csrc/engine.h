// Sequences over one llama_context: pending tokens, chunked decodes, sampling, going back, reading,
// scoring. Knows nothing of Python or emotions. Every public method locks the engine.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "cache_state.h"
#include "errors.h"
#include "grammar_matcher.h"
#include "interruptible.h"
#include "mix.h"
#include "model.h"
#include "residual_hook.h"
#include "sampler.h"

namespace pyemo {

struct EngineParams {
    int n_ctx = 2048;     // cells of the KV cache, shared by all sequences
    int n_batch = 512;    // rows of one decode at most (llama.cpp's n_batch and n_ubatch)
    int n_seq_max = 1;
    int n_outputs_max = 32;  // rows of logits of one decode at most; each is n_vocab floats, twice
    int n_threads = 1;
    int n_threads_batch = 1;
    std::string kv_type = "f16";  // f32, f16, bf16, q8_0, q4_0
    // On: sequences share the cells, a fork is a tag, and a batch mixes them at will. Off: each has n_ctx / n_seq_max
    // cells of its own, and attention does not pass over those of the others.
    bool kv_unified = true;
    bool hook_through_copies = false;  // steer as off the CPU: fetch the rows, change them, put them back
};

struct StepResult {
    llama_token token = 0;
    float logprob = 0.0f;
    float entropy = 0.0f;
    bool is_end = false;  // an end-of-generation token
    bool is_whole = false;  // the reply is what its grammar asks for, and nothing more may come
    std::string piece;    // its bytes; empty for control tokens
    std::vector<std::pair<llama_token, float>> top;
    std::vector<GaugeReading> gauges;  // of the row the token was sampled from
    float dose = 0.0f;                 // likewise, measured at the last block
};

struct ContextDeleter {
    void operator()(llama_context * ctx) const { llama_free(ctx); }
};
using ContextPtr = std::unique_ptr<llama_context, ContextDeleter>;

// From which position on which terms act.
struct Span {
    int begin = 0;
    std::vector<Term> terms;
};

struct ScoreJob {
    std::vector<llama_token> tokens;
    int n_given = 0;  // tokens that are not scored; the first token never is
    std::vector<Span> spans;
};

struct ReadJob {
    std::vector<llama_token> tokens;
    int pos_begin = 0, pos_end = 0;
    std::vector<Span> spans;
};

// Part of a sequence's pending tokens, to be decoded beside others.
struct Fill {
    int seq = 0;
    int n_rows = 0;
};

// What is added to a layer's values, or keys, in the cells of an edit.
struct CacheDelta {
    int il = 0;
    bool of_keys = false;
    std::vector<float> rows;  // (n_cells, width), flat
};

// What the cache holds of a layer in some cells.
struct CacheRows {
    int il = 0;
    std::vector<float> keys, values;  // (n_cells, width) each, flat
};

class Engine {
public:
    // `interrupted` is asked at most every 50 ms during long work, on the calling thread; true stops the work.
    Engine(std::shared_ptr<Model> model, const EngineParams & params, Interrupted interrupted);
    Engine(const Engine &) = delete;
    Engine & operator=(const Engine &) = delete;

    // Empty if the model's blocks can be steered; else the reason why not.
    const std::string & steering_unsupported() const { return steering_unsupported_; }
    int n_ctx() const { return n_ctx_; }
    int n_ctx_seq() const { return n_ctx_seq_; }
    int n_batch() const { return params_.n_batch; }
    int n_seq_max() const { return params_.n_seq_max; }
    int n_free_sequences() const;
    // Cells that no open sequence holds or will need for its pending tokens; what forks share counts once. Where each
    // sequence has cells of its own: those of the free ones.
    int n_free_cells() const;
    // Tokens that a sequence can still take, beside the others.
    int n_room(int seq) const;
    int n_threads() const;
    void set_n_threads(int n_threads, int n_threads_batch);

    int add_sequence(const SamplerParams & sampler);
    int fork(int seq);
    // Never waits and never throws: frees the sequence at once, or at the next call where the engine is at work.
    void remove(int seq);

    // The tokens so far. All but the pending ones are in the KV cache.
    std::vector<llama_token> tokens(int seq) const;
    int n_tokens(int seq) const;
    // The same where the engine is not at work; never waits.
    std::optional<int> n_tokens_now(int seq) const;
    int n_pending(int seq) const;
    void append(int seq, const std::vector<llama_token> & tokens);
    void set_sampler(int seq, const SamplerParams & sampler);
    // From which token on the sampler's grammar holds; -1: not now.
    void set_grammar_begin(int seq, int begin);

    // What acts on which positions, from the first span's begin on, which is not decoded yet; the last
    // span has no end. Decoded tokens keep what they were computed with.
    void set_spans(int seq, const std::vector<Span> & spans);

    // Forgets the tokens from position n on. They come back as fresh computation would give them. The last that stays is
    // pending, for its logits, unless others are to follow.
    void rollback(int seq, int n, bool is_followed = false);
    // Drops the KV cache of the sequence from position begin on; its tokens are pending again, under the given spans.
    void refresh(int seq, const std::vector<Span> & spans, int begin = 0);
    // Drops all of it; its tokens are pending again, under the spans that they had, and come back as they were.
    void drop_cells(int seq);
    // How many first tokens the sequence has in common with these, its decoded ones under the same terms, as far as it can
    // be rolled back to.
    int n_common(int seq, const std::vector<llama_token> & tokens, const std::vector<Span> & spans) const;

    // Empty if the cells of the KV cache can be read and edited; else the reason why not.
    std::string cache_unsupported() const { return cache_refusal_ ? cache_refusal_->what() : ""; }
    // Widths of each layer's keys and values: (layer, keys, values).
    std::vector<std::tuple<int, int, int>> cache_widths() const;
    // Adds to the cells of positions begin to end - 1, at once or as soon as they are decoded. Tokens decoded earlier keep what
    // they were computed with, but for the last one, which is decoded again. Computed anew, the cells are edited again.
    void edit_cache(int seq, int begin, int end, std::vector<CacheDelta> deltas);
    // Takes the newest edit back.
    void undo_cache_edit(int seq);
    // What the cells of positions begin to end - 1 hold; decodes what is pending.
    std::vector<CacheRows> read_cache(int seq, int begin, int end);
    // For tests: the step of the coming edits that fails. 1: reading the cells; 2: writing them; 3: writing them, and
    // putting the old ones back.
    void fail_cache_step(int step);

    void set_gauges(int seq, std::vector<Gauge> gauges);
    void start_reading(int seq, const std::vector<int> & layers, Pooling pooling, int pos_begin, int pos_end);
    std::pair<int, std::vector<float>> reading(int seq) const;
    void stop_reading(int seq);

    // Decodes all pending tokens of these sequences, in chunks of n_batch rows filled in the order given.
    void forward(const std::vector<int> & seqs);
    // forward, then one token for each sequence, appended to it as pending; n_top: alternatives, of each sequence or one
    // number for all. Beside them, as far as the decodes have room, up to n_rows pending tokens of each fill are decoded.
    std::vector<StepResult> step(const std::vector<int> & seqs, const std::vector<int> & n_top, const std::vector<Fill> & fills = {});
    // Makes the decode that runs now, on another thread, fail as interrupted if it has tokens of this sequence; they are
    // pending again. Never waits.
    void interrupt(int seq) { stopped_seq_ = seq; }
    // Logits after the last token, decoding what is pending; (n_vocab,), a copy.
    std::vector<float> logits(int seq);

    // Log-probabilities of tokens[max(1, n_given):] of each job. Uses free sequences, leaves none behind.
    std::vector<std::vector<float>> score(const std::vector<ScoreJob> & jobs);
    // Appends tokens to a sequence and returns the log-probability of each given all before it; the first
    // token of a sequence has none. The last one stays pending. Nothing is appended if it fails.
    std::vector<float> score_next(int seq, const std::vector<llama_token> & tokens);
    // Pooled hidden states of each job; see Reader::values. Uses free sequences, leaves none behind.
    std::vector<std::vector<float>> read(const std::vector<ReadJob> & jobs, const std::vector<int> & layers, Pooling pooling);

private:
    // The engine's lock, held for one public call. A thread that holds it already is refused by name: the call comes
    // from Python that runs inside a decode (a signal handler, a finalizer) and could only wait for itself.
    class Turn {
    public:
        explicit Turn(const Engine & engine);
        Turn(const Engine & engine, std::try_to_lock_t);  // does not wait
        ~Turn();
        explicit operator bool() const { return engine_ != nullptr; }
        Turn(const Turn &) = delete;
        Turn & operator=(const Turn &) = delete;

    private:
        Engine * engine_;  // null where the lock was not free
    };
    struct ActiveSpan {
        int begin;
        std::vector<Term> terms;
        std::unique_ptr<Mix> mix;  // compiled when a row needs it
    };
    // The cells of an edit as they were before it.
    struct Before {
        std::vector<uint8_t> cells;
        std::vector<uint8_t> last;    // the last token's cell and logits, where it was decoded after the edited ones
        std::vector<float> logits;
        size_t n_tokens = 0;
        int n_returns = 0;
    };
    struct CacheEdit {
        int begin, end;  // positions
        std::shared_ptr<const std::vector<CacheDelta>> deltas;  // nullptr where all are 0
        std::shared_ptr<const Before> before;                   // once it has acted
    };
    struct Sequence {
        bool used = false;
        int generation = 0;              // how many sequences this slot has held
        std::vector<llama_token> tokens;
        int n_decoded = 0;
        std::vector<int64_t> cells;      // a name for the cell of each decoded token; forks share cells
        std::vector<ActiveSpan> spans;
        std::vector<CacheEdit> edits;    // the newest last
        int n_returns = 0;               // times that tokens were taken off
        SamplerParams sampler_params;
        std::unique_ptr<Sampler> sampler;
        std::unique_ptr<GrammarMatcher> matcher;  // of the sampler's grammar
        int grammar_begin = -1;
        bool has_logits = false;
        int logits_row = -1;             // in the last decode's outputs, or -1: in saved_logits
        std::vector<float> saved_logits;
        std::vector<Gauge> gauges;
        std::vector<GaugeReading> readings;
        float dose = 0.0f;
        std::unique_ptr<Reader> reader;
        int n_given = -1;                // scoring: >= 0
        std::vector<float> logprobs;
    };
    struct Row {
        int seq;
        int pos;
        bool output;
    };
    struct Goal {
        int slot;
        int end;  // decode the tokens before this position
    };

    // A sequence's number, as callers know it, is never used again: generation * n_seq_max + slot. Inside, a
    // sequence is its slot, which is llama.cpp's own number for it.
    int handle_of(int slot) const;
    int find_slot(int seq) const;  // -1 where it is closed
    int slot_of(int seq) const;    // throws closed
    std::vector<int> slots_of(const std::vector<int> & seqs) const;
    Sequence & at(int seq);
    const Sequence & at(int seq) const;
    int free_sequence();
    int n_held_cells() const;
    int n_pending_tokens() const;
    void require_cells(const std::vector<Goal> & goals) const;
    void free_removed();
    void append_to(Sequence & s, const std::vector<llama_token> & tokens);
    void give_sampler(Sequence & s, const SamplerParams & sampler);
    void draw(Sequence & s, const float * logits, StepResult & out);
    void add_spans(Sequence & s, const std::vector<Span> & spans, int first);
    void check_terms(const std::vector<Term> & terms) const;
    void check_gate(const Term & term) const;
    void require_gauge(const Gauge & gauge) const;
    void check_reading(const std::vector<int> & layers) const;
    void require_steering() const;
    const Mix * mix_at(Sequence & s, int pos);
    bool wants_output(const Sequence & s, int pos) const;
    void reset_sequence(int slot);

    // The next chunk of rows before the goals; empty when all are reached.
    std::vector<Row> next_chunk(const std::vector<Goal> & goals) const;
    void decode(const std::vector<Row> & rows, bool skip_head);
    void forward_unlocked(const std::vector<int> & slots, bool skip_head, const std::vector<Goal> & fills = {});
    void save_logits();
    const float * logits_of(const Sequence & s) const;
    void rewind(int slot, int n_decoded);
    void prove_hook();

    void prove_cache(bool decoded);
    void require_cache() const;
    void check_deltas(int n_cells, const std::vector<CacheDelta> & deltas) const;
    std::vector<uint8_t> take_cells(int slot, int begin, int end);
    bool put_cells(int slot, int begin, int end, const std::vector<uint8_t> & cells);
    void replace_cells(int slot, int begin, int end, const std::vector<uint8_t> & cells, const std::vector<uint8_t> & old);
    void require_cells_to_replace(int slot, int begin, int end) const;
    void apply_edit(int slot, CacheEdit & edit);
    void apply_edits(int slot);
    void decode_last_again(int slot);
    // Throws unless each job fits; returns the cells in use.
    template <typename Job>
    int check_jobs(const std::vector<Job> & jobs) const;
    // Runs checked jobs in groups that fit the free sequences, the context and one decode.
    template <typename Job, typename Start, typename Finish>
    void run_jobs(const std::vector<const Job *> & jobs, int n_used, bool skip_head, Start start, Finish finish);
    void share_beginnings(const std::vector<int> & seqs);
    static bool on_abort_check(void * self);

    std::shared_ptr<Model> model_;
    EngineParams params_;
    ResidualHook hook_;
    ContextPtr ctx_;
    llama_memory_t memory_ = nullptr;
    int n_ctx_ = 0;      // cells, shared by all sequences
    int n_ctx_seq_ = 0;  // tokens of one sequence at most
    int n_layer_ = 0, n_embd_ = 0;
    std::string steering_unsupported_;
    int spare_ = -1;                     // llama.cpp's sequence through which cells are edited; nobody else's
    std::vector<int> cache_layers_;      // the layers that have cells, in the order of llama.cpp's state
    std::vector<std::pair<int, int>> cache_widths_;  // of their keys and values
    std::optional<Error> cache_refusal_;
    int failing_cache_step_ = 0;
    std::vector<Sequence> sequences_;
    std::vector<bool> allowed_;  // tokens, of the draw at hand
    int64_t n_cells_named_ = 0;
    llama_batch batch_{};
    struct BatchDeleter {
        void operator()(llama_batch * batch) const { llama_batch_free(*batch); }
    };
    std::unique_ptr<llama_batch, BatchDeleter> batch_owner_;
    Interrupted interrupted_;
    int64_t next_interrupt_check_us_ = 0;
    uint32_t n_abort_checks_ = 0;
    std::timed_mutex mutex_;
    std::atomic<std::thread::id> owner_{};  // the thread that holds mutex_
    std::atomic<int> stopped_seq_{-1};      // see interrupt
    std::mutex removed_mutex_;              // held for a few instructions only, never around anything of Python's
    std::vector<int> removed_;              // sequences to free at the next call
};

}  // namespace pyemo
