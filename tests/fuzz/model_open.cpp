// A whole model file: opened, tokenized with and decoded, or refused by name, whatever its bytes are.
#include "fuzz_file.h"

#include <memory>

#include "engine.h"
#include "errors.h"
#include "log.h"
#include "model.h"

namespace {

void use(const std::string & path) {
    pyemo::ModelParams opened;
    opened.path = path;
    const auto model = std::make_shared<pyemo::Model>(opened, pyemo::Interrupted());
    model->metadata();
    model->special_tokens();
    pyemo::EngineParams params;
    params.n_ctx = params.n_batch = 32;
    params.n_outputs_max = 4;
    pyemo::Engine engine(model, params, pyemo::Interrupted());
    std::vector<llama_token> tokens = model->tokenize("a <s>\xff the", true, true);
    tokens.resize(std::min<size_t>(tokens.size(), 16));
    if (tokens.empty()) return;
    const int sequence = engine.add_sequence(pyemo::SamplerParams());
    engine.append(sequence, tokens);
    for (int i = 0; i < 3; ++i) engine.step({sequence}, {0});
    engine.rollback(sequence, 1);
    engine.step({sequence}, {0});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    const FuzzFile file(data, size);
    try {
        use(file.path());
    } catch (const pyemo::Error &) {
    }
    pyemo::drain_log();
    return 0;
}
