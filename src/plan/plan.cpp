#include "plan/plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/ceil_div.h"
#include "calibatt/counted.h"
#include "plan/plan_heads.h"

namespace calibatt {
namespace {

// Far above any real run; low enough that counts multiply without overflow.
constexpr int kMaxSteps = 100'000;
constexpr int kMaxLayers = 100'000;
constexpr size_t kMaxTransformers = 16;

Error refused(const std::string& what) {
  return Error(ErrorKind::kFormat, "plan: " + what);
}

void check_steps(const PlanInfo& info) {
  const size_t num_steps = info.sigmas.size();
  if (num_steps < 1 || num_steps > kMaxSteps) {
    throw refused("the number of steps must be between 1 and " + std::to_string(kMaxSteps) + ", not " +
                  std::to_string(num_steps));
  }
  for (size_t step = 0; step < num_steps; ++step) {
    const double sigma = info.sigmas[step];
    const bool falls = step == 0 || sigma < info.sigmas[step - 1];
    if (!(sigma >= 0 && sigma <= 1 && falls)) {  // also catches NaN
      throw refused("the noise level of step " + std::to_string(step) + " is " + std::to_string(sigma) +
                    "; noise levels lie between 0 and 1 and fall from step to step");
    }
  }
  if (info.energy_targets.size() != num_steps) {
    throw refused("there are " + std::to_string(info.energy_targets.size()) + " energy targets for " +
                  counted(num_steps, "steps"));
  }
  for (size_t step = 0; step < num_steps; ++step) {
    const double target = info.energy_targets[step];
    if (!std::isnan(target) && !(target >= 0 && target <= 1)) {
      throw refused("the energy target of step " + std::to_string(step) + " is " + std::to_string(target) +
                    ", which is neither between 0 and 1 nor absent");
    }
  }
}

// Every entry is some step's.
void check_entries(const PlanInfo& info) {
  if (info.step_entry.size() != info.sigmas.size()) {
    throw refused("the step table has " + counted(info.step_entry.size(), "rows") + " for " +
                  counted(info.sigmas.size(), "steps"));
  }
  std::vector<char> used(info.step_entry.size(), 0);
  for (size_t step = 0; step < info.step_entry.size(); ++step) {
    const int entry = info.step_entry[step];
    if (entry < 0 || static_cast<size_t>(entry) >= used.size()) {
      throw refused("step " + std::to_string(step) + " uses entry " + std::to_string(entry) +
                    ", which cannot be among at most " + std::to_string(used.size()));
    }
    used[static_cast<size_t>(entry)] = 1;
  }
  for (int entry = 0; entry < info.num_entries(); ++entry) {
    if (!used[static_cast<size_t>(entry)]) throw refused("no step uses entry " + std::to_string(entry));
  }
}

// Every step has a transformer, and every transformer a step.
void check_transformers(const PlanInfo& info) {
  const size_t count = info.provenance.transformers.size();
  if (count < 1 || count > kMaxTransformers) {
    throw refused("the number of transformers must be between 1 and " + std::to_string(kMaxTransformers) + ", not " +
                  std::to_string(count));
  }
  if (info.step_transformer.size() != (count == 1 ? 0 : info.sigmas.size())) {
    throw refused("the transformers of " + counted(info.step_transformer.size(), "steps") + " are given, where " +
                  std::to_string(count) + " transformers share " + counted(info.sigmas.size(), "steps"));
  }
  std::vector<char> used(count, count == 1 ? 1 : 0);
  for (size_t step = 0; step < info.step_transformer.size(); ++step) {
    const int transformer = info.step_transformer[step];
    if (transformer < 0 || static_cast<size_t>(transformer) >= count) {
      throw refused("step " + std::to_string(step) + " uses transformer " + std::to_string(transformer) + " of " +
                    std::to_string(count));
    }
    used[static_cast<size_t>(transformer)] = 1;
  }
  const auto unused = std::find(used.begin(), used.end(), 0);
  if (unused != used.end()) throw refused("no step uses transformer " + std::to_string(unused - used.begin()));
}

// What a step is made from ran before it, in the same transformer.
void check_reuse(const PlanInfo& info) {
  if (info.step_reuse.empty()) return;
  if (info.step_reuse.size() != info.sigmas.size()) {
    throw refused("the reuse of " + counted(info.step_reuse.size(), "steps") + " is given for " +
                  counted(info.sigmas.size(), "steps"));
  }
  int ran = 0;
  for (int step = 0; step < static_cast<int>(info.sigmas.size()); ++step) {
    if (step > 0 && info.transformer_of(step) != info.transformer_of(step - 1)) ran = 0;
    const StepReuse reuse = info.reuse_of(step);
    if (reuse == StepReuse::kNone) ++ran;
    if (num_reuse_sources(reuse) <= ran) continue;
    throw refused("step " + std::to_string(step) + " is made from " + counted(num_reuse_sources(reuse), "steps") +
                  " before it (" + std::string(step_reuse_name(reuse)) + "), but " + std::to_string(ran) +
                  " of its transformer run");
  }
}

void check_eight_bits(const PlanInfo& info) {
  if (info.eight_bits.empty() || info.eight_bits.size() == info.sigmas.size()) return;
  throw refused("the parts in 8 bits of " + counted(info.eight_bits.size(), "steps") + " are given for " +
                counted(info.sigmas.size(), "steps"));
}

void check_accuracy(const PlanAccuracy& accuracy) {
  for (const auto& error :
       {accuracy.predicted, accuracy.measured, accuracy.latents_predicted, accuracy.latents_measured}) {
    if (error && !(*error >= 0 && std::isfinite(*error)))
      throw refused("its accuracy is given as an error of " + std::to_string(*error) + ", which cannot be");
  }
  for (const auto& psnr : {accuracy.psnr_predicted, accuracy.psnr_measured}) {
    if (psnr && !std::isfinite(*psnr)) throw refused("its accuracy is given as a PSNR that is not finite");
  }
}

void check_num_heads(const PlanInfo& info, size_t num_heads) {
  const auto expected = uint64_t{1} * static_cast<unsigned>(info.num_entries()) *
                        static_cast<unsigned>(info.num_layers) * static_cast<unsigned>(info.geometry.heads);
  if (num_heads != expected) {
    throw refused("there are " + counted(num_heads, "heads") + ", but " + std::to_string(info.num_entries()) +
                  " entries × " + counted(info.num_layers, "layers") + " × " + counted(info.geometry.heads, "heads") +
                  " are " + std::to_string(expected));
  }
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

// What is resident needs no decoding.
class ResidentLayers : public LayerSource {
 public:
  ResidentLayers(std::vector<HeadPlan> heads, int num_layers, int heads_per_layer) : num_layers_(num_layers) {
    for (auto head = heads.begin(); head != heads.end(); head += heads_per_layer) {
      layers_.push_back(std::make_shared<const PlanLayer>(std::make_move_iterator(head),
                                                          std::make_move_iterator(head + heads_per_layer)));
    }
  }
  std::shared_ptr<const PlanLayer> layer(int entry, int layer) const override {
    return layers_[static_cast<size_t>(entry) * static_cast<size_t>(num_layers_) + static_cast<size_t>(layer)];
  }

 private:
  int num_layers_;
  std::vector<std::shared_ptr<const PlanLayer>> layers_;
};

}  // namespace

void PlanInfo::validate() const {
  try {
    geometry.validate();
  } catch (const Error& error) {
    throw refused(error.what());
  }
  if (num_layers < 1 || num_layers > kMaxLayers) {
    throw refused("the number of layers must be between 1 and " + std::to_string(kMaxLayers) + ", not " +
                  std::to_string(num_layers));
  }
  check_steps(*this);
  check_entries(*this);
  check_transformers(*this);
  check_reuse(*this);
  check_eight_bits(*this);
  check_accuracy(accuracy);
  check_provenance(provenance);
}

int PlanInfo::num_entries() const {
  return step_entry.empty() ? 0 : *std::max_element(step_entry.begin(), step_entry.end()) + 1;
}

void Plan::set_info(PlanInfo info, bool any_anchored) {
  info_ = std::move(info);
  num_entries_ = info_.num_entries();
  if (!any_anchored) {
    info_.anchor_rows_per_frame = 0;
    return;
  }
  if (info_.anchor_rows_per_frame < 1 || info_.anchor_rows_per_frame > geometry().height) {
    throw refused("some heads are anchored, so the anchor rows per frame must be between 1 and the latent height " +
                  std::to_string(geometry().height) + ", not " + std::to_string(info_.anchor_rows_per_frame));
  }
  anchor_rows_ = make_anchor_rows(geometry(), info_.anchor_rows_per_frame);
}

Plan::Plan(Parts parts) {
  parts.validate();
  check_num_heads(parts, parts.heads.size());
  std::vector<HeadPlan> heads = std::move(parts.heads);
  set_info(std::move(parts), std::any_of(heads.begin(), heads.end(), [](const auto& head) { return head.anchored; }));

  const int num_tokens = geometry().num_tokens();
  facts_.reserve(heads.size());
  for (size_t i = 0; i < heads.size(); ++i) {
    const HeadPlan& head = heads[i];
    const int num_queries = head.anchored ? static_cast<int>(anchor_rows_.query_tokens.size()) : num_tokens;
    HeadFacts& facts = facts_.emplace_back();
    facts.anchored = head.anchored;
    facts.token_pairs = int64_t{num_queries} * num_tokens;
    if (!head.intervals) continue;
    const int num_query_blocks = ceil_div(num_queries, geometry().block_q);
    if (head.intervals->num_query_blocks() != num_query_blocks ||
        head.intervals->num_key_blocks() != geometry().num_key_blocks()) {
      throw refused(head_text(info_, i) + " has " + std::to_string(head.intervals->num_query_blocks()) + "×" +
                    counted(head.intervals->num_key_blocks(), "blocks") + ", but the geometry makes it " +
                    std::to_string(num_query_blocks) + "×" + std::to_string(geometry().num_key_blocks()));
    }
    facts.has_intervals = true;
    facts.num_intervals = static_cast<uint32_t>(head.intervals->intervals().size());
    facts.token_pairs =
        kept_token_pairs(*head.intervals, num_queries, geometry().block_q, num_tokens, geometry().block_k);
  }
  layers_ = std::make_shared<const ResidentLayers>(std::move(heads), num_layers(), geometry().heads);
}

Plan::Plan(PlanInfo info, std::vector<HeadFacts> facts, std::shared_ptr<const LayerSource> layers)
    : facts_(std::move(facts)), layers_(std::move(layers)) {
  CALIBATT_ASSERT(layers_ != nullptr);
  info.validate();
  check_num_heads(info, facts_.size());
  set_info(std::move(info), std::any_of(facts_.begin(), facts_.end(), [](const auto& head) { return head.anchored; }));
  check_facts();
}

// Whether the facts can be true at all. Whether they are is checked where a layer is decoded.
void Plan::check_facts() const {
  const int num_key_blocks = geometry().num_key_blocks();
  for (size_t i = 0; i < facts_.size(); ++i) {
    const HeadFacts& facts = facts_[i];
    const int num_queries =
        facts.anchored ? static_cast<int>(anchor_rows_.query_tokens.size()) : geometry().num_tokens();
    const int64_t num_rows = ceil_div(num_queries, geometry().block_q);
    const int64_t all_pairs = int64_t{num_queries} * geometry().num_tokens();
    const int64_t most = facts.has_intervals ? num_rows * ceil_div(num_key_blocks, 2) : 0;
    if (facts.num_intervals < (facts.has_intervals ? num_rows : 0) || facts.num_intervals > most) {
      throw refused(head_text(info_, i) + " is said to have " + std::to_string(facts.num_intervals) +
                    " intervals, which cannot be");
    }
    if (facts.token_pairs < 1 || facts.token_pairs > all_pairs ||
        (!facts.has_intervals && facts.token_pairs != all_pairs)) {
      throw refused(head_text(info_, i) + " is said to compute " + std::to_string(facts.token_pairs) +
                    " pairs of tokens, which cannot be");
    }
  }
}

std::shared_ptr<const PlanLayer> Plan::layer(int entry, int layer) const {
  static_cast<void>(index(entry, layer, 0));  // in range
  return layers_->layer(entry, layer);
}

HeadPlan Plan::entry_head(int entry, int layer, int head) const {
  static_cast<void>(index(entry, layer, head));
  return (*this->layer(entry, layer))[static_cast<size_t>(head)];
}

Plan::Parts Plan::to_parts() const {
  Parts parts;
  static_cast<PlanInfo&>(parts) = info_;
  parts.heads.reserve(facts_.size());
  for (int entry = 0; entry < num_entries(); ++entry) {
    for (int layer = 0; layer < num_layers(); ++layer) {
      const auto heads = this->layer(entry, layer);
      parts.heads.insert(parts.heads.end(), heads->begin(), heads->end());
    }
  }
  return parts;
}

EndOfRun PlanAccuracy::end_of_run() const {
  constexpr double kSamePixels = std::numeric_limits<double>::infinity();
  EndOfRun end{latents_predicted, latents_measured, psnr_predicted, psnr_measured};
  const bool knows_psnr = psnr_predicted || latents_predicted == 0.0;  // earlier versions did not
  if (latents_predicted == 0.0) end.psnr_predicted = kSamePixels;      // earlier ones gave it a number
  if (latents_measured == 0.0 || (knows_psnr && latents_measured && !psnr_measured)) end.psnr_measured = kSamePixels;
  return end;
}

int PlanInfo::num_reused_steps() const {
  return static_cast<int>(step_reuse.size() - static_cast<size_t>(std::ranges::count(step_reuse, StepReuse::kNone)));
}

double Plan::density(int step, int layer, int head) const {
  if (info_.reuse_of(step) != StepReuse::kNone) return 0;
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
  return sum / (static_cast<double>(num_steps() - info_.num_reused_steps()) * num_layers());
}

int Plan::nearest_step(double sigma, int transformer) const {
  int nearest = -1;
  double least = 0;
  for (int step = 0; step < num_steps(); ++step) {
    if (info_.transformer_of(step) != transformer) continue;
    const double distance = std::abs(info_.sigmas[static_cast<size_t>(step)] - sigma);
    if (nearest >= 0 && distance >= least) continue;
    nearest = step;
    least = distance;
  }
  CALIBATT_ASSERT(nearest >= 0);
  return nearest;
}

}  // namespace calibatt
