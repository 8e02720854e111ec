#pragma once

#include <optional>
#include <string>
#include <vector>

#include "calibatt/pipeline.h"
#include "models/video_model.h"
#include "pipeline/rank_layout.h"

namespace calibatt {

/// Where the ranks of one pipeline have their transformer's blocks (docs/decisions/0009…).
enum class WeightPlacement {
  kWhole,   ///< each rank all of them, on its device
  kShards,  ///< each rank a part of every block, on its device
  kHost,    ///< once for all ranks, in host memory
};
/// RunReport::weight_placement.
std::string weight_placement_name(WeightPlacement placement);

/// Refuses what is asked for and cannot be: Error(kUsage).
void check_weight_placement(const LoadOptions& options, const ModelDescription& model);

/// Bytes of weights on each device: whole, or with parts of the blocks on weight_ranks, and of the buffers for those
/// that it reads elsewhere what a device with whole weights has not. Runs may have steps without 8 bits.
uint64_t weight_bytes(const ModelFiles& files, const LoadOptions& options, int weight_ranks);

/// How a message goes on that says that a video of these ranks takes more than there is on a GPU; empty: nothing helps.
std::string more_room(const ModelDescription& model, const RankLayout& layout, int weight_ranks);

/// What the choice of a placement depends on, of the device that has least.
struct PlacementRoom {
  uint64_t whole = 0, shards = 0;     ///< bytes of weights on a device
  uint64_t video = 0;                 ///< what a video takes there beside them
  std::optional<uint64_t> available;  ///< absent: ranks compute in host memory
  std::string unreadable;             ///< which device cannot read whose memory; empty: all can
};
struct ChosenPlacement {
  WeightPlacement placement = WeightPlacement::kWhole;
  std::string message;  ///< one line for people, where they might wonder; or empty
};
/// Of several ranks. `options` passed check_weight_placement.
ChosenPlacement choose_weight_placement(const LoadOptions& options, const PlacementRoom& room);

}  // namespace calibatt
