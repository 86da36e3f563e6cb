// The fastest loop there is: llama.cpp's C API, greedy by a plain maximum, no text, nothing reported.
// Built by raw_decode.py and called once for a whole run, so Python is not in it.
#include <algorithm>
#include <cstdint>

#include "llama.h"

namespace {

struct Loop {
    llama_model * model;
    llama_context * ctx;
    int n_vocab;
};

}  // namespace

extern "C" {

void * raw_open(const char * path, int n_ctx, int n_ubatch, int n_threads, int hook) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    llama_model * model = llama_model_load_from_file(path, llama_model_default_params());
    llama_context_params p = llama_context_default_params();
    p.n_ctx = uint32_t(n_ctx);
    p.n_batch = p.n_ubatch = uint32_t(n_ubatch);
    p.n_threads = p.n_threads_batch = n_threads;
    p.no_perf = true;
    if (hook) {
        // Every block output asked for and left alone: what stopping there costs by itself.
        p.cb_eval = [](ggml_tensor * t, bool ask, void *) { return !ask || (t->name[0] == 'l' && t->name[1] == '_'); };
    }
    return new Loop{model, llama_init_from_model(model, p), llama_vocab_n_tokens(llama_model_get_vocab(model))};
}

void raw_close(void * handle) {
    auto * loop = static_cast<Loop *>(handle);
    llama_free(loop->ctx);
    llama_model_free(loop->model);
    delete loop;
}

// Computes the prompt from an empty cache and leaves it there.
int raw_prompt(void * handle, llama_token * tokens, int n) {
    auto * loop = static_cast<Loop *>(handle);
    llama_memory_clear(llama_get_memory(loop->ctx), false);
    return llama_decode(loop->ctx, llama_batch_get_one(tokens, n));
}

// Goes back to n_prompt tokens and decodes n tokens greedily, beginning with `first`; returns the last.
int raw_decode(void * handle, llama_token first, int n_prompt, int n) {
    auto * loop = static_cast<Loop *>(handle);
    llama_memory_seq_rm(llama_get_memory(loop->ctx), 0, n_prompt, -1);
    llama_token token = first;
    for (int i = 0; i < n; ++i) {
        if (llama_decode(loop->ctx, llama_batch_get_one(&token, 1)) != 0) return -1;
        const float * logits = llama_get_logits_ith(loop->ctx, -1);
        token = llama_token(std::max_element(logits, logits + loop->n_vocab) - logits);
    }
    return token;
}

}  // extern "C"
