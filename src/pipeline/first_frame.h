#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>

#include "base/tensor.h"
#include "models/video_model.h"

namespace calibatt {

/// Refuses a run whose picture this model does not take, or that lacks one: Error(kUsage).
void check_picture(const GenerateOptions& options, const ModelDescription& model);

/// The size of a video that begins with this picture, {height, width}. What is given stays. Where one side is, the
/// other follows from the picture's shape, to the nearest that the model can do. Where none is, the video is of the
/// model's own area in the picture's shape, rounded down as Wan-AI's and diffusers' programs do it.
std::array<int, 2> size_of_picture(const Picture& picture, const ModelDescription& model,
                                   std::optional<int> given_height = {}, std::optional<int> given_width = {});

/// The picture as a model takes it: [3, height, width] F32 in [−1, 1], on the host. Where the video's shape is another,
/// it is stretched, as in diffusers; `warning` then says so.
Tensor first_frame(const Picture& picture, const VideoSize& size, std::string& warning);

/// Of its pixels and size. Empty without a picture.
std::string picture_hash(const std::shared_ptr<const Picture>& picture);

}  // namespace calibatt
