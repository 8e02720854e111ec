#pragma once

#include "calibatt/video.h"

namespace calibatt {

/// Of Pillow's filters, LANCZOS (three lobes) and BICUBIC (a = −1/2).
enum class PictureFilter { kLanczos, kCubic };

/// A picture in another size, by a filter that is wider where it shrinks: columns first, rounded to bytes, then rows,
/// as Pillow does it.
Picture scaled_picture(const Picture& picture, int height, int width, PictureFilter filter = PictureFilter::kLanczos);

}  // namespace calibatt
