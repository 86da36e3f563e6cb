// Edits of the KV cache: what is added to the values (and keys) of a few cells, through llama.cpp's public state
// functions. The cells are tagged for a spare sequence, read, changed, and given back in the place of the old ones.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine.h"
#include "errors.h"
#include "ggml-backend.h"
#include "log.h"

namespace pyemo {

// Which layer's cells come where in llama.cpp's state: a model with sliding windows has two caches, and nothing public
// says which layers are in which. The two tokens of the probe are in the first two cells, so each layer is known by its key.
void Engine::prove_cache(bool decoded) {
    try {
        if (model_->is_recurrent_or_hybrid()) {
            throw Error(ErrorKind::steering_unsupported, "a recurrent model has a state in the place of cells; its cache cannot be edited");
        }
        if (spare_ < 0) {
            throw Error(ErrorKind::input, "the cells of this engine's cache cannot be read or edited: open it with kv_unified, and "
                        "n_seq_max below 256");
        }
        if (!decoded) {
            throw Error(ErrorKind::steering_unsupported, "this model's cache cannot be edited: " + steering_unsupported_);
        }
        const CacheState state(take_cells(0, 0, 2), 0, 2);
        std::vector<char> taken(size_t(n_layer_), 0);
        for (int entry = 0; entry < state.n_layers(); ++entry) {
            int found = -1;
            std::vector<uint8_t> key(state.n_key_bytes(entry));
            for (int il = 0; il < n_layer_ && found < 0; ++il) {
                const ggml_tensor * keys = hook_.cached_keys()[size_t(il)];
                if (keys == nullptr || taken[size_t(il)] || ggml_nbytes(keys) < key.size()) continue;
                ggml_backend_tensor_get(keys, key.data(), 0, key.size());
                if (std::memcmp(key.data(), state.key_bytes(entry, 0), key.size()) == 0) found = il;
            }
            if (found < 0) {
                throw Error(ErrorKind::steering_unsupported, "this model's cache cannot be edited: its layers cannot be told apart");
            }
            taken[size_t(found)] = 1;
            cache_layers_.push_back(found);
            cache_widths_.emplace_back(state.width(entry, true), state.width(entry, false));
        }
    } catch (const Error & error) {
        cache_refusal_ = error;
    }
}

void Engine::require_cache() const {
    if (cache_refusal_) {
        throw *cache_refusal_;
    }
}

std::vector<std::tuple<int, int, int>> Engine::cache_widths() const {
    require_cache();
    std::vector<std::tuple<int, int, int>> out;
    for (size_t i = 0; i < cache_layers_.size(); ++i) {
        out.emplace_back(cache_layers_[i], cache_widths_[i].first, cache_widths_[i].second);
    }
    return out;
}

void Engine::check_deltas(int n_cells, const std::vector<CacheDelta> & deltas) const {
    for (const CacheDelta & delta : deltas) {
        const auto found = std::find(cache_layers_.begin(), cache_layers_.end(), delta.il);
        if (found == cache_layers_.end()) {
            throw Error(ErrorKind::vector_shape, "the model has no cells at layer " + std::to_string(delta.il));
        }
        const auto & widths = cache_widths_[size_t(found - cache_layers_.begin())];
        const int width = delta.of_keys ? widths.first : widths.second;
        if (delta.rows.size() != size_t(n_cells) * size_t(width)) {
            throw Error(ErrorKind::vector_shape, "layer " + std::to_string(delta.il) + " keeps " + std::to_string(width) +
                        " numbers of a token's " + (delta.of_keys ? "key" : "value") + ", and for " + std::to_string(n_cells) +
                        " cells " + std::to_string(delta.rows.size()) + " were given");
        }
        if (!std::all_of(delta.rows.begin(), delta.rows.end(), [](float x) { return std::isfinite(x); })) {
            throw Error(ErrorKind::input, "the edit of layer " + std::to_string(delta.il) + " is not finite; lower its strength");
        }
    }
}

std::vector<uint8_t> Engine::take_cells(int slot, int begin, int end) {
    llama_memory_seq_rm(memory_, spare_, -1, -1);
    llama_memory_seq_cp(memory_, slot, spare_, begin, end);
    std::vector<uint8_t> cells(llama_state_seq_get_size(ctx_.get(), spare_));
    const size_t n = llama_state_seq_get_data(ctx_.get(), cells.data(), cells.size(), spare_);
    llama_memory_seq_rm(memory_, spare_, -1, -1);
    if (n == 0 || n != cells.size() || failing_cache_step_ == 1) {
        throw Error(ErrorKind::decode_aborted, "llama.cpp could not read the cells: " + last_error_line());
    }
    return cells;
}

// Puts cells where the sequence has none.
bool Engine::put_cells(int slot, int begin, int end, const std::vector<uint8_t> & cells) {
    const bool done = llama_state_seq_set_data(ctx_.get(), cells.data(), cells.size(), spare_) == cells.size();
    if (done) {
        llama_memory_seq_cp(memory_, spare_, slot, begin, end);
        for (int pos = begin; pos < end; ++pos) sequences_[slot].cells[size_t(pos)] = n_cells_named_++;
    }
    llama_memory_seq_rm(memory_, spare_, -1, -1);
    return done;
}

// The old ones go first: their place is then the first that is free, and the order of the cells stays, by which sums round.
void Engine::replace_cells(int slot, int begin, int end, const std::vector<uint8_t> & cells, const std::vector<uint8_t> & old) {
    Sequence & s = sequences_[slot];
    llama_memory_seq_rm(memory_, slot, begin, end);
    if (failing_cache_step_ < 2 && put_cells(slot, begin, end, cells)) {
        return;
    }
    if (failing_cache_step_ == 3 || !put_cells(slot, begin, end, old)) {
        llama_memory_seq_rm(memory_, slot, begin, -1);  // they are pending again
        s.n_decoded = begin;
        s.cells.resize(size_t(begin));
        s.has_logits = false;
    }
    throw Error(ErrorKind::decode_aborted, "llama.cpp could not write the cells: " + last_error_line());
}

// A cell that forks share stays theirs, and the edited one is another.
void Engine::require_cells_to_replace(int slot, int begin, int end) const {
    const Sequence & s = sequences_[slot];
    int n_shared = 0;
    for (int pos = begin; pos < end; ++pos) {
        n_shared += std::any_of(sequences_.begin(), sequences_.end(), [&](const Sequence & other) {
            return &other != &s && other.cells.size() > size_t(pos) && other.cells[size_t(pos)] == s.cells[size_t(pos)];
        });
    }
    if (n_shared > n_ctx_ - n_held_cells()) {
        throw Error(ErrorKind::context_full, "the context of n_ctx = " + std::to_string(n_ctx_) + " cells has no room for " +
                    std::to_string(n_shared) + " more, which an edit of cells that forks share needs; close a sequence, or open "
                    "the engine with a larger n_ctx");
    }
}

void Engine::apply_edit(int slot, CacheEdit & edit) {
    Sequence & s = sequences_[slot];
    const int n_cells = edit.end - edit.begin;
    require_cells_to_replace(slot, edit.begin, edit.end);
    auto before = std::make_shared<Before>();
    before->cells = take_cells(slot, edit.begin, edit.end);
    before->n_tokens = s.tokens.size();
    before->n_returns = s.n_returns;
    if (s.n_decoded == int(s.tokens.size()) && s.n_decoded > edit.end && s.has_logits) {
        before->last = take_cells(slot, s.n_decoded - 1, s.n_decoded);
        const float * row = logits_of(s);
        before->logits.assign(row, row + model_->n_vocab());
    }
    CacheState state(before->cells, edit.begin, edit.end);
    for (const CacheDelta & delta : *edit.deltas) {
        const int entry = int(std::find(cache_layers_.begin(), cache_layers_.end(), delta.il) - cache_layers_.begin());
        const int width = state.width(entry, delta.of_keys);
        for (int cell = 0; cell < n_cells; ++cell) {
            for (int i = 0; i < width; ++i) {
                if (!state.add(entry, delta.of_keys, edit.begin + cell, i, delta.rows[size_t(cell) * size_t(width) + size_t(i)])) {
                    throw Error(ErrorKind::decode_aborted, "the edit is far too strong: it takes layer " + std::to_string(delta.il) +
                                "'s cells out of " + params_.kv_type + "'s range; lower the strength");
                }
            }
        }
    }
    replace_cells(slot, edit.begin, edit.end, state.bytes(), before->cells);
    edit.before = std::move(before);
}

// Those whose last cell has just been decoded, in their order.
void Engine::apply_edits(int slot) {
    Sequence & s = sequences_[slot];
    int begin = s.n_decoded;
    try {
        for (CacheEdit & edit : s.edits) {
            if (edit.deltas && edit.end == s.n_decoded) {
                begin = edit.begin;
                apply_edit(slot, edit);
            }
        }
    } catch (...) {
        rewind(slot, begin);  // tokens whose edit has failed are pending again
        throw;
    }
}

// So that the next logits see an edit, or its end.
void Engine::decode_last_again(int slot) {
    Sequence & s = sequences_[slot];
    rewind(slot, int(s.tokens.size()) - 1);
    s.has_logits = false;
}

void Engine::edit_cache(int seq, int begin, int end, std::vector<CacheDelta> deltas) {
    const Turn turn(*this);
    const int slot = slot_of(seq);
    Sequence & s = sequences_[slot];
    require_cache();
    require_range("first position", begin, 0, int(s.tokens.size()) - 1);
    require_range("end of the positions", end, begin + 1, int(s.tokens.size()));
    check_deltas(end - begin, deltas);
    for (const CacheEdit & edit : s.edits) {
        if (begin < edit.end && edit.begin < end && (begin != edit.begin || end != edit.end)) {
            throw Error(ErrorKind::input, "positions " + std::to_string(edit.begin) + " to " + std::to_string(edit.end - 1) +
                        " have an edit that covers some of these cells and others; edit the same cells, or undo that one first");
        }
    }
    const bool is_zero = std::all_of(deltas.begin(), deltas.end(), [](const CacheDelta & delta) {
        return std::all_of(delta.rows.begin(), delta.rows.end(), [](float x) { return x == 0.0f; });
    });
    CacheEdit edit{begin, end, nullptr, nullptr};
    if (!is_zero) {
        edit.deltas = std::make_shared<const std::vector<CacheDelta>>(std::move(deltas));
        if (s.n_decoded >= end) {
            apply_edit(slot, edit);
        }
    }
    s.edits.push_back(std::move(edit));
    if (!is_zero && int(s.tokens.size()) > end) {
        decode_last_again(slot);
    }
}

void Engine::undo_cache_edit(int seq) {
    const Turn turn(*this);
    const int slot = slot_of(seq);
    Sequence & s = sequences_[slot];
    if (s.edits.empty()) {
        throw Error(ErrorKind::input, "the sequence's cache has no edit to undo");
    }
    const CacheEdit edit = s.edits.back();
    if (!edit.deltas || s.n_decoded < edit.end) {
        s.edits.pop_back();  // it has not acted
        return;
    }
    require_cells_to_replace(slot, edit.begin, edit.end);
    replace_cells(slot, edit.begin, edit.end, edit.before->cells, take_cells(slot, edit.begin, edit.end));
    s.edits.pop_back();
    const int n = int(s.tokens.size());
    if (n == edit.end) {
        return;
    }
    decode_last_again(slot);
    const Before & before = *edit.before;
    if (!before.last.empty() && before.n_tokens == s.tokens.size() && before.n_returns == s.n_returns && s.n_decoded == n - 1) {
        s.cells.push_back(n_cells_named_++);
        if (!put_cells(slot, n - 1, n, before.last)) {
            s.cells.pop_back();
            return;  // it is pending, and will be computed
        }
        s.n_decoded = n;
        s.saved_logits = before.logits;
        s.logits_row = -1;
        s.has_logits = true;
    }
}

std::vector<CacheRows> Engine::read_cache(int seq, int begin, int end) {
    const Turn turn(*this);
    const int slot = slot_of(seq);
    Sequence & s = sequences_[slot];
    require_cache();
    require_range("first position", begin, 0, int(s.tokens.size()) - 1);
    require_range("end of the positions", end, begin + 1, int(s.tokens.size()));
    if (s.n_decoded < end) {
        forward_unlocked({slot}, false);
    }
    const CacheState state(take_cells(slot, begin, end), begin, end);
    std::vector<CacheRows> out;
    for (int entry = 0; entry < state.n_layers(); ++entry) {
        CacheRows rows{cache_layers_[size_t(entry)], {}, {}};
        for (int pos = begin; pos < end; ++pos) {
            for (int i = 0; i < state.width(entry, true); ++i) rows.keys.push_back(state.get(entry, true, pos, i));
            for (int i = 0; i < state.width(entry, false); ++i) rows.values.push_back(state.get(entry, false, pos, i));
        }
        out.push_back(std::move(rows));
    }
    return out;
}

void Engine::fail_cache_step(int step) {
    const Turn turn(*this);
    failing_cache_step_ = step;
}

}  // namespace pyemo
