#include "pipeline/rank_layout.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/error.h"
#include "calibatt/counted.h"
#include "pipeline/options.h"

namespace calibatt {
namespace {

bool every_step_is_guided(const GenerateOptions& options, const ModelDescription& model) {
  const std::vector<StepSettings> steps =
      make_steps(*make_scheduler(options, model), model.experts, guidance_scales(options));
  return std::ranges::all_of(steps, [](const StepSettings& step) { return step.guided(); });
}

std::string devices_flag(int num_ranks, const std::string& devices_source) {
  return devices_source.empty() ? "--gpus " + std::to_string(num_ranks) : devices_source;
}

}  // namespace

std::string devices_flag(const LoadOptions& options) {
  if (options.devices_source.empty() && options.devices.size() == 1) {
    return "--device " + std::to_string(options.devices.front());
  }
  return devices_flag(static_cast<int>(options.devices.size()), options.devices_source);
}

void check_devices(const LoadOptions& options) {
  if (options.devices.empty()) throw Error(ErrorKind::kUsage, "--device: names no device; give an index, such as 0");
  if (options.devices.size() > size_t{kMostDevices}) {
    throw Error(ErrorKind::kUsage, "--device: names " + std::to_string(options.devices.size()) +
                                       " devices; give at most " + std::to_string(kMostDevices));
  }
}

RankLayout rank_layout(int num_ranks, const GenerateOptions& options, const ModelDescription& model,
                       const std::string& devices_source) {
  RankLayout layout{.num_ranks = num_ranks};
  if (model.latent_size(video_size(options))[1] >= num_ranks) layout.decoding_ranks = num_ranks;
  if (num_ranks % 2 == 0 && every_step_is_guided(options, model)) layout.num_groups = 2;
  const int sharing = layout.ranks_of_forward();
  if (sharing == 1) return layout;
  const int64_t tokens = model.geometry(video_size(options)).num_tokens();
  if (tokens < sharing) {
    throw Error(ErrorKind::kUsage, devices_flag(num_ranks, devices_source) + ": a video of " +
                                       counted(tokens, "tokens") + " cannot be shared by " + std::to_string(sharing) +
                                       " GPUs; use fewer, or make a larger video");
  }
  return layout;
}

}  // namespace calibatt
