#include "pipeline/weight_placement.h"

#include <array>
#include <cstdio>

#include "base/error.h"
#include "pipeline/options.h"
#include "pipeline/precision.h"

namespace calibatt {
namespace {

std::string gigabytes(uint64_t bytes) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.1f GB", static_cast<double>(bytes) * 1e-9);
  return text.data();
}

}  // namespace

std::string weight_placement_name(WeightPlacement placement) {
  if (placement == WeightPlacement::kHost) return "host";
  return placement == WeightPlacement::kShards ? "shards" : "whole";
}

void check_weight_placement(const LoadOptions& options, const ModelDescription& model) {
  const bool asked = options.shard_weights == ShardWeights::kOn, several = options.devices.size() > 1;
  if (asked && !several) {
    throw Error(ErrorKind::kUsage,
                "--shard-weights on: one GPU has none to share weights with; add --gpus N, or give --offload in its "
                "place");
  }
  if (asked && options.offload) {
    throw Error(ErrorKind::kUsage,
                "--shard-weights on keeps weights on the GPUs, and --offload in host memory, once for all GPUs; leave "
                "one of them out");
  }
  if (model.shards_weights || !several || !(asked || options.offload)) return;
  throw Error(
      ErrorKind::kUsage,
      std::string(asked ? "--shard-weights on" : "--offload with several GPUs") + ": " + model.kind +
          " is held whole by each GPU; leave it out" +
          (is_eight_bits(options.weights) ? "" : ". Where memory is short, --weights-dtype int8 (or fp8) takes less"));
}

std::string more_room(const ModelDescription& model, const RankLayout& layout, int weight_ranks) {
  if (layout.num_ranks == 1) return ", or give --offload";
  if (layout.whole_weights) return ", or take one GPU, with --offload";
  if (!model.shards_weights) return "";
  if (weight_ranks > 1) return ", or give --offload";
  return ", or give --shard-weights on, by which each GPU keeps a part of the weights, or --offload";
}

uint64_t weight_bytes(const ModelFiles& files, const LoadOptions& options, int weight_ranks) {
  const DType dtype = dtype_of(options.precision).value_or(DType::kBF16);
  const bool eight_bits = has_eight_bit_layers(options, files);
  const auto memory = [&](int ranks) {
    Arithmetic arithmetic{dtype, eight_bits, eight_bits ? 1 : 0, 1, 1, ranks};
    if (eight_bits) arithmetic.kept_layers = options.kept_layers;
    return files.memory(video_size(with_defaults({}, files.description())), arithmetic);
  };
  const MemoryEstimate needs = memory(weight_ranks);
  return needs.weights + needs.activations - memory(1).activations;
}

ChosenPlacement choose_weight_placement(const LoadOptions& options, const PlacementRoom& room) {
  const std::string num_ranks = std::to_string(options.devices.size());
  if (options.offload) return {room.available ? WeightPlacement::kHost : WeightPlacement::kWhole, ""};
  if (options.shard_weights == ShardWeights::kOn) return {WeightPlacement::kShards, ""};
  if (options.shard_weights == ShardWeights::kOff || !room.available) return {};
  const uint64_t needed = room.whole + room.video;
  if (needed <= *room.available) return {};
  const std::string reason = "whole, they and a video take about " + gigabytes(needed) + " of a GPU's memory, and " +
                             gigabytes(*room.available) + " are free";
  if (room.shards == 0) return {};  // a model that has none
  if (!room.unreadable.empty()) {
    return {WeightPlacement::kWhole, "each GPU holds all weights, and may be too small for them (" + reason + "): " +
                                         room.unreadable + ", so that they cannot share them; --offload does without"};
  }
  if (room.shards >= room.whole) {  // parts are of all transformers, of which whole ones are there one at a time
    return {WeightPlacement::kWhole, "each GPU holds all weights, and may be too small for them (" + reason +
                                         "): parts of them would take " + gigabytes(room.shards) +
                                         "; --offload or more GPUs take less"};
  }
  std::string message = "each of " + num_ranks + " GPUs keeps 1/" + num_ranks +
                        " of the transformer's blocks, and gathers the others as it comes to them: " + reason;
  if (room.shards + room.video > *room.available) {
    message += "; so they take " + gigabytes(room.shards + room.video) +
               ", and may not fit either: choose a smaller size, or give --offload";
  }
  return {WeightPlacement::kShards, message};
}

}  // namespace calibatt
