#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "backend/attention_call.h"

namespace calibatt::cpu {

/// A way to compute an AttentionCall on a CPU.
struct AttentionKernel {
  std::string_view name;  ///< "avx512_bf16", "avx512", "avx2", "sse4", "neon", …, "reference"
  bool runs_here;         ///< this processor has its instructions
  bool takes_f32;         ///< inputs may be F32; else they are BF16
  /// Why this kernel cannot take a (valid) call on this machine; empty when it can.
  std::function<std::string(const AttentionCall& call)> refusal;
  std::function<void(const AttentionCall& call)> run;
};

/// Every kernel that was compiled in, the fastest first. The last one is the reference, which refuses nothing.
std::span<const AttentionKernel> attention_kernels();

/// The first kernel of the table that takes the call, or the one of that name. Throws Error(kUsage) when there is no
/// kernel of that name, or when it refuses the call (with its reason).
const AttentionKernel& choose_attention_kernel(const AttentionCall& call, std::string_view name = {});

/// Throws Error(kUsage), naming the field, when shapes, dtypes or schedules of the call do not fit together.
void validate(const AttentionCall& call);

/// Validates, chooses, runs; returns the kernel's name. Nothing is written when it throws Error(kUsage).
std::string_view attention(const AttentionCall& call, std::string_view kernel = {});

}  // namespace calibatt::cpu
