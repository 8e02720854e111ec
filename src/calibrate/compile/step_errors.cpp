#include "calibrate/compile/step_errors.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/error.h"

namespace calibatt {
namespace {

std::vector<double> of_sources(const ProfileHeader& header, const std::vector<int>& sources) {
  std::vector<double> sigmas;
  sigmas.reserve(sources.size());
  for (const int source : sources) sigmas.push_back(header.sigmas[static_cast<size_t>(source)]);
  return sigmas;
}

/// Twice the product of two errors: half of it where they cancel each other.
double believed(double twice_product) {
  constexpr double kCancelling = 0.5;
  return twice_product < 0 ? kCancelling * twice_product : twice_product;
}

}  // namespace

StepErrors::StepErrors(const Profile& profile, const StepGrowth& growth, std::optional<size_t> left_out)
    : profile_(profile),
      header_(profile.header),
      num_steps_(profile.header.num_steps()),
      size_(static_cast<size_t>(num_steps_) + 1),
      solver_(nullptr),
      mean_(size_ * size_, 0.0) {
  for (const PromptProfile& prompt : profile.prompts) {
    if (!prompt.step_products.empty()) continue;
    throw Error(ErrorKind::kUsage,
                prompt.path +
                    " does not say what its steps predicted (an earlier version measured it, or another program): a "
                    "plan that reuses steps needs a new profile; give another --profile folder, or ask for --density");
  }
  const size_t count = profile.prompts.size() - (left_out ? 1 : 0);
  CALIBATT_ASSERT(count > 0);
  solver_ = profile.prompts[0].solver_weights.data<double>();
  for (size_t p = 0; p < profile.prompts.size(); ++p) {
    if (p == left_out) continue;
    const auto* products = profile.prompts[p].step_products.data<double>();
    const double share = 1 / (latents_of(profile.prompts[p]) * static_cast<double>(count));
    for (size_t i = 0; i < mean_.size(); ++i) mean_[i] += share * products[i];
  }
  at_end_ = growth_of_steps(growth, header_.sigmas, ErrorOf::kReuse);
  masks_at_end_ = growth_of_steps(growth, header_.sigmas, ErrorOf::kMasks);
  for (size_t step = 0; step < at_end_.size(); ++step) {
    const double weight = solver_[static_cast<size_t>(num_steps_) * size_ + step + 1];
    at_end_[step] *= weight;
    masks_at_end_[step] *= weight;
  }
}

double StepErrors::latents_of(const PromptProfile& prompt) const {
  const double* const last = solver_ + static_cast<size_t>(num_steps_) * size_;
  Combination latents;
  for (size_t i = 0; i < size_; ++i) latents.emplace_back(i, last[i]);
  return product(prompt.step_products.data<double>(), latents, latents);
}

template <class Visit>
void StepErrors::for_each_reused(const std::vector<StepReuse>& reuse, const Visit& visit) const {
  std::vector<int> ran;  // of the present transformer, the latest first
  for (int step = 0; step < num_steps_; ++step) {
    const auto at = static_cast<size_t>(step);
    const std::vector<int>& transformer = header_.step_transformer;
    if (step > 0 && !transformer.empty() && transformer[at] != transformer[at - 1]) ran.clear();
    if (reuse[at] == StepReuse::kNone) {
      ran.insert(ran.begin(), step);
      if (ran.size() > 2) ran.pop_back();
    } else {
      visit(step, ran);
    }
  }
}

bool StepErrors::is_possible(const std::vector<StepReuse>& reuse) const {
  bool possible = true;
  for_each_reused(reuse, [&](int step, const std::vector<int>& ran) {
    if (static_cast<size_t>(num_reuse_sources(reuse[static_cast<size_t>(step)])) > ran.size()) possible = false;
  });
  return possible;
}

std::vector<StepErrors::Combination> StepErrors::changes(const std::vector<StepReuse>& reuse) const {
  std::vector<Combination> changes;
  for_each_reused(reuse, [&](int step, const std::vector<int>& ran) {
    const auto at = static_cast<size_t>(step);
    const ReuseWeights weights = reuse_weights(reuse[at], header_.sigmas[at], of_sources(header_, ran));
    const double share = at_end_[at];
    Combination& change = changes.emplace_back();
    change.emplace_back(at + 1, -share);
    for (size_t s = 0; s < ran.size(); ++s) {
      if (weights.predictions[s] != 0) change.emplace_back(ran[s] + 1, share * weights.predictions[s]);
    }
    if (weights.latents == 0) return;
    const double *const now = solver_ + at * size_, *const then = solver_ + static_cast<size_t>(ran[0]) * size_;
    for (size_t i = 0; i < size_; ++i) {
      if (now[i] != then[i]) change.emplace_back(i, share * weights.latents * (now[i] - then[i]));
    }
  });
  return changes;
}

double StepErrors::product(const double* products, const Combination& a, const Combination& b) const {
  double sum = 0;
  for (const auto& [i, of_a] : a) {
    for (const auto& [k, of_b] : b) sum += of_a * of_b * products[i * size_ + k];
  }
  return sum;
}

double StepErrors::mean_square_of_sum(const double* products, const std::vector<Combination>& changes) const {
  double sum = 0;
  for (size_t a = 0; a < changes.size(); ++a) {
    sum += product(products, changes[a], changes[a]);
    for (size_t b = 0; b < a; ++b) sum += believed(2 * product(products, changes[a], changes[b]));
  }
  return std::max(sum, 0.0);
}

double StepErrors::of(const std::vector<StepReuse>& reuse) const {
  return mean_square_of_sum(mean_.data(), changes(reuse));
}

double StepErrors::of_prompt(size_t prompt, const std::vector<StepReuse>& reuse) const {
  const PromptProfile& one = profile_.prompts[prompt];
  return mean_square_of_sum(one.step_products.data<double>(), changes(reuse)) / latents_of(one);
}

std::vector<double> StepErrors::forward_weights(const std::vector<StepReuse>& reuse) const {
  std::vector<std::vector<double>> shares(at_end_.size());  // of the end, which a change of the step's forward changes
  for (size_t step = 0; step < shares.size(); ++step) shares[step].push_back(at_end_[step]);
  for_each_reused(reuse, [&](int step, const std::vector<int>& ran) {
    const auto at = static_cast<size_t>(step);
    const ReuseWeights weights = reuse_weights(reuse[at], header_.sigmas[at], of_sources(header_, ran));
    for (size_t s = 0; s < ran.size(); ++s) {
      shares[static_cast<size_t>(ran[s])].push_back(at_end_[at] * weights.predictions[s]);
    }
  });
  std::vector<double> of_steps;
  for (size_t step = 0; step < shares.size(); ++step) {
    double square = 0;
    for (size_t a = 0; a < shares[step].size(); ++a) {
      square += shares[step][a] * shares[step][a];
      for (size_t b = 0; b < a; ++b) square += believed(2 * shares[step][a] * shares[step][b]);
    }
    const double alone = at_end_[step] * at_end_[step];
    of_steps.push_back(reuse[step] != StepReuse::kNone ? 0 : alone == 0 ? 1 : square / alone);
  }
  return of_steps;
}

std::vector<double> StepErrors::mask_weights() const {
  std::vector<double> weights;
  weights.reserve(masks_at_end_.size());
  for (const double each : masks_at_end_) weights.push_back(each * each);
  return weights;
}

namespace {

/// Values above 0 at some steps (rising).
using Curve = std::vector<std::pair<int, double>>;

/// At every step: the logarithm is linear between those of the curve, and constant outside.
std::vector<double> along(const Curve& curve, int num_steps) {
  std::vector<double> values;
  values.reserve(static_cast<size_t>(num_steps));
  for (int step = 0; step < num_steps; ++step) {
    const auto after = std::ranges::find_if(curve, [step](const auto& each) { return each.first >= step; });
    if (after == curve.end() || after == curve.begin() || after->first == step) {
      values.push_back(after == curve.end() ? curve.back().second : after->second);
      continue;
    }
    const auto& [from, a] = *(after - 1);
    const double t = static_cast<double>(step - from) / (after->first - from);
    values.push_back(std::exp(std::log(a) * (1 - t) + std::log(after->second) * t));
  }
  return values;
}

}  // namespace

std::vector<double> growth_of_steps(const StepGrowth& growth, std::span<const double> sigmas, ErrorOf errors) {
  constexpr double kUndecided = 0.995;
  const auto num_steps = static_cast<int>(sigmas.size());
  const auto data_share = [&](int step) {  // behind the step
    return step + 1 < num_steps ? std::max(1 - sigmas[static_cast<size_t>(step) + 1], 1e-3) : 1.0;
  };
  int first = 0;
  while (first + 1 < num_steps && 1 - data_share(first) >= kUndecided) ++first;
  Curve shares;
  if (growth.factors.empty()) {
    shares.emplace_back(first, 1);
  } else if (const int measured = growth.factors.front().step; measured > first) {
    const int middle = (first + measured) / 2;
    if (errors == ErrorOf::kMasks) {
      for (int step = first; step <= middle; ++step) shares.emplace_back(step, data_share(measured) / data_share(step));
    } else {
      shares.emplace_back(first, 1);
      if (middle > first) shares.emplace_back(middle, growth.factors.front().factor * data_share(measured));
    }
  }
  for (const StepGrowth::Factor& each : growth.factors) {
    shares.emplace_back(each.step, each.factor * data_share(each.step));
  }
  if (shares.back().first < num_steps - 1) shares.emplace_back(num_steps - 1, 1);
  std::vector<double> factors = along(shares, num_steps);
  for (int step = 0; step < num_steps; ++step) factors[static_cast<size_t>(step)] /= data_share(std::max(step, first));
  return factors;
}

std::vector<double> mask_changes_of_steps(const StepGrowth& growth, int num_steps) {
  Curve changes;
  for (const StepGrowth::MaskChange& each : growth.mask_changes) changes.emplace_back(each.step, each.per_error);
  CALIBATT_ASSERT(!changes.empty());
  return along(changes, num_steps);
}

std::vector<double> eight_bit_changes_of_steps(const std::vector<StepGrowth::EightBitChange>& changes, int num_steps) {
  if (changes.empty()) return {};
  Curve curve;
  for (const StepGrowth::EightBitChange& each : changes) curve.emplace_back(each.step, each.change);
  return along(curve, num_steps);
}

namespace {

using Reuse = std::vector<StepReuse>;
using Poll = std::function<void()>;
constexpr StepReuse kWays[] = {StepReuse::kHold, StepReuse::kResidual, StepReuse::kLinear};

struct Found {
  Reuse reuse;
  double error = std::numeric_limits<double>::infinity();
};

/// Calls visit(set, error) for each way to reuse one step more than `from` does. The last step runs: its forward takes
/// back part of what all steps before it erred, which the growth of single steps counts on.
template <class Visit>
void for_each_with_one_more(const StepErrors& errors, const Reuse& from, const Visit& visit) {
  for (size_t step = 1; step + 1 < from.size(); ++step) {
    if (from[step] != StepReuse::kNone) continue;
    for (const StepReuse way : kWays) {
      Reuse reuse = from;
      reuse[step] = way;
      if (!errors.is_possible(reuse)) continue;
      const double error = errors.of(reuse);
      visit(std::move(reuse), error);
    }
  }
}

/// `from` with one more step reused, whichever is best. Infinite where none can be.
Found one_more(const StepErrors& errors, const Reuse& from) {
  Found best;
  for_each_with_one_more(errors, from, [&](Reuse&& reuse, double error) {
    if (error < best.error) best = {std::move(reuse), error};
  });
  return best;
}

/// The best sets with one step more than these have, at most so many.
std::vector<Found> widened(const StepErrors& errors, const std::vector<Found>& sets, const Poll& poll) {
  constexpr size_t kMostSets = 24;
  std::vector<Found> more;
  for (const Found& from : sets) {
    poll();
    for_each_with_one_more(errors, from.reuse, [&](Reuse&& reuse, double error) {
      more.push_back({std::move(reuse), error});
    });
  }
  std::ranges::sort(
      more, [](const Found& a, const Found& b) { return a.error != b.error ? a.error < b.error : a.reuse < b.reuse; });
  const auto same = [](const Found& a, const Found& b) { return a.reuse == b.reuse; };
  more.erase(std::unique(more.begin(), more.end(), same), more.end());
  if (more.size() > kMostSets) more.resize(kMostSets);
  return more;
}

/// A line needs two steps that ran: where no step more can be reused, one can without lines.
std::vector<Found> without_lines(std::vector<Found> sets) {
  for (Found& each : sets) std::ranges::replace(each.reuse, StepReuse::kLinear, StepReuse::kHold);
  return sets;
}

/// Exchanges single steps, and ways, while that helps.
Found exchanged(const StepErrors& errors, Found found, const Poll& poll) {
  constexpr int kMostRounds = 20;
  for (int round = 0; round < kMostRounds; ++round) {
    Found best = found;
    for (size_t step = 1; step < found.reuse.size(); ++step) {
      if (found.reuse[step] == StepReuse::kNone) continue;
      poll();
      Reuse without = found.reuse;
      without[step] = StepReuse::kNone;
      if (Found other = one_more(errors, without); other.error < best.error) best = std::move(other);
    }
    if (!(best.error < found.error)) break;
    found = std::move(best);
  }
  return found;
}

/// The best of the sets with one reused step fewer.
Found one_fewer(const StepErrors& errors, const Reuse& from) {
  Found best;
  for (size_t step = 1; step < from.size(); ++step) {
    if (from[step] == StepReuse::kNone) continue;
    Reuse reuse = from;
    reuse[step] = StepReuse::kNone;  // a forward more is always possible
    if (const double error = errors.of(reuse); error < best.error) best = {std::move(reuse), error};
  }
  return best;
}

}  // namespace

std::vector<std::vector<StepReuse>> best_reuse(const StepErrors& errors, int most, const Poll& poll) {
  const Poll heard = poll ? poll : [] {};
  std::vector<Found> best{{Reuse(static_cast<size_t>(errors.num_steps()), StepReuse::kNone), 0}}, sets = best;
  while (static_cast<int>(best.size()) <= most) {
    std::vector<Found> more = widened(errors, sets, heard);
    if (more.empty()) more = widened(errors, without_lines(std::move(sets)), heard);
    if (more.empty()) break;
    sets = std::move(more);
    best.push_back(exchanged(errors, sets.front(), heard));
    sets.push_back(best.back());
  }
  for (size_t count = best.size() - 1; count-- > 1;) {
    Found fewer = exchanged(errors, one_fewer(errors, best[count + 1].reuse), heard);
    if (fewer.error < best[count].error) best[count] = std::move(fewer);
  }
  std::vector<Reuse> reuse;
  reuse.reserve(best.size());
  for (Found& each : best) reuse.push_back(std::move(each.reuse));
  return reuse;
}

}  // namespace calibatt
