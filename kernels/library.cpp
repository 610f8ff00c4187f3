// The library as ONNX Runtime and Python see it: the operators of the domain "rankrt", and which kernels they use.
#include "operators/add_norm.h"
#include "operators/attention.h"
#include "operators/linear.h"
#include "operators/places.h"
#include "operators/round_tokens.h"

namespace {

const Described<Places> PLACES;
const Described<RoundTokens> ROUND_TOKENS;
const Described<Linear> LINEAR;
const Described<FloatLinear> FLOAT_LINEAR;
const Described<Attention> ATTENTION;
const Described<FloatAttention> FLOAT_ATTENTION;
const Described<AddNorm> ADD_NORM;

}  // namespace

// Return the name of the instruction set that is used, or an empty text where none of them runs here.
extern "C" [[gnu::visibility("default")]] const char* rankrt_instruction_set() {
    return kernels() ? kernels()->name : "";
}

// ONNX Runtime calls this when a session registers the library.
extern "C" [[gnu::visibility("default")]] onnxruntime::Status* RegisterCustomOps(onnxruntime::SessionOptions* options,
                                                                                 const onnxruntime::ApiBase* base) {
    const onnxruntime::Functions api{base->get_api(onnxruntime::VERSION)};
    // Without a table there is no way to say why; the runtime fails then, as it does not find the operators.
    if (!api.api) return nullptr;
    onnxruntime::Domain* domain = nullptr;
    if (auto* failure = api.create_domain("rankrt", &domain)) return failure;
    const onnxruntime::CustomOp* const all[] = {&PLACES,    &ROUND_TOKENS,    &LINEAR,  &FLOAT_LINEAR,
                                                &ATTENTION, &FLOAT_ATTENTION, &ADD_NORM};
    for (const auto* op : all)
        if (auto* failure = api.add_operator(domain, op)) return failure;
    return api.add_domain(options, domain);
}
