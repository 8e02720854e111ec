#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "media/image.h"

namespace calibatt {

using Colour = std::array<uint8_t, 3>;  // red, green, blue

/// A white picture.
Image blank_image(int width, int height);
/// Clipped to the picture.
void fill_rectangle(Image& image, int x, int y, int width, int height, Colour colour);

/// Pixels of one character of the built-in 5×7 font, spacing included.
inline constexpr int kGlyphAdvance = 6, kGlyphHeight = 7;

/// Capitals, digits and some signs (small letters appear as capitals, anything else as a box), each pixel `scale`
/// pixels wide; (x, y) is the upper left corner. Clipped to the picture.
void draw_text(Image& image, int x, int y, std::string_view text, Colour colour, int scale = 1);
int text_width(std::string_view text, int scale = 1);

}  // namespace calibatt
