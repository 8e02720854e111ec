// Versions 2 and 3 of the plan file: an index, and the masks of each (entry, layer) in a section that is decoded on
// demand.
#include <cstring>
#include <utility>
#include <vector>

#include "base/mapped_ranges.h"
#include "calibatt/counted.h"
#include "plan/plan_heads.h"
#include "plan/plan_section.h"

namespace calibatt {
namespace {

template <class Value>
std::vector<Value> copied(const Tensor& tensor) {
  return {tensor.data<Value>(), tensor.data<Value>() + tensor.size()};
}

class FileLayers : public LayerSource {
 public:
  FileLayers(TensorReader& reader, const PlanInfo& info, std::vector<HeadFacts> facts, int num_packed_blocks)
      : where_(reader.where()), info_(info), facts_(std::move(facts)), num_packed_blocks_(num_packed_blocks) {
    const int64_t entries = info.num_entries(), layers = info.num_layers;
    sections_ = reader.take("sections", {-1}, {DType::kU8});
    ends_ = copied<int64_t>(reader.take("section_end", {entries, layers}, {DType::kI64}));
    checksums_ =
        copied<uint8_t>(reader.take("section_checksum", {entries, layers, sizeof(SectionChecksum)}, {DType::kU8}));
    int64_t begin = 0;
    for (int64_t site = 0; site < static_cast<int64_t>(ends_.size()); ++site) {
      const int64_t end = ends_[static_cast<size_t>(site)];
      if (end < begin || end > sections_.size()) {
        throw at(site, "its section ends at byte " + std::to_string(end) + ", which cannot be between byte " +
                           std::to_string(begin) + " and the end of 'sections' at " + std::to_string(sections_.size()));
      }
      if (shape_of(site).size_bytes() > kMaxSectionBytes) {
        throw at(site, "its masks would have " + counted(shape_of(site).size_bytes(), "bytes") + ", more than the " +
                           std::to_string(kMaxSectionBytes) + " that a plan may have");
      }
      begin = end;
    }
  }

  std::shared_ptr<const PlanLayer> layer(int entry, int layer) const override {
    const int64_t site = int64_t{entry} * info_.num_layers + layer;
    const SectionShape shape = shape_of(site);
    const SectionBits bits = bits_of(site, shape);
    const std::span<const HeadFacts> facts = facts_of(site);
    try {
      auto heads = std::make_shared<PlanLayer>(layer_of_bits(bits, shape, facts));
      check_pairs(*heads, facts);
      return heads;
    } catch (const Error& error) {
      throw at(site, error.what());
    }
  }

 private:
  Error at(int64_t site, const std::string& what) const {
    return Error(ErrorKind::kFormat, where_ + ": " + section_text(info_, static_cast<size_t>(site)) + ": " + what);
  }
  std::span<const HeadFacts> facts_of(int64_t site) const {
    const auto num_heads = static_cast<size_t>(info_.geometry.heads);
    return {facts_.data() + static_cast<size_t>(site) * num_heads, num_heads};
  }
  SectionShape shape_of(int64_t site) const {
    return section_shape(facts_of(site), info_.geometry, num_packed_blocks_);
  }

  std::span<const unsigned char> stored(int64_t site) const {
    const auto index = static_cast<size_t>(site);
    const int64_t begin = index == 0 ? 0 : ends_[index - 1], end = ends_[index];
    const std::span<const unsigned char> bytes(sections_.data<unsigned char>() + begin,
                                               static_cast<size_t>(end - begin));
    const SectionChecksum checksum = section_checksum(bytes);
    require_mapped_files();
    if (std::memcmp(checksum.data(), checksums_.data() + index * checksum.size(), checksum.size()) != 0) {
      throw at(site, "its masks, bytes " + std::to_string(begin) + " to " + std::to_string(end) +
                         " of 'sections', were altered or damaged (checksum); copy the plan anew");
    }
    return bytes;
  }

  // Sections that refer to the entry before are at most kKeyEntryInterval behind each other.
  SectionBits bits_of(int64_t site, const SectionShape& shape) const {
    const std::span<const unsigned char> bytes = stored(site);
    bool in_previous = false;
    try {
      FilteredSection section = decompress_section(bytes, shape);
      const bool is_key = site / info_.num_layers % kKeyEntryInterval == 0;
      if (is_key || !section.needs_previous()) return unfiltered(std::move(section), shape, {});
      const int64_t previous_site = site - info_.num_layers;
      const SectionShape previous_shape = shape_of(previous_site);
      in_previous = true;  // whose errors name that section
      const SectionBits previous = bits_of(previous_site, previous_shape);
      in_previous = false;
      return unfiltered(std::move(section), shape, {&previous, &previous_shape});
    } catch (const Error& error) {
      if (in_previous) throw;
      throw at(site, error.what());
    }
  }

  void check_pairs(const PlanLayer& heads, std::span<const HeadFacts> facts) const {
    const AttentionGeometry& geometry = info_.geometry;
    const int num_anchor_tokens = geometry.frames * info_.anchor_rows_per_frame * geometry.width + geometry.text_tokens;
    for (size_t head = 0; head < heads.size(); ++head) {
      if (!heads[head].intervals) continue;
      const int num_queries = heads[head].anchored ? num_anchor_tokens : geometry.num_tokens();
      const int64_t pairs = kept_token_pairs(*heads[head].intervals, num_queries, geometry.block_q,
                                             geometry.num_tokens(), geometry.block_k);
      if (pairs == facts[head].token_pairs) continue;
      throw Error(ErrorKind::kFormat, "head " + std::to_string(head) + " computes " + std::to_string(pairs) +
                                          " pairs of tokens, but the index says " +
                                          std::to_string(facts[head].token_pairs));
    }
  }

  std::string where_;
  PlanInfo info_;
  std::vector<HeadFacts> facts_;
  int num_packed_blocks_;
  Tensor sections_;  // a view that keeps the file mapped
  // Copies: what was checked when the file was opened must not change when somebody writes into the file.
  std::vector<int64_t> ends_;
  std::vector<uint8_t> checksums_;
};

}  // namespace

Plan read_heads_v2(TensorReader& reader, PlanInfo info) {
  const HeadKinds kinds = take_head_kinds(reader, info);
  const std::vector<int64_t> per_head{info.num_entries(), info.num_layers, info.geometry.heads};
  const UnsignedReader num_intervals = reader.take_unsigned("num_intervals", per_head);
  const Tensor token_pairs = reader.take("token_pairs", per_head, {DType::kI64});
  std::vector<HeadFacts> facts(kinds.kind.size());
  for (size_t i = 0; i < facts.size(); ++i) {
    facts[i].has_intervals = (kinds.kind[i] & kHasIntervals) != 0;
    facts[i].anchored = (kinds.kind[i] & kAnchored) != 0;
    facts[i].num_intervals = num_intervals[static_cast<int64_t>(i)];
    facts[i].token_pairs = token_pairs.data<int64_t>()[i];
  }
  auto layers = std::make_shared<const FileLayers>(reader, info, facts, kinds.num_packed_blocks);
  reader.finish();
  return Plan(std::move(info), std::move(facts), std::move(layers));
}

}  // namespace calibatt
