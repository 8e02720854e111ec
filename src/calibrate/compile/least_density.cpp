#include "calibrate/compile/least_density.h"

#include <algorithm>
#include <cstdio>
#include <set>
#include <utility>

#include "base/error.h"
#include "calibrate/compile/compile.h"
#include "calibrate/compile/energy_schedule.h"
#include "calibrate/compile/run_cost.h"
#include "calibrate/compile/unreachable_target.h"

namespace calibatt {
namespace {

double own_density(const AttentionGeometry& geometry, const AnchorRows* anchors) {
  const int num_queries = anchors ? static_cast<int>(anchors->query_tokens.size()) : geometry.num_tokens();
  std::set<std::pair<int, int>> kept;
  double pairs = 0;
  for (int i = 0; i < num_queries; ++i) {
    const int query_block = i / geometry.block_q;
    const int key_block = (anchors ? anchors->query_tokens[static_cast<size_t>(i)] : i) / geometry.block_k;
    if (!kept.emplace(query_block, key_block).second) continue;
    const int queries = std::min(geometry.block_q, num_queries - query_block * geometry.block_q);
    pairs += double{1} * queries * geometry.key_block_size(key_block);
  }
  return pairs / (double{1} * geometry.num_tokens() * geometry.num_tokens());
}

}  // namespace

double least_density(const CompileOptions& options, const ProfileHeader& header) {
  const double all_rows = own_density(header.geometry, nullptr);
  if (options.repetition == Repetition::kOff) return all_rows;
  const AnchorRows anchors = make_anchor_rows(header.geometry, options.anchor_rows_per_frame);
  return std::min(all_rows, own_density(header.geometry, &anchors));
}

void require_possible_density(const CompileOptions& options, const ProfileHeader& header) {
  const std::optional<double> target = options.density ? options.density : options.target_density();
  if (!target) return;
  const double least = least_density(options, header);
  if (is_near_density(least, *target)) return;
  const AttentionGeometry& g = header.geometry;
  char text[300];
  std::snprintf(text, sizeof text,
                "--density %.4g%s: cannot be reached: with blocks of %d queries and %d keys the least for this video's "
                "%d tokens is %.3f; ask for more, or measure %s",
                *target, options.density ? "" : " (the default)", g.block_q, g.block_k, g.num_tokens(), least,
                kSmallerBlocks);
  throw Error(ErrorKind::kUsage, text);
}

int least_forwards(const ProfileHeader& header) {
  int parts = 1;  // of the run, each with its transformer, whose first step has nothing to be made from
  const std::vector<int>& transformer = header.step_transformer;
  for (size_t step = 1; step < transformer.size(); ++step) parts += transformer[step] != transformer[step - 1];
  return std::max(parts, 2);
}

double most_speedup(const CompileOptions& options, const ProfileHeader& header, int forwards) {
  const double least = options.density.value_or(least_density(options, header));
  const RunCost cost(options, header);
  Forwards in_eight_bits{.all = forwards};
  const auto most = [&](bool allowed, double saved, std::optional<int> from) {
    if (!allowed || saved <= 0) return 0;
    if (!options.tells_eight_bits()) return forwards;
    return std::clamp(header.num_steps() - from.value_or(header.num_steps()), 0, forwards);
  };
  in_eight_bits.layers = most(options.may_be_eight_bit.layers, cost.saved_by_layers(), options.eight_bit_layers_from);
  in_eight_bits.attention =
      most(options.may_be_eight_bit.attention, cost.saved_by_attention(least), options.eight_bit_attention_from);
  return header.num_steps() / (forwards * cost.of(in_eight_bits, least));
}

void require_possible_speedup(const CompileOptions& options, const ProfileHeader& header, bool share_is_known) {
  if (!options.speedup) return;
  const auto most_of_share = [&](double share) {
    CompileOptions with = options;
    with.attention_share = share;
    return most_speedup(with, header, least_forwards(header));
  };
  // Masks make the most of a run that is all attention, layers in 8 bits of one that has none.
  const double most =
      share_is_known ? most_of_share(options.attention_share) : std::max(most_of_share(1), most_of_share(0));
  if (*options.speedup <= most) return;
  char asked[60], share[80] = "", density[40] = "", why[240];
  std::snprintf(asked, sizeof asked, "--speedup %.4g:", *options.speedup);
  if (share_is_known) {
    std::snprintf(share, sizeof share, "this model's share of attention (%.2f) and ", options.attention_share);
  }
  if (options.density) std::snprintf(density, sizeof density, " at density %.3g", *options.density);
  std::snprintf(why, sizeof why,
                "%s: with %sthese blocks the most that a run of %d steps can be is about %.2f; ask for less", density,
                share, header.num_steps(), most);
  throw UnreachableTarget(asked, why, *options.speedup / most);
}

std::string note_of_overshoot(const CompileOptions& options, const ProfileHeader& header, double predicted,
                              int reused) {
  constexpr double kMuch = 1.05;
  if (!options.speedup || predicted <= kMuch * *options.speedup) return "";
  char text[320];
  if (options.density) {
    std::snprintf(text, sizeof text,
                  "with --density %.3g the transformer is predicted to be %.2f times as fast, more than --speedup %.4g "
                  "asks for; leave --density out, or ask for a higher one, to lose less",
                  *options.density, predicted, *options.speedup);
    return text;
  }
  if (reused == 0) return "";
  const double with_one_fewer = most_speedup(options, header, header.num_steps() - reused + 1);
  if (with_one_fewer >= *options.speedup) return "";  // it would have met the target: this one errs less
  std::snprintf(text, sizeof text,
                "the transformer is predicted to be %.2f times as fast, more than --speedup %.4g asks for: whole steps "
                "are reused, and with one fewer of these %d steps masks reach about %.2f; ask for no more than that to "
                "lose less, or for more steps",
                predicted, *options.speedup, header.num_steps(), with_one_fewer);
  return text;
}

}  // namespace calibatt
