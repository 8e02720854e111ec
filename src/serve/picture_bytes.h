#pragma once

#include <memory>
#include <string>

#include "calibatt/video.h"

namespace calibatt::serve {

/// The picture in the bytes of a picture file (read_picture). Throws Error(kFormat / kIo), beginning with
/// "input_reference".
std::shared_ptr<const Picture> picture_of_bytes(const std::string& bytes);

}  // namespace calibatt::serve
