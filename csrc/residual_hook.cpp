#include "residual_hook.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "ggml-backend.h"
#include "ggml.h"

namespace pyemo {
namespace {

// The number after a prefix, or -1 where the name is not these two.
int number_after(const char * prefix, const char * name) {
    const size_t n = std::strlen(prefix);
    if (std::strncmp(name, prefix, n) != 0) {
        return -1;
    }
    char * end = nullptr;
    const long number = std::strtol(name + n, &end, 10);
    return *end == '\0' && end != name + n ? int(number) : -1;
}

// The layer of a block output's name, or -1. A view of it has a suffix and is not meant.
int block_output_layer(const char * name) { return number_after("l_out-", name); }

// Inputs are set before the first node is asked for, so their values can be read here.
std::vector<int32_t> read_i32(const ggml_tensor * tensor) {
    std::vector<int32_t> values(size_t(ggml_nelements(tensor)));
    ggml_backend_tensor_get(tensor, values.data(), 0, values.size() * sizeof(int32_t));
    return values;
}

}  // namespace

ResidualHook::ResidualHook(int n_layer, int n_embd, bool through_copies)
    : n_layer_(n_layer), n_embd_(n_embd), through_copies_(through_copies), wanted_(n_layer, 0), seen_(n_layer, 0),
      scale_(n_layer, 1.0f) {}

void ResidualHook::begin(std::vector<RowPlan> rows, bool skip_head) {
    rows_ = std::move(rows);
    std::fill(wanted_.begin(), wanted_.end(), 0);
    displacement_.resize(rows_.size());
    displaced_at_.assign(rows_.size(), -1);
    held_.resize(rows_.size());
    for (size_t r = 0; r < rows_.size(); ++r) {
        const RowPlan & row = rows_[r];
        const bool gauged = row.output && row.gauges != nullptr && !row.gauges->empty();
        held_[r].assign(row.mix != nullptr ? row.mix->n_probes() : 0, 0.0f);
        if (row.mix != nullptr) {
            for (int il = 0; il < n_layer_; ++il) {
                wanted_[il] |= char(row.mix->acts_on(il));
            }
        }
        if (row.reader != nullptr && row.reader->wants(row.pos)) {
            for (int il : row.reader->layers()) wanted_[il] = 1;
        }
        if (gauged) {
            for (const Gauge & gauge : *row.gauges) wanted_[gauge.il] = 1;
            row.readings->assign(row.gauges->size(), GaugeReading());
            *row.dose = 0.0f;
            if (row.mix != nullptr) wanted_[n_layer_ - 1] = 1;
        }
        displacement_[r].assign(gauged && row.mix != nullptr ? n_embd_ : 0, 0.0f);
    }
    last_wanted_ = -1;
    for (int il = 0; il < n_layer_; ++il) {
        if (wanted_[il]) last_wanted_ = il;
    }
    active_ = last_wanted_ >= 0;
    skip_head_ = skip_head && active_;
    is_probe_ = false;
    std::fill(seen_.begin(), seen_.end(), 0);
    rows_checked_ = outputs_only_ = overflowed_ = out_of_memory_ = false;
    why_.clear();
}

void ResidualHook::begin_probe(std::vector<RowPlan> rows) {
    begin(std::move(rows), false);
    cached_keys_.assign(size_t(n_layer_), nullptr);
    std::fill(wanted_.begin(), wanted_.end(), 1);
    last_wanted_ = n_layer_ - 1;
    active_ = is_probe_ = true;
}

bool ResidualHook::end() {
    if (active_ && why_.empty()) {
        if (!rows_checked_) {
            fail("its graph has no token lookup to check the order of rows against");
        }
        for (int il = 0; il < n_layer_; ++il) {
            if (wanted_[il] && seen_[il] != 1) {
                fail("block " + std::to_string(il) + " shows its output " + std::to_string(seen_[il]) + " times, not once");
                break;
            }
        }
    }
    active_ = false;
    return why_.empty() && !out_of_memory_;
}

// llama.cpp is C here: nothing may be thrown through it. The only thing that can throw is memory
// running out, which stops the graph; the decode then throws it.
bool ResidualHook::callback(ggml_tensor * tensor, bool ask, void * self) noexcept {
    auto & hook = *static_cast<ResidualHook *>(self);
    if (!hook.active_) {
        return false;
    }
    try {
        return ask ? hook.on_ask(tensor) : hook.on_block_output(tensor, block_output_layer(tensor->name));
    } catch (const std::bad_alloc &) {
        hook.out_of_memory_ = true;
        return false;
    }
}

bool ResidualHook::on_ask(ggml_tensor * tensor) {
    if (tensor->op == GGML_OP_GET_ROWS && tensor->src[1] != nullptr) {
        const char * source = tensor->src[1]->name;
        if (!rows_checked_ && std::strcmp(source, "inp_tokens") == 0) {
            check_rows(tensor->src[1]);
        } else if (!outputs_only_ && std::strcmp(source, "out_ids") == 0) {
            output_rows_ = read_i32(tensor->src[1]);
            outputs_only_ = true;
        }
    }
    if (is_probe_ && tensor->op == GGML_OP_SET_ROWS && tensor->view_src != nullptr) {
        const int of_keys = number_after("cache_k_l", tensor->view_src->name);
        if (of_keys >= 0 && of_keys < n_layer_) cached_keys_[size_t(of_keys)] = tensor->view_src;
    }
    const int il = block_output_layer(tensor->name);
    if (il < 0 || il >= n_layer_) {
        return false;
    }
    if (is_probe_) {
        learn_scale(tensor, il);
    }
    return wanted_[il];
}

// Gemma 4 multiplies the whole stream by a number of its own at each block's end, and with it what was added before.
// The product is the block's output itself.
void ResidualHook::learn_scale(const ggml_tensor * tensor, int il) {
    const ggml_tensor * factor = tensor->op == GGML_OP_MUL ? tensor->src[1] : nullptr;
    const bool is_one_number = factor != nullptr && factor->type == GGML_TYPE_F32 && ggml_nelements(factor) == 1;
    if (is_one_number && std::strstr(factor->name, ".layer_output_scale.") != nullptr) {
        ggml_backend_tensor_get(factor, &scale_[il], 0, sizeof(float));
    }
}

// The displacement of a row as it is at the output of block il, before that block is steered.
void ResidualHook::carry_displacement(size_t r, int il) {
    float factor = 1.0f;
    for (int block = displaced_at_[r] + 1; block <= il; ++block) {
        factor *= scale_[block];
    }
    displaced_at_[r] = il;
    if (factor != 1.0f) {
        for (float & x : displacement_[r]) x *= factor;
    }
}

// The order of rows is llama.cpp's choice (split_simple keeps ours, split_equal does not), so it is
// read from the graph's own input instead of believed.
void ResidualHook::check_rows(const ggml_tensor * inp_tokens) {
    const std::vector<int32_t> tokens = read_i32(inp_tokens);
    bool same = tokens.size() == rows_.size();
    for (size_t r = 0; same && r < rows_.size(); ++r) {
        same = tokens[r] == rows_[r].token;
    }
    if (!same) {
        fail("llama.cpp computes the batch's rows in another order than they were given");
        return;
    }
    rows_checked_ = true;
}

bool ResidualHook::fail(const std::string & why) {
    if (why_.empty()) {
        why_ = why;
    }
    return false;  // stops the graph
}

bool ResidualHook::on_block_output(ggml_tensor * tensor, int il) {
    if (!why_.empty()) {
        return false;
    }
    const size_t n_rows = outputs_only_ ? output_rows_.size() : rows_.size();
    const bool as_expected = tensor->type == GGML_TYPE_F32 && tensor->ne[0] == n_embd_ && tensor->ne[2] == 1 &&
                             tensor->ne[3] == 1 && size_t(tensor->ne[1]) == n_rows && ggml_is_contiguous(tensor);
    if (!as_expected) {
        return fail("block " + std::to_string(il) + "'s output is " + ggml_type_name(tensor->type) + " [" +
                    std::to_string(tensor->ne[0]) + ", " + std::to_string(tensor->ne[1]) + ", " +
                    std::to_string(tensor->ne[2]) + ", " + std::to_string(tensor->ne[3]) + "], not f32 [" +
                    std::to_string(n_embd_) + ", " + std::to_string(n_rows) + ", 1, 1]");
    }
    if (!rows_checked_) {
        return fail("its graph has no token lookup to check the order of rows against");
    }
    ++seen_[il];
    if (n_rows > 0) {
        ggml_backend_buffer_t buffer = tensor->view_src != nullptr ? tensor->view_src->buffer : tensor->buffer;
        const bool copies = through_copies_ || !ggml_backend_buffer_is_host(buffer);
        float * data = static_cast<float *>(tensor->data);
        if (copies) {
            copy_.resize(n_rows * size_t(n_embd_));
            ggml_backend_tensor_get(tensor, copy_.data(), 0, copy_.size() * sizeof(float));
            data = copy_.data();
        }
        for (size_t i = 0; i < n_rows; ++i) {
            on_row(il, outputs_only_ ? size_t(output_rows_[i]) : i, data + i * size_t(n_embd_));
            if (!why_.empty()) {
                return false;
            }
        }
        if (copies) {
            ggml_backend_tensor_set(tensor, copy_.data(), 0, copy_.size() * sizeof(float));
        }
    }
    return !(skip_head_ && il == last_wanted_);
}

void ResidualHook::on_row(int il, size_t r, float * h) {
    RowPlan & row = rows_[r];
    std::vector<float> & displacement = displacement_[r];
    if (!displacement.empty()) {
        carry_displacement(r, il);
    }
    if (row.mix != nullptr && row.mix->acts_on(il)) {
        if (displacement.empty()) {
            row.mix->apply(il, h, held_[r].data());
        } else {
            before_.assign(h, h + n_embd_);
            row.mix->apply(il, h, held_[r].data());
            for (int i = 0; i < n_embd_; ++i) {
                displacement[i] += h[i] - before_[i];
            }
        }
        // A row that is not finite, or would not stay so, must not reach the KV cache: attention multiplies
        // cells it does not want by zero, and so one sequence's infinity would be every sequence's NaN.
        if (!std::isfinite(dot(h, h, n_embd_))) {
            overflowed_ = true;
            fail("it takes the output of block " + std::to_string(il) + " at position " + std::to_string(row.pos) +
                 " out of float32's range");
            return;
        }
    }
    if (row.reader != nullptr && row.reader->wants(row.pos)) {
        const std::vector<int> & layers = row.reader->layers();
        for (size_t k = 0; k < layers.size(); ++k) {
            if (layers[k] == il) row.reader->take(k, row.pos, h);
        }
    }
    if (!row.output || row.gauges == nullptr) {
        return;
    }
    for (size_t g = 0; g < row.gauges->size(); ++g) {
        const Gauge & gauge = (*row.gauges)[g];
        if (gauge.il != il) {
            continue;
        }
        const float dose = displacement.empty() ? 0.0f : dot(displacement.data(), gauge.unit.data(), n_embd_);
        const float projection = dot(h, gauge.unit.data(), n_embd_);
        (*row.readings)[g] = {(projection - dose - gauge.neutral) / gauge.residual_norm, dose / gauge.residual_norm};
    }
    if (il == n_layer_ - 1 && !displacement.empty()) {
        const float length = norm(h, n_embd_);
        *row.dose = length > 0.0f ? norm(displacement.data(), n_embd_) / length : 0.0f;
    }
}

}  // namespace pyemo
