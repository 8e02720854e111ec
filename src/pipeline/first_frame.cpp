#include "pipeline/first_frame.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "io/fingerprint.h"
#include "models/scale_picture.h"

namespace calibatt {
namespace {

constexpr int kColors = 3;
constexpr double kLongestSide = 1 << 24;
constexpr double kMostStretch = 1.08;  // less is rounding to a size that the model can do

std::string size_text(int width, int height) {
  return std::to_string(width) + "×" + std::to_string(height);
}

}  // namespace

void check_picture(const GenerateOptions& options, const ModelDescription& model) {
  const Picture* picture = options.image.get();
  if (model.takes_image && picture == nullptr) {
    throw Error(ErrorKind::kUsage,
                model.name + ": makes videos that begin with a picture; give it with --image FILE (PNG, JPEG, WebP)");
  }
  if (!model.takes_image && picture != nullptr) {
    throw Error(ErrorKind::kUsage, "--image " + picture->source + ": " + model.name +
                                       " makes videos from text alone; leave it out, or choose a model that takes "
                                       "pictures, such as Wan2.2-I2V-A14B");
  }
  if (picture == nullptr) return;
  if (picture->height < 1 || picture->width < 1 ||
      picture->rgb.size() != static_cast<size_t>(picture->height) * static_cast<size_t>(picture->width) * kColors) {
    throw Error(ErrorKind::kUsage, "--image " + picture->source + ": its pixels are not those of its size");
  }
}

std::array<int, 2> size_of_picture(const Picture& picture, const ModelDescription& model,
                                   std::optional<int> given_height, std::optional<int> given_width) {
  const double area = static_cast<double>(model.defaults.width) * model.defaults.height,
               shape = static_cast<double>(picture.height) / picture.width;
  const int row_factor = model.pixels_per_latent * model.patch_size[1],
            column_factor = model.pixels_per_latent * model.patch_size[2];
  const auto nearest = [](double length, int factor) {
    // Of a picture that is a thin strip the other side may be beyond any number.
    return static_cast<int>(std::lround(std::clamp(length / factor, 1.0, kLongestSide / factor))) * factor;
  };
  const auto rounded_down = [](double length, int factor) {
    return std::max(1, static_cast<int>(std::lround(length)) / factor) * factor;
  };
  if (given_height && given_width) return {*given_height, *given_width};
  if (given_width) return {nearest(*given_width * shape, row_factor), *given_width};
  if (given_height) return {*given_height, nearest(*given_height / shape, column_factor)};
  const double height = std::sqrt(area * shape), width = std::sqrt(area / shape);
  if (height < row_factor || width < column_factor) {
    throw Error(ErrorKind::kUsage, "--image " + picture.source + ": is of " + size_text(picture.width, picture.height) +
                                       ", too thin for a video of its shape, whose sides are multiples of " +
                                       size_text(column_factor, row_factor) +
                                       "; cut it, or give --width and --height, to which it is stretched");
  }
  return {rounded_down(height, row_factor), rounded_down(width, column_factor)};
}

Tensor first_frame(const Picture& picture, const VideoSize& size, std::string& warning) {
  const double stretch = static_cast<double>(size.width) / size.height * picture.height / picture.width;
  if (std::max(stretch, 1 / stretch) > kMostStretch) {
    warning = picture.source + ": is " + size_text(picture.width, picture.height) +
              " and is stretched to the video's " + size_text(size.width, size.height) +
              "; where --width and --height are not both given, a video is as near to the picture's shape as its "
              "sizes come";
  }
  const Picture frame = scaled_picture(picture, size.height, size.width);
  const int64_t plane = int64_t{size.height} * size.width;
  Tensor pixels(DType::kF32, {kColors, size.height, size.width});
  for (int64_t pixel = 0; pixel < plane; ++pixel) {
    for (int64_t color = 0; color < kColors; ++color) {
      const auto level = static_cast<float>(frame.rgb[static_cast<size_t>(kColors * pixel + color)]);
      pixels.f32()[color * plane + pixel] = 2 * (level / 255) - 1;
    }
  }
  return pixels;
}

std::string picture_hash(const std::shared_ptr<const Picture>& picture) {
  if (picture == nullptr) return {};
  Hasher hasher;
  hasher.update(size_text(picture->width, picture->height));
  hasher.update(picture->rgb.data(), picture->rgb.size());
  return hasher.hex();
}

}  // namespace calibatt
