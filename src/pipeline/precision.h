#pragma once

#include "backend/backend.h"
#include "backend/eight_bit_ops.h"
#include "models/video_model.h"

namespace calibatt {

/// Refuses what no machine computes of this model, before its weights are read. Throws Error(kUsage).
void check_precision(const LoadOptions& options, const ModelFiles& files);

/// Whether 8 bits are asked for.
bool is_eight_bits(WeightsPrecision precision);
/// Whether linear layers are in 8 bits: that is asked for, and --keep-layers leaves some.
bool has_eight_bit_layers(const LoadOptions& options, const ModelFiles& files);

/// The type of linear layers in 8 bits, which are asked for. Throws Error(kUsage) where `ops` has none of it here.
DType eight_bit_type(WeightsPrecision asked, const EightBitOps& ops);

/// Throws Error(kUsage) where linear layers (options.weights) or self-attention are asked for in bf16 by name, and the
/// run's arithmetic is of another type.
void check_weights_dtype(WeightsPrecision asked, DType dtype);
void check_attention_dtype(AttentionDtype asked, DType dtype);

/// The type that is asked for by name; none for kAuto, which is chosen by the machine.
std::optional<DType> dtype_of(Precision precision);
/// That of a run on this machine. Throws Error(kUsage) where it has no such arithmetic.
DType choose_dtype(Precision precision, const Backend& backend);

/// What self-attention in 8 bits takes on a GPU beside its inputs, which it quantises first. planned: with a plan,
/// which may have summaries; num_ranks: that share it.
uint64_t eight_bit_attention_bytes(const ModelDescription& model, const VideoSize& size, bool planned,
                                   int num_ranks = 1);

}  // namespace calibatt
