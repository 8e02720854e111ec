#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace calibatt {

/// One picture: `height` × `width` × 3 bytes, RGB, row-major.
struct Image {
  int height = 0, width = 0;
  std::vector<uint8_t> rgb;
};

/// The bytes of a PNG file (lossless, equal input gives equal bytes).
std::vector<uint8_t> encode_png(const uint8_t* rgb, int height, int width);

/// Writes a PNG file, complete or not at all. Throws Error(kUsage) for another extension than .png, Error(kIo).
void write_png(const Image& image, const std::string& path);

}  // namespace calibatt
