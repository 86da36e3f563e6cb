// Texts that are scored or read from a clean start, in groups, on sequences that are free: Engine::score, score_next
// and read.
#include <algorithm>
#include <numeric>

#include "engine.h"
#include "errors.h"

namespace pyemo {

template <typename Job>
int Engine::check_jobs(const std::vector<Job> & jobs) const {
    const int n_used = n_held_cells() + n_pending_tokens();
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
        s.cells = from->cells;
    }
}

std::vector<std::vector<float>> Engine::score(const std::vector<ScoreJob> & jobs) {
    const Turn turn(*this);
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
    const Turn turn(*this);
    const int slot = slot_of(seq);
    Sequence & s = sequences_[slot];
    append_to(s, tokens);
    const size_t n_before = s.tokens.size() - tokens.size();
    if (n_before > 0) {
        rewind(slot, int(n_before) - 1);  // the last token before is decoded with them: it predicts the first
    }
    s.n_given = int(n_before);  // from here on the sequence is scored, as a job of score() is
    s.logprobs.clear();
    try {
        forward_unlocked({slot}, false);
    } catch (...) {
        s.n_given = -1;
        s.tokens.resize(n_before);
        ++s.n_returns;
        rewind(slot, std::min(s.n_decoded, int(n_before)));
        throw;
    }
    s.n_given = -1;
    s.has_logits = false;
    return std::move(s.logprobs);
}

std::vector<std::vector<float>> Engine::read(const std::vector<ReadJob> & jobs, const std::vector<int> & layers, Pooling pooling) {
    check_reading(layers);
    const Turn turn(*this);
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
