#include "pipeline/precision.h"

#include "backend/cuda/attention/sm90_fp8/quantized.h"
#include "base/error.h"
#include "sparsity/head_deal.h"

namespace calibatt {
namespace {

Error other_type(const char* flag, const char* what, DType dtype) {
  return {ErrorKind::kUsage, std::string(flag) + " bf16: " + what + " of the arithmetic's type, which is " +
                                 (dtype == DType::kF32 ? "fp32" : "fp16") + " here; leave it out, or add --dtype bf16"};
}

}  // namespace

std::optional<DType> dtype_of(Precision precision) {
  switch (precision) {
    case Precision::kF32:
      return DType::kF32;
    case Precision::kBF16:
      return DType::kBF16;
    case Precision::kF16:
      return DType::kF16;
    case Precision::kAuto:
      break;
  }
  return std::nullopt;
}

DType eight_bit_type(WeightsPrecision asked, const EightBitOps& ops) {
  CALIBATT_ASSERT(is_eight_bits(asked));
  const DType type = asked == WeightsPrecision::kINT8 ? DType::kI8 : DType::kE4M3;
  ops.require(type);
  return type;
}

DType choose_dtype(Precision precision, const Backend& backend) {
  const DType usual = backend.has_fast_bf16() ? DType::kBF16 : DType::kF32, dtype = dtype_of(precision).value_or(usual);
  if (dtype != DType::kF16 || backend.has_fp16()) return dtype;
  throw Error(ErrorKind::kUsage, "--dtype fp16: the backend " + std::string(backend.name()) +
                                     " has no fp16 arithmetic; use bf16 or fp32, or --backend cuda");
}

void check_weights_dtype(WeightsPrecision asked, DType dtype) {
  if (asked == WeightsPrecision::kBF16 && dtype != DType::kBF16)
    throw other_type("--weights-dtype", "weights are", dtype);
}

void check_attention_dtype(AttentionDtype asked, DType dtype) {
  if (asked == AttentionDtype::kBF16 && dtype != DType::kBF16) {
    throw other_type("--attention-dtype", "self-attention is", dtype);
  }
}

void check_precision(const LoadOptions& options, const ModelFiles& files) {
  if (options.precision == Precision::kF16 && options.backend == "cpu") {
    throw Error(ErrorKind::kUsage,
                "--dtype fp16: the backend cpu has no fp16 arithmetic; use bf16 or fp32, or --backend cuda");
  }
  const std::optional<DType> dtype = dtype_of(options.precision);
  if (dtype) check_weights_dtype(options.weights, *dtype);
  if (is_eight_bits(options.weights)) {
    files.kept_layer_bytes(options.kept_layers, dtype.value_or(DType::kBF16));
  } else if (!options.kept_layers.empty()) {
    throw Error(ErrorKind::kUsage,
                "--keep-layers says which layers --weights-dtype fp8 or int8 leaves as they are; add that");
  }
}

bool is_eight_bits(WeightsPrecision precision) {
  return precision == WeightsPrecision::kFP8 || precision == WeightsPrecision::kINT8;
}

bool has_eight_bit_layers(const LoadOptions& options, const ModelFiles& files) {
  return is_eight_bits(options.weights) && !files.keeps_all_layers(options.kept_layers);
}

uint64_t eight_bit_attention_bytes(const ModelDescription& model, const VideoSize& size, bool planned, int num_ranks) {
  const AttentionGeometry geometry = model.geometry(size);
  cuda::AttentionArgs args;
  args.num_heads = num_ranks > 1 ? most_heads_of_a_rank(model.num_heads, num_ranks) : model.num_heads;
  args.head_dim = model.head_dim;
  args.num_queries = args.num_keys = geometry.num_tokens();
  args.num_summaries = planned ? geometry.num_key_blocks() : 0;
  args.norm.pending = true;  // takes a little more, and not every call has it
  return cuda::sm90_fp8::workspace_bytes(args, 0);
}

}  // namespace calibatt
