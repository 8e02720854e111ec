#pragma once

#include <cstring>
#include <nlohmann/json.hpp>
#include <string>

#include "calibatt/pipeline.h"
#include "io/safetensors.h"

namespace calibatt {

/// The run that a golden.json tells of, all but guidance.
inline GenerateOptions golden_options(const nlohmann::json& golden) {
  GenerateOptions options;
  options.prompt = golden.at("prompt");
  options.negative_prompt = golden.at("negative_prompt");
  options.seed = golden.at("seed");
  options.steps = golden.at("steps").get<int>();
  options.width = golden.at("width").get<int>();
  options.height = golden.at("height").get<int>();
  options.video_frames = golden.at("video_frames").get<int>();
  return options;
}

/// "frames" [frames, height, width, 3] of a golden.safetensors.
inline VideoFrames golden_frames(const std::string& path) {
  const Safetensors file = Safetensors::open(path);
  const Tensor frames = file.get("frames");
  VideoFrames video{
      static_cast<int>(frames.dim(0)), static_cast<int>(frames.dim(1)), static_cast<int>(frames.dim(2)), {}};
  video.rgb.resize(frames.size_bytes());
  std::memcpy(video.rgb.data(), frames.raw(), frames.size_bytes());
  return video;
}

}  // namespace calibatt
