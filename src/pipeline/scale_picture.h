#pragma once

#include "calibatt/video.h"

namespace calibatt {

/// A picture in another size, by a Lanczos filter of three lobes, wider where it shrinks: columns first, rounded to
/// bytes, then rows, as Pillow's LANCZOS.
Picture scaled_picture(const Picture& picture, int height, int width);

}  // namespace calibatt
