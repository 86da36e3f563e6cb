// The engine's beginning: a llama_context with its limits, and the proof that the model's blocks can be hooked.
#include <algorithm>
#include <map>

#include "abort_guard.h"
#include "engine.h"
#include "errors.h"
#include "log.h"

namespace pyemo {
namespace {

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

// A context and the model that it reads, which must outlive it.
struct Opened {
    std::shared_ptr<Model> model;
    ContextPtr ctx;
};

Opened open_context(std::shared_ptr<Model> model, const llama_context_params & params) {
    Opened opened{std::move(model), nullptr};
    capture_log();
    try {
        const AbortGuard guard(ErrorKind::model_load);
        opened.ctx.reset(llama_init_from_model(opened.model->get(), params));
    } catch (const std::exception & e) {
        throw Error(ErrorKind::model_load, std::string("llama.cpp could not make a context: ") + e.what());
    }
    if (!opened.ctx) {
        throw Error(ErrorKind::model_load, "llama.cpp could not make a context of n_ctx " +
                    std::to_string(params.n_ctx) + ": " + last_error_line());
    }
    return opened;
}

}  // namespace

Engine::Engine(std::shared_ptr<Model> model, const EngineParams & params, Interrupted interrupted)
    : model_(std::move(model)), params_(params),
      hook_(model_->n_layer(), model_->n_embd(), params.hook_through_copies),
      n_layer_(model_->n_layer()), n_embd_(model_->n_embd()), interrupted_(std::move(interrupted)) {
    require_range("n_ctx", params_.n_ctx, 8, 1 << 24);
    require_range("n_batch", params_.n_batch, 1, 1 << 16);
    require_range("n_seq_max", params_.n_seq_max, 1, max_sequences);
    require_range("n_outputs_max", params_.n_outputs_max, 1, 1 << 16);
    require_range("n_threads", params_.n_threads, 1, 512);
    require_range("n_threads_batch", params_.n_threads_batch, 1, 512);
    // Every sequence may want logits in the same decode, and one decode must hold a row of each.
    params_.n_batch = std::max({std::min(params_.n_batch, params_.n_ctx), params_.n_seq_max, 2});
    params_.n_outputs_max = std::min(std::max(params_.n_outputs_max, params_.n_seq_max), params_.n_batch);
    // One sequence more than callers can open, where it costs nothing: edits of the cache go through it.
    if (params_.kv_unified && params_.n_seq_max < max_sequences && !model_->is_recurrent_or_hybrid()) {
        spare_ = params_.n_seq_max;
    }

    llama_context_params p = llama_context_default_params();
    p.n_ctx = uint32_t(params_.n_ctx);
    p.n_seq_max = uint32_t(std::max(params_.n_seq_max, spare_ + 1));
    // One ubatch a decode, so row j is token j. llama.cpp wants room for a row of each of its sequences.
    p.n_batch = p.n_ubatch = std::max(uint32_t(params_.n_batch), p.n_seq_max);
    p.n_outputs_max = std::max(uint32_t(params_.n_outputs_max), p.n_seq_max);
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
    ctx_ = interruptible([model = model_, p](const std::atomic<bool> &) { return open_context(model, p); }, interrupted_).ctx;
    memory_ = llama_get_memory(ctx_.get());
    n_ctx_ = params_.n_ctx;  // llama.cpp rounds its own up
    n_ctx_seq_ = params_.kv_unified ? n_ctx_ : n_ctx_ / params_.n_seq_max;
    if (model_->n_positions() > 0) {
        n_ctx_seq_ = std::min(n_ctx_seq_, model_->n_positions());
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
    next_interrupt_check_us_ = llama_time_us() + interrupt_check_us;
    const size_t log_mark = mark_log();
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
    if (!hooked) {
        steering_unsupported_ = hook_.why();
    }
    prove_cache(hooked && rc == 0);
    llama_memory_clear(memory_, false);
    if (rc == 2) {
        demote_log(log_mark);
        throw Error(ErrorKind::decode_aborted, "interrupted while the engine was opened");
    }
    if (hooked && rc != 0) {
        throw Error(ErrorKind::model_load, "the model cannot be computed: " + last_error_line());
    }
}

bool Engine::on_abort_check(void * self) {
    auto & engine = *static_cast<Engine *>(self);
    if (const int seq = engine.stopped_seq_; seq >= 0) {
        const int slot = engine.find_slot(seq);
        llama_seq_id ** begin = engine.batch_.seq_id;
        if (std::any_of(begin, begin + engine.batch_.n_tokens, [slot](const llama_seq_id * ids) { return ids[0] == slot; })) {
            return true;
        }
    }
    // Asked before every node. One of a reply's row takes microseconds, so the clock is read before every 8th only; one
    // of a prompt's rows may take a tenth of a second.
    const bool is_short = engine.batch_.n_tokens < 32;
    if ((is_short && (++engine.n_abort_checks_ & 7) != 0) || !engine.interrupted_ ||
        llama_time_us() < engine.next_interrupt_check_us_) {
        return false;
    }
    engine.next_interrupt_check_us_ = llama_time_us() + interrupt_check_us;
    return engine.interrupted_();
}

}  // namespace pyemo
