#include "plan/plan.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace calibatt {
namespace {

// Far above any real run; low enough that counts multiply without overflow.
constexpr int kMaxSteps = 100'000;
constexpr int kMaxLayers = 100'000;

Error refused(const std::string& what) {
  return Error(ErrorKind::kFormat, "plan: " + what);
}

void check_steps(const Plan::Parts& parts) {
  const size_t num_steps = parts.sigmas.size();
  if (num_steps < 1 || num_steps > kMaxSteps) {
    throw refused("the number of steps must be between 1 and " + std::to_string(kMaxSteps) + ", not " +
                  std::to_string(num_steps));
  }
  for (size_t step = 0; step < num_steps; ++step) {
    const double sigma = parts.sigmas[step];
    const bool falls = step == 0 || sigma < parts.sigmas[step - 1];
    if (!(sigma >= 0 && sigma <= 1 && falls)) {  // also catches NaN
      throw refused("the noise level of step " + std::to_string(step) + " is " + std::to_string(sigma) +
                    "; noise levels lie between 0 and 1 and fall from step to step");
    }
  }
  if (parts.energy_targets.size() != num_steps) {
    throw refused("there are " + std::to_string(parts.energy_targets.size()) + " energy targets for " +
                  std::to_string(num_steps) + " steps");
  }
  for (size_t step = 0; step < num_steps; ++step) {
    const double target = parts.energy_targets[step];
    if (!std::isnan(target) && !(target >= 0 && target <= 1)) {
      throw refused("the energy target of step " + std::to_string(step) + " is " + std::to_string(target) +
                    ", which is neither between 0 and 1 nor absent");
    }
  }
}

// The number of entries: every one of them is some step's.
int check_entries(const Plan::Parts& parts) {
  if (parts.step_entry.size() != parts.sigmas.size()) {
    throw refused("the step table has " + std::to_string(parts.step_entry.size()) + " rows for " +
                  std::to_string(parts.sigmas.size()) + " steps");
  }
  std::vector<char> used(parts.step_entry.size(), 0);
  int num_entries = 0;
  for (size_t step = 0; step < parts.step_entry.size(); ++step) {
    const int entry = parts.step_entry[step];
    if (entry < 0 || static_cast<size_t>(entry) >= used.size()) {
      throw refused("step " + std::to_string(step) + " uses entry " + std::to_string(entry) +
                    ", which cannot be among at most " + std::to_string(used.size()));
    }
    used[static_cast<size_t>(entry)] = 1;
    num_entries = std::max(num_entries, entry + 1);
  }
  for (int entry = 0; entry < num_entries; ++entry) {
    if (!used[static_cast<size_t>(entry)]) throw refused("no step uses entry " + std::to_string(entry));
  }
  const auto expected = uint64_t{1} * static_cast<unsigned>(num_entries) * static_cast<unsigned>(parts.num_layers) *
                        static_cast<unsigned>(parts.geometry.heads);
  if (parts.heads.size() != expected) {
    throw refused("there are " + std::to_string(parts.heads.size()) + " heads, but " + std::to_string(num_entries) +
                  " entries × " + std::to_string(parts.num_layers) + " layers × " +
                  std::to_string(parts.geometry.heads) + " heads are " + std::to_string(expected));
  }
  return num_entries;
}

void check_provenance(const PlanProvenance& provenance) {
  const auto check = [](bool sound, const char* what) {
    if (!sound) throw refused(std::string("its provenance has an impossible ") + what);
  };
  check(provenance.num_prompts >= 0, "number of prompts");
  check(provenance.video_frames >= 0, "number of video frames");
  check(provenance.video_height >= 0, "video height");
  check(provenance.video_width >= 0, "video width");
  check(std::isfinite(provenance.guidance_scale), "guidance scale");
  check(std::isfinite(provenance.flow_shift), "flow shift");
}

}  // namespace

Plan::Plan(Parts parts) : parts_(std::move(parts)) {
  const AttentionGeometry& geometry = parts_.geometry;
  try {
    geometry.validate();
  } catch (const Error& error) {
    throw refused(error.what());
  }
  if (parts_.num_layers < 1 || parts_.num_layers > kMaxLayers) {
    throw refused("the number of layers must be between 1 and " + std::to_string(kMaxLayers) + ", not " +
                  std::to_string(parts_.num_layers));
  }
  check_steps(parts_);
  num_entries_ = check_entries(parts_);
  check_provenance(parts_.provenance);

  const bool any_anchored =
      std::any_of(parts_.heads.begin(), parts_.heads.end(), [](const auto& head) { return head.anchored; });
  if (any_anchored) {
    if (parts_.anchor_rows_per_frame < 1 || parts_.anchor_rows_per_frame > geometry.height) {
      throw refused("some heads are anchored, so the anchor rows per frame must be between 1 and the latent height " +
                    std::to_string(geometry.height) + ", not " + std::to_string(parts_.anchor_rows_per_frame));
    }
    anchor_rows_ = make_anchor_rows(geometry, parts_.anchor_rows_per_frame);
  } else {
    parts_.anchor_rows_per_frame = 0;
  }

  const int num_tokens = geometry.num_tokens();
  const int num_anchor_tokens = static_cast<int>(anchor_rows_.query_tokens.size());
  token_pairs_.reserve(parts_.heads.size());
  for (size_t i = 0; i < parts_.heads.size(); ++i) {
    const HeadPlan& head = parts_.heads[i];
    const int num_queries = head.anchored ? num_anchor_tokens : num_tokens;
    if (!head.intervals) {
      token_pairs_.push_back(int64_t{num_queries} * num_tokens);
      continue;
    }
    const int num_query_blocks = (num_queries + geometry.block_q - 1) / geometry.block_q;
    if (head.intervals->num_query_blocks() != num_query_blocks ||
        head.intervals->num_key_blocks() != geometry.num_key_blocks()) {
      const size_t site = i / static_cast<size_t>(geometry.heads), num_layers = static_cast<size_t>(parts_.num_layers);
      throw refused("entry " + std::to_string(site / num_layers) + ", layer " + std::to_string(site % num_layers) +
                    ", head " + std::to_string(i % static_cast<size_t>(geometry.heads)) + " has " +
                    std::to_string(head.intervals->num_query_blocks()) + "×" +
                    std::to_string(head.intervals->num_key_blocks()) + " blocks, but the geometry makes it " +
                    std::to_string(num_query_blocks) + "×" + std::to_string(geometry.num_key_blocks()));
    }
    token_pairs_.push_back(
        kept_token_pairs(*head.intervals, num_queries, geometry.block_q, num_tokens, geometry.block_k));
  }
}

double Plan::density(int step, int layer, int head) const {
  const double num_tokens = geometry().num_tokens();
  return static_cast<double>(entry_token_pairs(entry_of(step), layer, head)) / (num_tokens * num_tokens);
}

double Plan::density(int step, int layer) const {
  double sum = 0;
  for (int head = 0; head < geometry().heads; ++head) sum += density(step, layer, head);
  return sum / geometry().heads;
}

double Plan::density() const {
  double sum = 0;
  for (int step = 0; step < num_steps(); ++step) {
    for (int layer = 0; layer < num_layers(); ++layer) sum += density(step, layer);
  }
  return sum / (static_cast<double>(num_steps()) * num_layers());
}

int Plan::nearest_step(double sigma) const {
  const auto distance = [sigma](double other) { return std::abs(other - sigma); };
  const auto nearest = std::min_element(parts_.sigmas.begin(), parts_.sigmas.end(),
                                        [&](double a, double b) { return distance(a) < distance(b); });
  return static_cast<int>(nearest - parts_.sigmas.begin());
}

}  // namespace calibatt
