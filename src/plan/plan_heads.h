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

/// "entry 1, layer 2" of a section's place in [entries, layers].
std::string section_text(const PlanInfo& info, size_t section);
/// "entry 1, layer 2, head 3" of a head's place in [entries, layers, heads].
std::string head_text(const PlanInfo& info, size_t head);

/// The tensors that follow the common ones, and the plan. Version 1 is decoded whole; the result of versions 2 and 3
/// decodes on demand and keeps the tensor `sections`.
Plan read_heads_v1(TensorReader& reader, PlanInfo info);
Plan read_heads_v2(TensorReader& reader, PlanInfo info);

/// What tells one version of the format from the others.
struct PlanVersion {
  int number = 0;
  Plan (*read_heads)(TensorReader& reader, PlanInfo info) = nullptr;
  bool sections_apart = true;      ///< sections have checksums of their own, and the file's leaves them out
  bool many_transformers = false;  ///< the provenance has a list of them, else one name and one fingerprint
};
/// Null where this program does not know the version; the last one is written.
const PlanVersion* find_plan_version(int number);

/// The tensors that do not depend on the heads, as all versions store them.
void put_common_tensors(const PlanInfo& info, std::map<std::string, Tensor>& tensors);
void put_head_kinds(const PlanInfo& info, const std::vector<HeadFacts>& facts, std::map<std::string, Tensor>& tensors);

}  // namespace calibatt
