// A model file's header: refused by name or accepted, whatever its bytes are.
#include "fuzz_file.h"

#include "errors.h"
#include "model_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    const FuzzFile file(data, size);
    try {
        pyemo::check_model_file(file.path());
    } catch (const pyemo::Error &) {
    }
    return 0;
}
