#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "io/atomic_file.h"
#include "plan/plan_section.h"

namespace calibatt {

/// Writes a plan file of the present version one layer at a time, so that no more than the masks of one entry, as bits,
/// are in memory (a 14B model at 720p: 70 MB). The file appears complete with `finish`, or not at all.
class PlanWriter {
 public:
  /// Creates the file beside its place. Throws Error(kFormat) when `info` contradicts itself, Error(kIo).
  PlanWriter(PlanInfo info, const std::string& path);

  /// The heads of the next site, in the order (entry 0, layer 0), (entry 0, layer 1), …: info.num_entries() ·
  /// info.num_layers calls. Throws Error(kFormat) naming the head when it does not fit the geometry, Error(kIo).
  void add_layer(std::span<const HeadPlan> heads);

  /// Throws Error(kIo).
  void finish();

  uint64_t bytes_of_masks() const { return num_section_bytes_; }  ///< written so far

 private:
  HeadFacts facts_of(const HeadPlan& head) const;
  std::map<std::string, std::string> metadata() const;  // with zeros for the checksum

  PlanInfo info_;
  int num_entries_ = 0, num_packed_blocks_ = 0, num_anchor_tokens_ = 0;
  int diagonal_shift_ = 0;  // columns from one row's diagonal to the next's
  AtomicFile file_;
  size_t header_bytes_ = 0;  // reserved at the start of the file for what is known at the end
  std::vector<HeadFacts> facts_;
  std::vector<int64_t> section_ends_;
  std::vector<uint8_t> section_checksums_;
  uint64_t num_section_bytes_ = 0;
  struct Site {
    SectionBits bits;
    SectionShape shape;
  };
  std::vector<Site> last_entry_;  // [layers] what the next entry may refer to
};

}  // namespace calibatt
