#pragma once

#include <string>
#include <vector>

#include "base/dtype.h"

namespace calibatt::bench {

/// One attention call that is timed, as data. Self-attention of one sample; masks as in the heads of a video model: a
/// third of them a band around the diagonal, a third stripes at multiples of a frame, a third random.
struct Case {
  std::string name;
  DType dtype = DType::kF32;
  int num_tokens = 4352;  ///< 17 frames of 16×16, the default video of the default model
  int num_heads = 4;
  int head_dim = 64;
  int block = 64;          ///< tokens per query block and key block
  double density = 1.0;    ///< kept key blocks of every query block; 1: dense, without intervals
  bool summarize = false;  ///< skipped blocks take part as summary tokens
  bool energy = false;     ///< block energies in the same pass
  int anchor_rows = 0;     ///< computed rows per frame of 16; 0: all
};

/// A figure made of times that were taken in the same round.
struct Figure {
  enum class Kind {
    kShareOfFmaPeak,   ///< arithmetic of `of` per second, over the peak of float fused multiply-adds
    kShareOfBf16Peak,  ///< the same over the peak of bfloat16 dot products, where the processor has them
    kSpeedup,          ///< time of `over` / time of `of`
    kOverhead,         ///< time of `of` / time of `over`
    kEfficiency,       ///< time of `over` (dense) × density of `of` / time of `of`
  };
  std::string name;
  Kind kind;
  std::string of, over;
  double target = 0;  ///< 0: none, the figure is only reported
};

const std::vector<Case>& cases();
const std::vector<Figure>& figures();

/// Names under which torch's own attention is timed, on the inputs of the case of that dtype called dense.
inline constexpr const char* kTorchF32 = "torch_f32";
inline constexpr const char* kTorchBf16 = "torch_bf16";

}  // namespace calibatt::bench
