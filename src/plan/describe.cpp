#include "plan/describe.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "base/printable.h"
#include "calibatt/counted.h"
#include "calibatt/plan.h"

namespace calibatt {
namespace {

template <class... Args>
std::string format(const char* pattern, Args... args) {
  char text[512];
  std::snprintf(text, sizeof(text), pattern, args...);
  return text;
}

std::string line(const char* title, const std::string& text) {
  return format("%-16s", title) + text + "\n";
}

// "steps 0 to 12": those of one transformer.
std::string steps_of(const PlanInfo& info, int transformer) {
  std::string text;
  const int num_steps = static_cast<int>(info.sigmas.size());
  for (int begin = 0, end = 0; begin < num_steps; begin = end) {
    end = begin + 1;
    if (info.transformer_of(begin) != transformer) continue;
    while (end < num_steps && info.transformer_of(end) == transformer) ++end;
    text += format(text.empty() ? "steps %d to %d" : ", %d to %d", begin, end - 1);
  }
  return text;
}

/// Basis as PlanUse::error_basis has it.
std::string accuracy_text(const PlanAccuracy& accuracy) {
  if (accuracy.measured) return expected_error_text(accuracy.measured, "measured");
  return expected_error_text(accuracy.predicted, accuracy.held_out ? "held out" : "not held out");
}

/// How its heads are computed, and how many intervals they have.
std::string heads_text(const Plan& plan) {
  const PlanInfo& parts = plan.info();
  int anchored = 0, dense = 0;
  int64_t intervals = 0, rows = 0;
  for (const HeadFacts& head : plan.facts()) {
    anchored += head.anchored;
    dense += !head.anchored && !head.has_intervals;
    if (!head.has_intervals) continue;
    intervals += head.num_intervals;
    rows +=
        head.anchored ? plan.anchor_rows().num_query_blocks(parts.geometry.block_q) : parts.geometry.num_query_blocks();
  }
  std::string text =
      line("heads", format("%zu (entries × layers × heads): %d repetitive (%d anchor rows per frame), %d dense",
                           plan.facts().size(), anchored, parts.anchor_rows_per_frame, dense));
  if (rows > 0)
    text +=
        line("intervals", format("%.2f per query block", static_cast<double>(intervals) / static_cast<double>(rows)));
  return text;
}

/// "7 (hold), 9 (linear)", of steps in rising order.
std::string reused_steps(const PlanInfo& info) {
  std::string text;
  for (int step = 0; step < static_cast<int>(info.step_reuse.size()); ++step) {
    if (info.reuse_of(step) == StepReuse::kNone) continue;
    text += (text.empty() ? "" : ", ") + std::to_string(step) + " (" +
            std::string(step_reuse_name(info.reuse_of(step))) + ")";
  }
  return text;
}

/// "self-attention in 3 of 7 steps: 1, 3, 5", of the steps that run a forward, where the plan says anything of 8 bits.
std::string eight_bits_text(const PlanInfo& info) {
  struct Part {
    const char* name;
    bool EightBitParts::*has;
  };
  std::string text;
  if (info.eight_bits.empty()) return text;
  const int forwards = static_cast<int>(info.sigmas.size()) - info.num_reused_steps();
  for (const Part& part :
       {Part{"self-attention", &EightBitParts::attention}, {"linear layers", &EightBitParts::layers}}) {
    std::vector<int> steps;
    for (size_t step = 0; step < info.eight_bits.size(); ++step) {
      const int number = static_cast<int>(step);
      if (info.eight_bits[step].*part.has && info.reuse_of(number) == StepReuse::kNone) steps.push_back(number);
    }
    const std::string where = steps.empty()
                                  ? " in no step"
                                  : format(" in %zu of %d %s, where a run allows it: ", steps.size(), forwards,
                                           info.num_reused_steps() > 0 ? "steps with a forward" : "steps") +
                                        ranges_of(steps);
    text += line(text.empty() ? "8 bits" : "", part.name + where);
  }
  return text;
}

/// Density by step (down) and layer (right); at most so many of each, evenly spread.
std::string density_table(const Plan& plan) {
  constexpr int kMaxRows = 25, kMaxColumns = 16;
  const auto spread = [](int count, int limit) {
    std::vector<int> chosen;
    chosen.reserve(static_cast<size_t>(std::min(count, limit)));
    for (int i = 0; i < std::min(count, limit); ++i) {
      chosen.push_back(count <= limit ? i : static_cast<int>(std::lround(i * (count - 1.0) / (limit - 1))));
    }
    return chosen;
  };
  const std::vector<int> layers = spread(plan.num_layers(), kMaxColumns);
  // Of plans whose blocks were chosen otherwise nobody knows how much energy they keep.
  const bool has_energy =
      std::ranges::any_of(plan.info().energy_targets, [](double each) { return !std::isnan(each); });
  const auto begin_of = [&](int step, const std::string& energy) {
    return format("%4d  %.3f", step, plan.info().sigmas[static_cast<size_t>(step)]) +
           (has_energy ? format("  %6s", energy.c_str()) : "") + " | ";
  };
  std::string text = std::string("step  noise") + (has_energy ? "  energy" : "") + " | mean | layer";
  for (const int layer : layers) text += format("%5d", layer);
  text += "\n";
  for (const int step : spread(plan.num_steps(), kMaxRows)) {
    if (plan.info().reuse_of(step) != StepReuse::kNone) {
      text += begin_of(step, "") + "no forward: " + std::string(step_reuse_name(plan.info().reuse_of(step))) + "\n";
      continue;
    }
    double sum = 0;
    for (int layer = 0; layer < plan.num_layers(); ++layer) sum += plan.density(step, layer);
    const double energy = plan.info().energy_targets[static_cast<size_t>(step)];
    text += begin_of(step, std::isnan(energy) ? "" : format("%.3f", energy)) +
            format("%.2f |      ", sum / plan.num_layers());
    for (const int layer : layers) text += format("%5.2f", plan.density(step, layer));
    text += "\n";
  }
  return text;
}

}  // namespace

std::string ranges_of(const std::vector<int>& numbers) {
  std::string text;
  for (size_t begin = 0, end = 0; begin < numbers.size(); begin = end) {
    end = begin + 1;
    while (end < numbers.size() && numbers[end] == numbers[end - 1] + 1) ++end;
    text += (text.empty() ? "" : ", ") + std::to_string(numbers[begin]);
    if (end - begin > 1) text += " to " + std::to_string(numbers[end - 1]);
  }
  return text;
}

std::string expected_error_text(std::optional<double> error, const std::string& basis) {
  if (!error) return "not known";
  return format("%.4g of the attention's output, ", *error) +
         (basis == "measured"   ? "measured in runs with the plan"
          : basis == "held out" ? "predicted on prompts that chose no blocks"
                                : "predicted on the very prompts that chose the blocks");
}

std::string expected_psnr_text(double psnr_db) {
  constexpr double kMost = 100;                                 // no video of 8 bits shows so little
  if (std::isinf(psnr_db)) return "no change but of rounding";  // which may yet be seen
  return psnr_db > kMost ? format("over %.0f dB of the video", kMost) : format("about %.1f dB of the video", psnr_db);
}

std::string end_of_run_text(const EndOfRun& end) {
  std::string text;
  if (end.latents_predicted) {
    text = format("change of the final latents %.3g %%", 100 * *end.latents_predicted);
    if (end.psnr_predicted) text += " (" + expected_psnr_text(*end.psnr_predicted) + ")";
    text += " predicted";
  }
  if (end.latents_measured) {
    text += (text.empty() ? "change of the final latents " : "; ") + format("%.3g %%", 100 * *end.latents_measured);
    if (end.psnr_measured) {
      text += std::isinf(*end.psnr_measured) ? " (the same pixels)" : format(" (%.1f dB)", *end.psnr_measured);
    }
    text += " measured in a held-out run";
  }
  return text;
}

std::string doubt_about_prediction(const EndOfRun& end) {
  constexpr double kFarBelow = 3;  // dB; runs of plans that kept theirs were at most 1.8 below
  if (!end.psnr_predicted || !end.psnr_measured) return "";
  // Frames of 8 bits show a smaller change as their rounding, which falls more slowly: 60 dB predicted are 55 measured.
  constexpr double kShownAsItIs = 52;
  const double below = *end.psnr_predicted - *end.psnr_measured;
  if (!(std::min(*end.psnr_predicted, kShownAsItIs) - *end.psnr_measured > kFarBelow)) return "";
  if (std::isinf(*end.psnr_predicted)) {
    return format(
        "the plan's held-out run came to %.1f dB, though nothing is expected to change but what is rounded: at this "
        "size and number of steps that alone can make so much, and no plan comes nearer",
        *end.psnr_measured);
  }
  return format(
      "the plan's held-out run came to %.1f dB where %.1f dB were predicted, %.1f dB less: do not count on the "
      "prediction; calibrate with more steps, a smaller --speedup (a larger --psnr) or more prompts",
      *end.psnr_measured, *end.psnr_predicted, below);
}

std::string doubt_about_closeness(const EndOfRun& end) {
  constexpr double kAnotherVideo = 25;  // dB; below it what is seen is no longer where it is in the dense video
  const std::optional<double> psnr = end.psnr_measured ? end.psnr_measured : end.psnr_predicted;
  if (!psnr || !(*psnr < kAnotherVideo)) return "";
  return format(
      "%s %.1f dB to the dense video: below %.0f dB a plan makes another video; ask for a smaller "
      "--speedup (a larger --psnr), or calibrate with more steps",
      end.psnr_measured ? "the plan's held-out run came to" : "the plan is predicted to come to", *psnr, kAnotherVideo);
}

namespace {

std::string expectations_text(const PlanInfo& plan) {
  const EndOfRun end = plan.accuracy.end_of_run();
  std::vector<std::string> lines = {accuracy_text(plan.accuracy), end_of_run_text(end), doubt_about_prediction(end),
                                    doubt_about_closeness(end)};
  // An attention without an error says nothing of a run that reuses steps.
  const bool only_reuses = plan.num_reused_steps() > 0 && !plan.accuracy.measured && plan.accuracy.predicted == 0.0;
  if (only_reuses && !lines[1].empty()) lines[0].clear();
  std::string text;
  for (const std::string& each : lines) {
    if (!each.empty()) text += line(text.empty() ? "expected error" : "", each);
  }
  return text;
}

}  // namespace

std::string describe(const Plan& plan) {
  const PlanInfo& parts = plan.info();
  const PlanProvenance& made = parts.provenance;
  std::string text;
  for (size_t i = 0; i < made.transformers.size(); ++i) {
    const PlanTransformer& each = made.transformers[i];
    const std::string& fingerprint = each.fingerprint;
    text += line("model", printable(each.name) + " (" +
                              (fingerprint.empty() ? "weights not compared" : "fingerprint " + printable(fingerprint)) +
                              (made.transformers.size() > 1 ? ", " + steps_of(parts, static_cast<int>(i)) : "") + ")");
  }
  text +=
      line("video", counted(made.video_frames, "frames") + format(" of %d×%d", made.video_width, made.video_height));
  text += line("attention", parts.geometry.to_string() + ", " + counted(parts.num_layers, "layers"));
  text += line("steps", format("%d (%s, flow shift %g, guidance %g), noise %.4g to %.4g", plan.num_steps(),
                               printable(made.scheduler).c_str(), made.flow_shift, made.guidance_scale,
                               parts.sigmas.front(), parts.sigmas.back()));
  text += line("entries",
               format("%d: sets of kept blocks, each of one step or of several that share it", plan.num_entries()));
  text += line("made from", format("%s (hash %s) by calibatt %s", counted(made.num_prompts, "prompts").c_str(),
                                   printable(made.prompts_hash).c_str(), printable(made.tool_version).c_str()));
  for (const auto& [key, value] : made.settings) text += line("", printable(key) + " " + printable(value));
  text += line("skipped", parts.summarize_skipped ? "one summary token per block" : "dropped");

  text += heads_text(plan);
  if (const int reused = parts.num_reused_steps(); reused > 0) {
    text += line("reused steps", format("%d of %d run no forward: ", reused, plan.num_steps()) + reused_steps(parts));
  }
  text += eight_bits_text(parts);
  text += expectations_text(parts);
  text += line("density", format("%.4f of all query-key pairs are computed", plan.density()) +
                              (parts.num_reused_steps() > 0 ? " in the steps that run" : ""));

  return text + "\n" + density_table(plan);
}

}  // namespace calibatt
