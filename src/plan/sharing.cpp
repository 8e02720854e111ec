#include "plan/sharing.h"

#include <utility>

namespace calibatt {
namespace {

// The heads of one entry as masks, in their own query blocks (`mask`) and, for comparison, in those of all tokens.
struct HeadMasks {
  bool anchored = false;
  BlockMask mask;
  BlockMask by_token;
};

class StepSharer {
 public:
  StepSharer(const Plan& plan, std::function<void()> poll) : plan_(plan), poll_(std::move(poll)) {
    if (plan.anchor_rows().query_tokens.empty()) return;
    // packed_of_[r]: the packed query blocks that compute outputs of query block r's tokens.
    const AttentionGeometry& geometry = plan.geometry();
    packed_of_.resize(static_cast<size_t>(geometry.num_query_blocks()));
    for (int token = 0; token < geometry.num_tokens(); ++token) {
      auto& packed = packed_of_[static_cast<size_t>(token / geometry.block_q)];
      const int block = plan.anchor_rows().source_of[static_cast<size_t>(token)] / geometry.block_q;
      if (packed.empty() || packed.back() != block) packed.push_back(block);  // repeats do no harm
    }
  }

  std::vector<HeadMasks> masks_of(int entry) const {
    std::vector<HeadMasks> result;
    for (int layer = 0; layer < plan_.num_layers(); ++layer) {
      poll_();
      const auto heads = plan_.layer(entry, layer);
      for (const HeadPlan& head : *heads) result.push_back(head_masks(head));
    }
    return result;
  }

  static double agreement(const std::vector<HeadMasks>& a, const std::vector<HeadMasks>& b) {
    int64_t both = 0, either = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      const int64_t kept_by_either = union_of(a[i].by_token, b[i].by_token).count();
      either += kept_by_either;
      both += a[i].by_token.count() + b[i].by_token.count() - kept_by_either;
    }
    return static_cast<double>(both) / static_cast<double>(either);
  }

  static void unite(std::vector<HeadMasks>& group, const std::vector<HeadMasks>& step) {
    for (size_t i = 0; i < group.size(); ++i) {
      group[i].by_token = union_of(group[i].by_token, step[i].by_token);
      if (group[i].anchored && step[i].anchored) {
        group[i].mask = union_of(group[i].mask, step[i].mask);
      } else {
        group[i].anchored = false;
        group[i].mask = group[i].by_token;
      }
    }
  }

  void append_heads(const std::vector<HeadMasks>& group, std::vector<HeadPlan>& heads) const {
    for (const HeadMasks& masks : group) {
      if (heads.size() % static_cast<size_t>(plan_.geometry().heads) == 0) poll_();
      HeadPlan head;
      head.anchored = masks.anchored;
      const bool all = masks.mask.count() == int64_t{masks.mask.num_query_blocks()} * masks.mask.num_key_blocks();
      if (!all) head.intervals = BlockIntervals::from_mask(masks.mask);
      heads.push_back(std::move(head));
    }
  }

 private:
  HeadMasks head_masks(const HeadPlan& head) const {
    const AttentionGeometry& geometry = plan_.geometry();
    const int num_query_blocks =
        head.anchored ? plan_.anchor_rows().num_query_blocks(geometry.block_q) : geometry.num_query_blocks();
    HeadMasks result;
    result.anchored = head.anchored;
    result.mask =
        head.intervals ? head.intervals->to_mask() : BlockMask(num_query_blocks, geometry.num_key_blocks(), true);
    if (!head.anchored) {
      result.by_token = result.mask;
      return result;
    }
    result.by_token = BlockMask(geometry.num_query_blocks(), geometry.num_key_blocks());
    for (int r = 0; r < geometry.num_query_blocks(); ++r) {
      for (const int packed : packed_of_[static_cast<size_t>(r)]) {
        for (int c = 0; c < geometry.num_key_blocks(); ++c) {
          if (result.mask.kept(packed, c)) result.by_token.set(r, c, true);
        }
      }
    }
    return result;
  }

  const Plan& plan_;
  std::function<void()> poll_;
  std::vector<std::vector<int>> packed_of_;
};

}  // namespace

Plan::Parts share_adjacent_steps(Plan::Parts parts, double iou_threshold, const std::function<void()>& poll) {
  if (!(iou_threshold > 0 && iou_threshold <= 1)) {
    throw Error(ErrorKind::kUsage, "the IoU from which steps share their masks must be above 0 and at most 1, not " +
                                       std::to_string(iou_threshold));
  }
  const Plan plan(parts);
  const StepSharer sharer(
      plan, poll ? poll : [] {});
  parts.heads.clear();
  std::vector<HeadMasks> group;
  int num_groups = 0, last_entry = -1;
  for (int step = 0; step < plan.num_steps(); ++step) {
    const int entry = plan.entry_of(step);
    if (entry != last_entry) {
      std::vector<HeadMasks> masks = sharer.masks_of(entry);
      if (num_groups > 0 && StepSharer::agreement(group, masks) >= iou_threshold) {
        StepSharer::unite(group, masks);
      } else {
        sharer.append_heads(group, parts.heads);
        group = std::move(masks);
        ++num_groups;
      }
    }
    last_entry = entry;
    parts.step_entry[static_cast<size_t>(step)] = num_groups - 1;
  }
  sharer.append_heads(group, parts.heads);
  return parts;
}

}  // namespace calibatt
