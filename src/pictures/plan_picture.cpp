#include "pictures/plan_picture.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "calibatt/counted.h"
#include "pictures/pixel_font.h"

namespace calibatt {
namespace {

constexpr Colour kInk{32, 32, 40}, kFaintInk{120, 120, 130}, kWhite{255, 255, 255};
constexpr Colour kKept{38, 92, 168}, kAnchored{222, 122, 20}, kSkipped{233, 236, 240};
constexpr int kMargin = 16;

std::string format_number(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof(text), format, value);
  return text;
}

// ".37"; "1.0" for one.
std::string short_density(double density) {
  const std::string text = format_number("%.2f", density);
  return text == "1.00" ? "1.0" : text.substr(1);
}

// `fraction` from 0 to 1: dark violet to yellow, evenly rising in lightness and readable without colour vision (the
// usual "viridis", sampled).
Colour scale_colour(double fraction) {
  constexpr Colour kStops[] = {{68, 1, 84},    {71, 44, 122}, {59, 81, 139},  {44, 113, 142}, {33, 144, 141},
                               {39, 173, 129}, {92, 200, 99}, {170, 220, 50}, {253, 231, 37}};
  constexpr int kLast = static_cast<int>(std::size(kStops)) - 1;
  const double position = std::clamp(fraction, 0.0, 1.0) * kLast;
  const int stop = std::min(static_cast<int>(position), kLast - 1);
  Colour colour;
  for (size_t i = 0; i < 3; ++i) {
    const double from = kStops[stop][i], to = kStops[stop + 1][i];
    colour[i] = static_cast<uint8_t>(std::lround(from + (to - from) * (position - stop)));
  }
  return colour;
}

// The smallest of 1, 2, 5, 10, … that leaves `pixels` between labelled ticks of `cell` pixels each.
int tick_step(int cell, int pixels) {
  int64_t decade = 1;
  while (true) {
    for (const int factor : {1, 2, 5}) {
      if (decade * factor * cell >= pixels) return static_cast<int>(decade * factor);
    }
    decade *= 10;
  }
}

void draw_centred(Image& image, int centre_x, int y, const std::string& text, Colour colour, int scale = 1) {
  draw_text(image, centre_x - text_width(text, scale) / 2, y, text, colour, scale);
}

void draw_right(Image& image, int right, int y, const std::string& text, Colour colour, int scale = 1) {
  draw_text(image, right - text_width(text, scale), y, text, colour, scale);
}

// The densest cell, rounded up to a tenth, so that plans of any density show their differences.
double end_of_scale(const Plan& plan) {
  double densest = 0;
  for (int step = 0; step < plan.num_steps(); ++step) {
    for (int layer = 0; layer < plan.num_layers(); ++layer) densest = std::max(densest, plan.density(step, layer));
  }
  return std::clamp(std::ceil(densest * 10 - 1e-9) / 10, 0.1, 1.0);
}

// From 0 to `end`, with its upper left corner there.
void draw_colour_scale(Image& image, int left, int top, double end) {
  constexpr int kWidth = 256;
  for (int i = 0; i < kWidth; ++i) {
    fill_rectangle(image, left + i, top, 1, 12, scale_colour(i / (kWidth - 1.0)));
  }
  for (const double tick : {0.0, 0.25, 0.5, 0.75, 1.0}) {
    const int x = left + static_cast<int>(std::lround(tick * (kWidth - 1)));
    fill_rectangle(image, x, top + 12, 1, 4, kFaintInk);
    draw_centred(image, x, top + 19, format_number("%.3g", tick * end), kInk);
  }
}

void check_site(const Plan& plan, int step, int layer, int head) {
  const auto check = [](const char* what, int value, int count) {
    if (value < 0 || value >= count) {
      throw Error(ErrorKind::kUsage, std::string(what) + " " + std::to_string(value) +
                                         " is not in this plan, which has " + std::to_string(count) + " (0 to " +
                                         std::to_string(count - 1) + ")");
    }
  };
  check("step", step, plan.num_steps());
  check("layer", layer, plan.num_layers());
  check("head", head, plan.geometry().heads);
}

/// Which steps' forwards have something in 8 bits: nothing is computed in a reused step.
std::vector<EightBitParts> computed_eight_bits(const PlanInfo& info) {
  return of_forwards(info.eight_bits, info.step_reuse);
}

void draw_eight_bit_bars(Image& image, const Plan& plan, int left, int y, int cell_width) {
  for (const EightBitParts& step : computed_eight_bits(plan.info())) {
    if (step.any()) fill_rectangle(image, left, y, std::max(1, cell_width - 1), 2, kInk);
    left += cell_width;
  }
}

/// What stands beside the density, each at its height.
struct Caption {
  int y;
  std::string text;
};

constexpr int kCaptionLeft = kMargin + 230;

std::vector<Caption> captions_of(const Plan& plan) {
  std::vector<Caption> captions;
  const int reused = plan.info().num_reused_steps();
  if (reused > 0) {
    captions.push_back(
        {16, counted(reused, "steps") + " of " + std::to_string(plan.num_steps()) + " without a forward"});
  }
  int attention = 0, layers = 0;
  for (const EightBitParts& step : computed_eight_bits(plan.info())) {
    attention += step.attention;
    layers += step.layers;
  }
  if (attention + layers > 0) {
    captions.push_back({reused > 0 ? 6 : 16, "8 bits (bar above a step): self-attention in " +
                                                 std::to_string(attention) + ", layers in " + std::to_string(layers)});
  }
  return captions;
}

/// How wide a picture shows all of them.
int width_of(const std::vector<Caption>& captions) {
  int width = 0;
  for (const Caption& caption : captions) width = std::max(width, kCaptionLeft + text_width(caption.text) + kMargin);
  return width;
}

void draw_density_title(Image& image, const Plan& plan, const std::vector<Caption>& captions) {
  draw_text(image, kMargin, 12, "density " + format_number("%.3f", plan.density()), kInk, 2);
  for (const Caption& caption : captions) draw_text(image, kCaptionLeft, caption.y, caption.text, kInk);
  draw_text(image, kMargin, 32,
            "computed query-key pairs of each layer and step, mean of " + counted(plan.geometry().heads, "heads"),
            kFaintInk);
}

}  // namespace

Image render_head(const Plan& plan, int step, int layer, int head_number) {
  check_site(plan, step, layer, head_number);
  const HeadPlan& head = plan.head(step, layer, head_number);
  const AttentionGeometry& geometry = plan.geometry();
  const int columns = geometry.num_key_blocks();
  const int rows = head.anchored ? plan.anchor_rows().num_query_blocks(geometry.block_q) : geometry.num_query_blocks();
  const BlockMask mask = head.intervals ? head.intervals->to_mask() : BlockMask(rows, columns, true);

  constexpr int kTop = 74, kLeft = 66, kBottom = 26, kMinWidth = 520;
  const int cell = std::clamp(700 / std::max(columns, rows), 1, 24);
  Image image = blank_image(std::max(kLeft + columns * cell + kMargin, kMinWidth), kTop + rows * cell + kBottom);
  draw_text(
      image, kMargin, 12,
      "step " + std::to_string(step) + "  layer " + std::to_string(layer) + "  head " + std::to_string(head_number),
      kInk, 2);
  std::string facts = "noise " + format_number("%.3f", plan.info().sigmas[static_cast<size_t>(step)]) + "  density " +
                      format_number("%.3f", plan.density(step, layer, head_number)) + "  blocks of " +
                      std::to_string(geometry.block_q) + "x" + counted(geometry.block_k, "tokens") + "  " +
                      geometry.order.to_string();
  if (head.anchored) {
    facts += "  " + std::to_string(plan.info().anchor_rows_per_frame) + " of " + counted(geometry.height, "rows");
  }
  draw_text(image, kMargin, 32, facts, kFaintInk);

  // Legend: what the colours mean.
  const Colour kept_colour = head.anchored ? kAnchored : kKept;
  int x = kMargin;
  const auto legend = [&](Colour colour, const std::string& text) {
    fill_rectangle(image, x, 45, 9, 9, colour);
    draw_text(image, x + 13, 46, text, kInk);
    x += 13 + text_width(text) + 16;
  };
  legend(kept_colour, head.anchored ? "computed, queries of the anchor rows only" : "computed");
  legend(kSkipped, plan.info().summarize_skipped ? "skipped, one summary key each" : "skipped");

  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) {
      const int gap = cell >= 6 ? 1 : 0;
      fill_rectangle(image, kLeft + c * cell, kTop + r * cell, cell - gap, cell - gap,
                     mask.kept(r, c) ? kept_colour : kSkipped);
    }
  }
  for (int c = 0; c < columns; c += tick_step(cell, 34)) {
    fill_rectangle(image, kLeft + c * cell + cell / 2, kTop - 4, 1, 4, kFaintInk);
    draw_centred(image, kLeft + c * cell + cell / 2, kTop - 13, std::to_string(c), kFaintInk);
  }
  for (int r = 0; r < rows; r += tick_step(cell, 16)) {
    fill_rectangle(image, kLeft - 4, kTop + r * cell + cell / 2, 4, 1, kFaintInk);
    draw_right(image, kLeft - 7, kTop + r * cell + cell / 2 - 3, std::to_string(r), kFaintInk);
  }
  draw_text(image, kLeft, kTop + rows * cell + 10, "right: key blocks   down: query blocks", kFaintInk);
  return image;
}

Image render_density_map(const Plan& plan) {
  const int steps = plan.num_steps(), layers = plan.num_layers();
  // Numbers are written into cells while the picture stays of a size that a screen shows.
  const int cell_width = std::clamp(1200 / steps, 4, 44);
  const int cell_height = std::clamp(800 / layers, 4, 26);
  const int scale = cell_width >= 40 && cell_height >= 20 ? 2 : 1;
  const bool numbers = cell_width >= 3 * kGlyphAdvance + 2 && cell_height >= kGlyphHeight + 4;
  constexpr int kTop = 66, kLeft = 70, kBottom = 84, kGap = 8, kMeanWidth = 52, kMinWidth = 440;
  const int right = kLeft + steps * cell_width, bottom = kTop + layers * cell_height;
  const std::vector<Caption> captions = captions_of(plan);
  Image image = blank_image(std::max({right + kGap + kMeanWidth + kMargin, kMinWidth, width_of(captions)}),
                            bottom + kGap + cell_height + kBottom);

  const int reused = plan.info().num_reused_steps();
  draw_density_title(image, plan, captions);
  const double scale_end = end_of_scale(plan);

  const auto draw_cell = [&](int x, int y, int width, double density, bool number) {
    const int gap = cell_height >= 8 ? 1 : 0;
    fill_rectangle(image, x, y, width - gap, cell_height - gap, scale_colour(density / scale_end));
    if (number) {
      draw_centred(image, x + width / 2, y + (cell_height - kGlyphHeight * scale) / 2, short_density(density),
                   density > 0.6 * scale_end ? kInk : kWhite, scale);
    }
  };
  std::vector<double> step_sum(static_cast<size_t>(steps), 0.0);
  for (int layer = 0; layer < layers; ++layer) {
    double layer_sum = 0;
    const int y = kTop + layer * cell_height;
    for (int step = 0; step < steps; ++step) {
      if (plan.info().reuse_of(step) != StepReuse::kNone) {
        fill_rectangle(image, kLeft + step * cell_width, y, cell_width, cell_height, kSkipped);
        continue;
      }
      const double density = plan.density(step, layer);
      layer_sum += density;
      step_sum[static_cast<size_t>(step)] += density;
      draw_cell(kLeft + step * cell_width, y, cell_width, density, numbers);
    }
    draw_cell(right + kGap, y, kMeanWidth, layer_sum / (steps - reused), cell_height >= kGlyphHeight * scale + 2);
    if (layer % tick_step(cell_height, 11) == 0) {
      draw_right(image, kLeft - 6, y + (cell_height - kGlyphHeight) / 2, std::to_string(layer), kInk);
    }
  }
  for (int step = 0; step < steps; ++step) {
    const int x = kLeft + step * cell_width;
    if (plan.info().reuse_of(step) == StepReuse::kNone) {
      draw_cell(x, bottom + kGap, cell_width, step_sum[static_cast<size_t>(step)] / layers, numbers);
    }
    if (step % tick_step(cell_width, 20) == 0)
      draw_centred(image, x + cell_width / 2, kTop - 10, std::to_string(step), kInk);
  }
  draw_eight_bit_bars(image, plan, kLeft, kTop - 2, cell_width);
  draw_text(image, kMargin, kTop - 10, "layer", kFaintInk);
  draw_centred(image, (kLeft + right) / 2, kTop - 22, "step (0: noisiest)", kFaintInk);
  draw_centred(image, right + kGap + kMeanWidth / 2, kTop - 10, "mean", kFaintInk);
  draw_text(image, kMargin, bottom + kGap + (cell_height - kGlyphHeight) / 2, "mean", kFaintInk);
  draw_colour_scale(image, kLeft, bottom + kGap + cell_height + 32, scale_end);
  return image;
}

}  // namespace calibatt
