#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <unordered_map>
#include <unordered_set>

#include "errors.h"

// Compiled for the baseline and for wider vectors, chosen when the library is loaded: a softmax over
// Gemma's 262,144 logits for each token would otherwise cost 5% of its decode time.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(PYEMO_SANITIZE)
#define PYEMO_WIDE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PYEMO_WIDE
#endif

namespace pyemo {
namespace {

constexpr int lanes = 16;
constexpr int block = 64;  // logits whose maximum is looked at first

// Sixteen floats at a time, spelled out: compilers do not vectorise the loop over plain floats.
typedef float floats __attribute__((vector_size(lanes * sizeof(float))));
typedef int32_t ints __attribute__((vector_size(lanes * sizeof(int32_t))));

PYEMO_WIDE float max_of(const float * x, int n) {
    float best[lanes];
    std::fill(best, best + lanes, -INFINITY);
    int i = 0;
    for (; i + lanes <= n; i += lanes) {
        for (int k = 0; k < lanes; ++k) {
            best[k] = x[i + k] > best[k] ? x[i + k] : best[k];
        }
    }
    float out = *std::max_element(best, best + lanes);
    for (; i < n; ++i) {
        out = x[i] > out ? x[i] : out;
    }
    return out;
}

// Adds exp(x - max) and exp(x - max) (x - max) of sixteen values x <= max.
// exp(d) = 2^-n p(r) with n = round(-d / ln2) and r = d + n ln2 in [-ln2/2, ln2/2], p of degree 6 (Cephes expf);
// relative error below 2e-7. Below e^-87 a term adds nothing, and a logit of -infinity must not turn 0 * infinity
// into NaN. NaN stays NaN.
inline __attribute__((always_inline)) void add_exp(const float * x, float max, floats & sums, floats & weights) {
    floats d;
    std::memcpy(&d, x, sizeof(d));
    d -= max;
    d = d < -87.0f ? floats{} - 87.0f : d;
    const ints n = __builtin_convertvector(d * -1.44269504088896341f + 0.5f, ints);
    const floats whole = __builtin_convertvector(n, floats);
    const floats r = (d + whole * 0.693359375f) - whole * 2.12194440e-4f;
    floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const ints bits = (127 - n) << 23;
    floats scale;
    std::memcpy(&scale, &bits, sizeof(scale));
    const floats e = p * scale;
    sums += e;
    weights += e * d;
}

// sum of exp(x - max), and of exp(x - max) (x - max)
PYEMO_WIDE void exp_sums(const float * x, int n, float max, double * sum, double * weighted) {
    floats sums = {}, weights = {};
    int i = 0;
    for (; i + lanes <= n; i += lanes) {
        add_exp(x + i, max, sums, weights);
    }
    if (i < n) {
        float rest[lanes];
        std::fill(rest, rest + lanes, -INFINITY);
        std::copy(x + i, x + n, rest);
        add_exp(rest, max, sums, weights);
    }
    *sum = *weighted = 0.0;
    for (int k = 0; k < lanes; ++k) {
        *sum += sums[k];
        *weighted += weights[k];
    }
}

// SplitMix64 (Steele, Lea, Flood 2014) as a counter-based generator: uniform in [0, 1).
double uniform(uint64_t seed, uint64_t position) {
    uint64_t z = seed * 0xD1342543DE82EF95ull + (position + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    return double(z >> 11) * 0x1.0p-53;
}

// A match counts up to here: the penalty is past any logit by then, and a loop of one token would cost its square.
constexpr int longest_match = 50;

// DRY (p-e-w 2024, llama.cpp's llama_sampler_init_dry): the token that would go on with a repeat loses
// multiplier * base^(length - allowed_length), where length tokens before it stand the same way earlier on.
// Token -> what its logit loses. Written here and not taken from llama.cpp, whose sampler keeps state.
std::unordered_map<llama_token, float> dry_penalties(const SamplerParams & params,
                                                     const std::vector<llama_token> & tokens) {
    std::unordered_map<llama_token, float> out;
    const int n = int(tokens.size());
    const int first = n - std::min(n, params.dry_last_n);
    for (int i = first + 1; i < n; ++i) {
        int length = 0;
        while (length < longest_match && i - 1 - length >= first && tokens[i - 1 - length] == tokens[n - 1 - length]) {
            ++length;
        }
        if (length >= params.dry_allowed_length) {
            const float lost = params.dry_multiplier * std::pow(params.dry_base, float(length - params.dry_allowed_length));
            float & most = out[tokens[i]];
            most = std::max(most, lost);
        }
    }
    return out;
}

void require_bias(const std::vector<std::pair<llama_token, float>> & logit_bias, int n_vocab) {
    std::unordered_set<llama_token> never;
    for (const auto & [token, bias] : logit_bias) {
        if (token < 0 || token >= n_vocab) {
            throw Error(ErrorKind::input, "logit_bias has the token " + std::to_string(token) + "; this model's are 0 to " +
                        std::to_string(n_vocab - 1));
        }
        if (bias == -INFINITY) never.insert(token);
    }
    if (int(never.size()) == n_vocab) {
        throw Error(ErrorKind::input, "logit_bias leaves no token that may come");
    }
}

}  // namespace

Sampler::Sampler(const SamplerParams & params, int n_vocab) : params_(params), n_vocab_(n_vocab) {
    require_bias(params_.logit_bias, n_vocab_);
    if (params_.temperature > 0.0f) {
        chain_.reset(llama_sampler_chain_init(llama_sampler_chain_default_params()));
        if (params_.top_k > 0) llama_sampler_chain_add(chain_.get(), llama_sampler_init_top_k(params_.top_k));
        if (params_.top_p < 1.0f) llama_sampler_chain_add(chain_.get(), llama_sampler_init_top_p(params_.top_p, 1));
        if (params_.min_p > 0.0f) llama_sampler_chain_add(chain_.get(), llama_sampler_init_min_p(params_.min_p, 1));
        llama_sampler_chain_add(chain_.get(), llama_sampler_init_temp(params_.temperature));
    }
}

// A token that leaves the text's scripts is drawn again, by another random number, from those that do not: the
// distribution is that of a mask, and a text is bit for bit that without one up to the first token that it would lose.
llama_token Sampler::sample(const float * logits, const std::vector<llama_token> & tokens) {
    const llama_token first = draw(biased(logits), tokens, params_.seed);
    if (!params_.scripts) {
        return first;
    }
    const Scripts & scripts = *params_.scripts;
    const std::vector<bool> known = scripts.known(tokens, params_.more_scripts);
    const std::string open = scripts.open_end(tokens);
    if (scripts.fits(open, first, known)) {
        return first;
    }
    std::vector<bool> kept(n_vocab_);
    for (llama_token token = 0; token < n_vocab_; ++token) {
        kept[token] = scripts.fits(open, token, known);
    }
    return draw(masked(kept, logits), tokens, ~params_.seed);
}

const float * Sampler::biased(const float * logits) {
    if (params_.logit_bias.empty()) {
        return logits;
    }
    biased_.assign(logits, logits + n_vocab_);
    for (const auto & [token, bias] : params_.logit_bias) {
        biased_[token] += bias;
    }
    return biased_.data();
}

const float * Sampler::masked(const std::vector<bool> & kept, const float * logits) {
    masked_.assign(n_vocab_, -INFINITY);
    for (const float * values : {biased(logits), logits}) {
        bool any = false;
        for (llama_token token = 0; token < n_vocab_; ++token) {
            if (kept[token]) masked_[token] = values[token];
            any = any || masked_[token] > -INFINITY;
        }
        if (any) break;
    }
    return masked_.data();
}

llama_token Sampler::draw(const float * logits, const std::vector<llama_token> & tokens, uint64_t seed) {
    if (!chain_ && !counts() && params_.dry_multiplier == 0.0f) {
        return argmax(logits, n_vocab_);
    }
    return sample_chain(logits, tokens, seed);
}

llama_token Sampler::sample_among(const std::vector<bool> & allowed, const float * logits, const std::vector<llama_token> & tokens) {
    std::vector<bool> chosen = allowed;
    if (params_.scripts) {
        const Scripts & scripts = *params_.scripts;
        const std::vector<bool> known = scripts.known(tokens, params_.more_scripts);
        const std::string open = scripts.open_end(tokens);
        bool any = false;
        for (llama_token token = 0; token < n_vocab_; ++token) {
            chosen[token] = allowed[token] && scripts.fits(open, token, known);
            any = any || chosen[token];
        }
        if (!any) chosen = allowed;  // the grammar itself leaves the scripts
    }
    return draw(masked(chosen, logits), tokens, params_.seed ^ 0x9E3779B97F4A7C15ull);
}

// Whether it matters how often a token came.
bool Sampler::counts() const {
    return params_.repeat_penalty != 1.0f || params_.frequency_penalty != 0.0f || params_.presence_penalty != 0.0f;
}

llama_token Sampler::sample_chain(const float * logits, const std::vector<llama_token> & tokens, uint64_t seed) {
    std::unordered_map<llama_token, int> penalised;  // token -> how often it came
    if (counts()) {
        const size_t n = std::min(tokens.size(), size_t(params_.repeat_last_n));
        for (auto token = tokens.end() - n; token != tokens.end(); ++token) {
            ++penalised[*token];
        }
    }
    std::unordered_map<llama_token, float> lost;
    if (params_.dry_multiplier != 0.0f) {
        lost = dry_penalties(params_, tokens);
    }
    // These only lower: who is among the first k afterwards was among the first k + penalised before.
    const bool lowers =
        params_.repeat_penalty >= 1.0f && params_.frequency_penalty >= 0.0f && params_.presence_penalty >= 0.0f;
    const size_t n_lowered = penalised.size() + lost.size();
    const size_t k = chain_ ? size_t(params_.top_k) : 1;
    find_candidates(logits, lowers && k > 0 ? k + n_lowered : size_t(n_vocab_));
    for (llama_token_data & candidate : candidates_) {
        // Keskar et al. 2019 (arXiv 1909.05858), with llama.cpp's correction for negative logits; then OpenAI's.
        if (const auto found = penalised.find(candidate.id); found != penalised.end()) {
            float & logit = candidate.logit;
            logit = logit <= 0.0f ? logit * params_.repeat_penalty : logit / params_.repeat_penalty;
            logit -= float(found->second) * params_.frequency_penalty + params_.presence_penalty;
        }
        if (const auto found = lost.find(candidate.id); found != lost.end()) {
            candidate.logit -= found->second;
        }
    }
    llama_token_data_array array = {candidates_.data(), candidates_.size(), -1, false};
    const auto by_logit = [](const llama_token_data & a, const llama_token_data & b) { return a.logit < b.logit; };
    if (!chain_) {
        return std::max_element(array.data, array.data + array.size, by_logit)->id;
    }
    llama_sampler_apply(chain_.get(), &array);
    const float max = std::max_element(array.data, array.data + array.size, by_logit)->logit;
    double total = 0.0;
    for (size_t i = 0; i < array.size; ++i) {
        array.data[i].p = std::exp(array.data[i].logit - max);
        total += array.data[i].p;
    }
    double left = uniform(seed, tokens.size()) * total;
    llama_token last = array.data[0].id;
    for (size_t i = 0; i < array.size; ++i) {
        if (array.data[i].p > 0.0f) last = array.data[i].id;
        left -= array.data[i].p;
        if (left < 0.0) {
            return last;
        }
    }
    return last;  // rounding left a crumb
}

// The k largest logits are none below the k-th largest of the maxima of disjoint blocks. Listing and partly sorting
// all of a vocabulary for each token would cost as much as a tenth of a small model's decode.
void Sampler::find_candidates(const float * logits, size_t k) {
    candidates_.clear();
    maxima_.resize(size_t(n_vocab_ + block - 1) / block);
    if (k <= maxima_.size()) {
        for (size_t b = 0; b < maxima_.size(); ++b) {
            maxima_[b] = max_of(logits + b * block, std::min(block, n_vocab_ - int(b) * block));
        }
        ordered_ = maxima_;
        std::nth_element(ordered_.begin(), ordered_.begin() + (k - 1), ordered_.end(), std::greater<float>());
        const float least = ordered_[k - 1];
        for (size_t b = 0; b < maxima_.size(); ++b) {
            if (!(maxima_[b] >= least)) {
                continue;
            }
            const llama_token end = std::min<llama_token>(n_vocab_, llama_token(b + 1) * block);
            for (llama_token i = llama_token(b) * block; i < end; ++i) {
                if (logits[i] >= least) candidates_.push_back({i, logits[i], 0.0f});
            }
        }
    }
    if (candidates_.size() < k) {  // many are asked for, or logits are not numbers
        candidates_.resize(n_vocab_);
        for (llama_token i = 0; i < n_vocab_; ++i) {
            candidates_[i] = {i, logits[i], 0.0f};
        }
    }
}

int argmax(const float * logits, int n_vocab) {
    const float max = max_of(logits, n_vocab);
    return int(std::find(logits, logits + n_vocab, max) - logits) % n_vocab;
}

LogitStats logit_stats(const float * logits, int n_vocab, llama_token token) {
    const float max = max_of(logits, n_vocab);
    double sum = 0.0, weighted = 0.0;
    exp_sums(logits, n_vocab, max, &sum, &weighted);
    if (!std::isfinite(max) || !std::isfinite(sum) || !std::isfinite(weighted)) {
        throw Error(ErrorKind::decode_aborted,
                    "the model's logits are not finite; the steering is far too strong, or the file is damaged");
    }
    const double log_sum = std::log(sum);
    return {float(double(logits[token]) - max - log_sum), float(log_sum - weighted / sum)};
}

float log_sum_exp(const float * logits, int n_vocab) {
    const float max = max_of(logits, n_vocab);
    double sum = 0.0, weighted = 0.0;
    exp_sums(logits, n_vocab, max, &sum, &weighted);
    return float(max + std::log(sum));
}

std::vector<std::pair<llama_token, float>> top_logprobs(const float * logits, int n_vocab, int n) {
    n = std::min(n, n_vocab);
    std::vector<llama_token> ids(n_vocab);
    std::iota(ids.begin(), ids.end(), 0);
    std::partial_sort(ids.begin(), ids.begin() + n, ids.end(), [&](llama_token a, llama_token b) {
        return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
    });
    const float normaliser = log_sum_exp(logits, n_vocab);
    std::vector<std::pair<llama_token, float>> out;
    for (int i = 0; i < n; ++i) {
        out.emplace_back(ids[i], logits[ids[i]] - normaliser);
    }
    return out;
}

}  // namespace pyemo
