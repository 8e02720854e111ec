#include "pictures/pixel_font.h"

#include <algorithm>
#include <cstddef>

namespace calibatt {
namespace {

// Seven rows of five pixels, written as they look.
struct Glyph {
  char character;
  const char* rows;
};

constexpr Glyph kGlyphs[] = {
    {'0', " ### #   ##  ### # ###  ##   # ### "},  {'1', "  #   ##    #    #    #    #   ### "},
    {'2', " ### #   #    #   #   #   #   #####"},  {'3', "#####   #   #     #     ##   # ### "},
    {'4', "   #   ##  # # #  # #####   #    # "},  {'5', "######    ####     #    ##   # ### "},
    {'6', "  ##  #   #    #### #   ##   # ### "},  {'7', "#####    #   #   #   #    #    #   "},
    {'8', " ### #   ##   # ### #   ##   # ### "},  {'9', " ### #   ##   # ####    #   #  ##  "},
    {'A', " ### #   ##   #######   ##   ##   #"},  {'B', "#### #   ##   ##### #   ##   ##### "},
    {'C', " ### #   ##    #    #    #   # ### "},  {'D', "###  #  # #   ##   ##   ##  # ###  "},
    {'E', "######    #    #### #    #    #####"},  {'F', "######    #    #### #    #    #    "},
    {'G', " ### #   ##    # ####   ##   # ####"},  {'H', "#   ##   ##   #######   ##   ##   #"},
    {'I', " ###   #    #    #    #    #   ### "},  {'J', "  ###   #    #    #    # #  #  ##  "},
    {'K', "#   ##  # # #  ##   # #  #  # #   #"},  {'L', "#    #    #    #    #    #    #####"},
    {'M', "#   ### ### # ## # ##   ##   ##   #"},  {'N', "#   ###  ## # ##  ###   ##   ##   #"},
    {'O', " ### #   ##   ##   ##   ##   # ### "},  {'P', "#### #   ##   ##### #    #    #    "},
    {'Q', " ### #   ##   ##   ## # ##  #  ## #"},  {'R', "#### #   ##   ##### # #  #  # #   #"},
    {'S', " #####    #     ###     #    ##### "},  {'T', "#####  #    #    #    #    #    #  "},
    {'U', "#   ##   ##   ##   ##   ##   # ### "},  {'V', "#   ##   ##   ##   ##   # # #   #  "},
    {'W', "#   ##   ##   ## # ## # ### ###   #"},  {'X', "#   ##   # # #   #   # # #   ##   #"},
    {'Y', "#   ##   # # #   #    #    #    #  "},  {'Z', "#####    #   #   #   #   #    #####"},
    {'.', "                          ##   ##  "},  {',', "                     ##    #   #   "},
    {':', "      ##   ##        ##   ##       "},  {'-', "               #####               "},
    {'+', "       #    #  #####  #    #       "},  {'=', "          #####     #####          "},
    {'/', "         #   #   #   #   #         "},  {'%', "##   ##  #   #   #   #   #  ##   ##"},
    {'(', "   #   #   #    #    #     #     # "},  {')', " #     #     #    #    #   #   #   "},
    {'<', "   #   #   #   #     #     #     # "},  {'>', " #     #     #     #   #   #   #   "},
    {'\'', "  #    #   #                       "}, {'_', "                              #####"},
    {'x', "          #   # # #   #   # # #   #"},  {' ', "                                   "},
};
constexpr char kUnknown[] = "######   ##   ##   ##   ##   ######";

const char* glyph_of(char character) {
  const auto find = [](char wanted) {
    const auto found =
        std::find_if(std::begin(kGlyphs), std::end(kGlyphs), [&](const Glyph& g) { return g.character == wanted; });
    return found == std::end(kGlyphs) ? nullptr : found->rows;
  };
  if (const char* rows = find(character)) return rows;
  const char* capital = character >= 'a' && character <= 'z' ? find(static_cast<char>(character - 'a' + 'A')) : nullptr;
  return capital != nullptr ? capital : kUnknown;
}

}  // namespace

Image blank_image(int width, int height) {
  return {height, width, std::vector<uint8_t>(static_cast<size_t>(width) * static_cast<size_t>(height) * 3, 255)};
}

void fill_rectangle(Image& image, int x, int y, int width, int height, Colour colour) {
  const int right = std::min(x + width, image.width), bottom = std::min(y + height, image.height);
  for (int row = std::max(y, 0); row < bottom; ++row) {
    for (int column = std::max(x, 0); column < right; ++column) {
      std::copy(colour.begin(), colour.end(),
                image.rgb.begin() + (static_cast<ptrdiff_t>(row) * image.width + column) * 3);
    }
  }
}

void draw_text(Image& image, int x, int y, std::string_view text, Colour colour, int scale) {
  for (const char character : text) {
    const char* rows = glyph_of(character);
    for (int i = 0; i < 35; ++i) {
      if (rows[i] == '#') fill_rectangle(image, x + i % 5 * scale, y + i / 5 * scale, scale, scale, colour);
    }
    x += kGlyphAdvance * scale;
  }
}

int text_width(std::string_view text, int scale) {
  return text.empty() ? 0 : (static_cast<int>(text.size()) * kGlyphAdvance - 1) * scale;
}

}  // namespace calibatt
