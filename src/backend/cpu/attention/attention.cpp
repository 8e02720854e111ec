#include "backend/cpu/attention/attention.h"

#include <vector>

#include "backend/cpu/attention/reference/attention_reference.h"
#include "backend/cpu/attention/simd/attention_simd.h"
#include "backend/validate_attention.h"
#include "base/error.h"

namespace calibatt::cpu {
namespace {

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorKind::kUsage, "attention: " + message);
}

/// Why a tile kernel cannot take this call here; `takes_f32` says whether it reads F32 inputs.
std::string simd_refusal(const SimdKernel& kernel, bool takes_f32, const AttentionCall& call) {
  if (!kernel.cpu_supports()) return "this processor lacks its instructions";
  if (!takes_f32 && call.q.dtype != DType::kBF16) return "inputs are not BF16";
  if (!(call.scale > 0)) return "the scale is not positive";  // it compares logits before they are scaled
  return {};
}

std::vector<AttentionKernel> make_kernel_table() {
  std::vector<AttentionKernel> table;
  const auto add = [&](const SimdKernel& kernel, bool takes_f32) {
    table.push_back({kernel.name, kernel.cpu_supports(), takes_f32,
                     [&kernel, takes_f32](const AttentionCall& call) { return simd_refusal(kernel, takes_f32, call); },
                     [&kernel](const AttentionCall& call) { run_tiles(call, kernel.ops()); }});
  };
  for (const SimdKernel& kernel : bf16_kernels()) add(kernel, false);
  for (const SimdKernel& kernel : float_kernels()) add(kernel, true);
  table.push_back({"reference", true, true, [](const AttentionCall&) { return std::string(); }, attention_reference});
  return table;
}

}  // namespace

void validate(const AttentionCall& call) {
  constexpr DType kTypes[] = {DType::kF32, DType::kBF16};
  validate_attention_call(call, kTypes);
}

std::span<const AttentionKernel> attention_kernels() {
  static const std::vector<AttentionKernel> table = make_kernel_table();
  return table;
}

const AttentionKernel& choose_attention_kernel(const AttentionCall& call, std::string_view name) {
  if (call.eight_bits && call.block_energy == nullptr) {
    refuse(
        "the CPU computes in 16 or 32 bits; in 8 bits a Hopper GPU does (backend cuda); leave --attention-dtype fp8 "
        "out");
  }
  std::string known;
  for (const AttentionKernel& kernel : attention_kernels()) {
    if (!name.empty() && kernel.name != name) {
      known += (known.empty() ? "" : ", ") + std::string(kernel.name);
      continue;
    }
    const std::string reason = kernel.refusal(call);
    if (reason.empty()) return kernel;
    if (!name.empty()) refuse("kernel " + std::string(name) + " refuses: " + reason);
  }
  refuse("no kernel is named " + std::string(name) + "; there are " + known);
}

std::string_view attention(const AttentionCall& call, std::string_view kernel) {
  validate(call);
  const AttentionKernel& chosen = choose_attention_kernel(call, kernel);
  chosen.run(call);
  return chosen.name;
}

}  // namespace calibatt::cpu
