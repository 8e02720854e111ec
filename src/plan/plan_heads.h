#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plan/plan_file.h"
#include "plan/plan_tensors.h"

// What the versions of the format have in common, and where they differ. Inside this floor.
namespace calibatt {

inline constexpr char kPlanFormatName[] = "calibatt.plan";
inline constexpr uint8_t kHasIntervals = 1, kAnchored = 2;  // bits of head_kind

/// `head_kind`, checked, with what depends on it.
struct HeadKinds {
  std::vector<uint8_t> kind;  ///< [entries · layers · heads]
  int num_packed_blocks = 0;  ///< query blocks of an anchored head; 0 when there is none
  bool any(uint8_t bit) const;
};
/// Takes head_kind and, when a head is anchored, anchor_rows.
HeadKinds take_head_kinds(TensorReader& reader, const PlanInfo& info);

/// "entry 1, layer 2" of a site in [entries, layers].
std::string site_text(const PlanInfo& info, size_t site);

/// The tensors that follow the common ones, and the plan. Version 1 is decoded whole; the result of version 2 decodes
/// on demand and keeps the tensor `sections`.
Plan read_heads_v1(TensorReader& reader, PlanInfo info);
Plan read_heads_v2(TensorReader& reader, PlanInfo info);

/// The tensors that do not depend on the heads, as both versions store them.
void put_common_tensors(const PlanInfo& info, std::map<std::string, Tensor>& tensors);
void put_head_kinds(const PlanInfo& info, const std::vector<HeadFacts>& facts, std::map<std::string, Tensor>& tensors);

}  // namespace calibatt
