// Steers and reads the residual stream from llama.cpp's evaluation callback.
//
// llama.cpp asks the callback about each graph node before computing it. For the block outputs that
// a decode needs (`l_out-<il>`) it answers yes; llama.cpp then computes up to there, waits, and calls
// again with the tensor filled: float32, [n_embd, rows]. What is written into it is what the next
// block reads. docs/architecture.md has the reasons and the measurements.
#pragma once

#include <string>
#include <vector>

#include "gauge.h"
#include "llama.h"
#include "mix.h"
#include "reader.h"

namespace pyemo {

// What the hook does to one row of the batch. Pointers live until the decode ends.
struct RowPlan {
    llama_token token = 0;
    int pos = 0;
    bool output = false;
    const Mix * mix = nullptr;  // nullptr: leave alone
    Reader * reader = nullptr;
    const std::vector<Gauge> * gauges = nullptr;        // read on output rows
    std::vector<GaugeReading> * readings = nullptr;     // one for each gauge
    float * dose = nullptr;  // out: |direct displacement at the last block| / |h|
};

class ResidualHook {
public:
    ResidualHook(int n_layer, int n_embd, bool through_copies);

    // Before llama_decode. skip_head: stop after the last layer wanted; the logits are then garbage.
    void begin(std::vector<RowPlan> rows, bool skip_head);
    // After it. True if everything wanted was seen exactly once; else why() says what was not.
    bool end();
    const std::string & why() const { return why_; }
    // True if what went wrong is the strength of the steering, not the model.
    bool overflowed() const { return overflowed_; }

    // True if memory ran out in the callback: the caller throws it.
    bool out_of_memory() const { return out_of_memory_; }

    // Asks for every layer, changes nothing: the proof that this model can be hooked.
    void begin_probe(std::vector<RowPlan> rows);
    // The tensors of the KV cache that hold each layer's keys, as the probe saw them; nullptr where it saw none.
    const std::vector<const ggml_tensor *> & cached_keys() const { return cached_keys_; }

    static bool callback(ggml_tensor * tensor, bool ask, void * self) noexcept;

private:
    bool on_ask(ggml_tensor * tensor);
    bool on_block_output(ggml_tensor * tensor, int il);
    void on_row(int il, size_t row, float * h);
    void learn_scale(const ggml_tensor * tensor, int il);
    void carry_displacement(size_t row, int il);
    bool fail(const std::string & why);
    void check_rows(const ggml_tensor * inp_tokens);

    int n_layer_, n_embd_;
    bool through_copies_;  // by ggml_backend_tensor_get/set, as off the CPU
    bool active_ = false;
    bool skip_head_ = false;
    bool is_probe_ = false;
    std::vector<const ggml_tensor *> cached_keys_;  // by layer
    std::vector<RowPlan> rows_;
    std::vector<char> wanted_;  // by layer
    int last_wanted_ = -1;
    std::vector<int> seen_;     // by layer
    bool rows_checked_ = false;
    bool out_of_memory_ = false;
    bool outputs_only_ = false;         // the last block has dropped rows without output
    std::vector<int32_t> output_rows_;  // the rows left then
    std::vector<float> copy_;
    std::vector<float> scale_;                      // by layer: what the block multiplies the whole stream by, mostly 1
    std::vector<std::vector<float>> displacement_;  // by row: what is left of what steering added, (n_embd,) or empty
    std::vector<int> displaced_at_;                 // by row: the block at whose output that is, or -1
    std::vector<std::vector<float>> held_;          // by row: what the probes of its mix say so far
    std::vector<float> before_;
    std::string why_;
    bool overflowed_ = false;
};

}  // namespace pyemo
