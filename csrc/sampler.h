// From logits to a token. Keeps no state between tokens: the random number of the token at position p
// is a function of (seed, p), and penalties read the tokens themselves. So going back and forking
// need nothing restored.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "grammar.h"
#include "llama.h"
#include "scripts.h"

namespace pyemo {

struct SamplerParams {
    float temperature = 0.0f;     // <= 0: greedy
    int top_k = 40;               // <= 0: off
    float top_p = 0.95f;          // 1: off
    float min_p = 0.05f;          // 0: off
    float repeat_penalty = 1.0f;  // 1: off
    int repeat_last_n = 64;       // tokens the penalties look back on, >= 0
    uint64_t seed = 0;
    float dry_multiplier = 0.0f;  // 0: off
    float dry_base = 1.75f;       // >= 1
    int dry_allowed_length = 2;   // a repeat of fewer tokens costs nothing, >= 1
    int dry_last_n = 256;         // tokens that repeats are looked for in, >= 0
    float frequency_penalty = 0.0f;  // taken for each time that a token is among the last repeat_last_n
    float presence_penalty = 0.0f;   // taken once if it is
    std::shared_ptr<const Scripts> scripts;  // set: letters of scripts that the tokens so far have none of are not drawn,
    std::vector<int> more_scripts;           // but for these
    std::shared_ptr<const Grammar> grammar = nullptr;  // what a reply may be; nullptr: anything
    std::vector<std::pair<llama_token, float>> logit_bias;  // added to logits before all else; -infinity: never
};

// What the unmodified logits say of a token and of the distribution it came from.
struct LogitStats {
    float logprob = 0.0f;  // natural log of the token's probability at temperature 1
    float entropy = 0.0f;  // of the distribution, nats
};

class Sampler {
public:
    // Throws input: a bias of a token outside the vocabulary, or one that leaves none.
    Sampler(const SamplerParams & params, int n_vocab);

    // logits: (n_vocab,) float32. tokens: all tokens of the sequence so far. The same arguments give
    // the same token.
    llama_token sample(const float * logits, const std::vector<llama_token> & tokens);
    // The same among the allowed tokens, at least one, with another random number: for a draw after one that was not.
    llama_token sample_among(const std::vector<bool> & allowed, const float * logits, const std::vector<llama_token> & tokens);

private:
    bool counts() const;
    // The logits with the bias on them.
    const float * biased(const float * logits);
    // The same of the tokens that are kept, the others at -infinity; without the bias where that leaves none of them.
    const float * masked(const std::vector<bool> & kept, const float * logits);
    llama_token draw(const float * logits, const std::vector<llama_token> & tokens, uint64_t seed);
    llama_token sample_chain(const float * logits, const std::vector<llama_token> & tokens, uint64_t seed);
    // Fills candidates_ with logits among which the k largest are, in the vocabulary's order.
    void find_candidates(const float * logits, size_t k);

    struct Deleter {
        void operator()(llama_sampler * s) const { llama_sampler_free(s); }
    };
    SamplerParams params_;
    int n_vocab_;
    std::unique_ptr<llama_sampler, Deleter> chain_;
    std::vector<llama_token_data> candidates_;
    std::vector<float> maxima_, ordered_, biased_, masked_;
};

int argmax(const float * logits, int n_vocab);

// Throws decode_aborted where the logits hold NaN or infinity.
LogitStats logit_stats(const float * logits, int n_vocab, llama_token token);

// log(sum(exp(logits)))
float log_sum_exp(const float * logits, int n_vocab);

// The n most likely tokens with their log-probabilities, most likely first.
std::vector<std::pair<llama_token, float>> top_logprobs(const float * logits, int n_vocab, int n);

}  // namespace pyemo
