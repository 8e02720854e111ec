#pragma once

// For tests: plans as the tensors and texts of their files.

#include <zstd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "io/test_folder.h"
#include "plan/plan_file.h"
#include "plan/plan_heads.h"
#include "plan/plan_json.h"
#include "plan/plan_section.h"

namespace calibatt::test {

/// The text "plan" as versions 1 and 2 had it.
inline std::string old_plan_json(const PlanInfo& info) {
  nlohmann::json json = nlohmann::json::parse(plan_json(info));
  json["geometry"]["text_tokens"] = info.geometry.text_tokens;
  nlohmann::json& provenance = json["provenance"];
  const nlohmann::json transformer = provenance["transformers"].at(0);
  provenance.erase("transformers");
  provenance["model_name"] = transformer["name"];
  provenance["model_fingerprint"] = transformer["fingerprint"];
  json.erase("required_features");
  json.erase("accuracy");
  return json.dump();
}

/// Version 1, which the library reads but no longer writes.
inline PlanFile encode_v1(const Plan& plan) {
  PlanFile file;
  file.metadata["format"] = kPlanFormatName;
  file.metadata["format_version"] = "1";
  file.metadata["plan"] = old_plan_json(plan.info());
  put_common_tensors(plan.info(), file.tensors);
  put_head_kinds(plan.info(), plan.facts(), file.tensors);
  std::vector<uint32_t> counts, bounds;
  for (const HeadPlan& head : plan.to_parts().heads) {
    if (!head.intervals) continue;
    for (int r = 0; r < head.intervals->num_query_blocks(); ++r) {
      counts.push_back(static_cast<uint32_t>(head.intervals->row(r).size()));
      for (const BlockInterval& interval : head.intervals->row(r)) {
        bounds.push_back(interval.begin);
        bounds.push_back(interval.end);
      }
    }
  }
  if (!counts.empty()) {
    file.tensors["interval_counts"] = narrowed(counts, {static_cast<int64_t>(counts.size())});
    file.tensors["intervals"] = narrowed(bounds, {static_cast<int64_t>(bounds.size() / 2), 2});
  }
  file.metadata["checksum"] = plan_checksum(file);
  return file;
}

/// The version that the library writes; tensors may be changed.
inline PlanFile encode(const Plan& plan) {
  const TestFolder folder;
  save_plan(plan, folder / "plan");
  PlanFile file = open_plan_file(folder / "plan");
  for (auto& [name, tensor] : file.tensors) tensor = tensor.clone();
  return file;
}

/// Version 2, likewise no longer written.
inline PlanFile encode_v2(const Plan& plan) {
  PlanFile file = encode(plan);
  file.metadata["format_version"] = "2";
  file.metadata["plan"] = old_plan_json(plan.info());
  file.metadata["checksum"] = plan_checksum(file);
  return file;
}

/// What a section stores of this content.
inline std::string zstd_frame(const std::vector<uint8_t>& content) {
  std::string frame(ZSTD_compressBound(content.size()), '\0');
  frame.resize(ZSTD_compress(frame.data(), frame.size(), content.data(), content.size(), 1));
  return frame;
}

inline std::vector<uint8_t> frame_content(std::span<const uint8_t> frame) {
  std::vector<uint8_t> content(ZSTD_getFrameContentSize(frame.data(), frame.size()));
  content.resize(ZSTD_decompress(content.data(), content.size(), frame.data(), frame.size()));
  return content;
}

/// Makes the checksums of all sections that the index still finds, and the file's, right again.
inline void repair_checksums(PlanFile& file) {
  const auto sections = file.tensors.find("sections"), ends = file.tensors.find("section_end"),
             checksums = file.tensors.find("section_checksum");
  const bool has_all = sections != file.tensors.end() && ends != file.tensors.end() && checksums != file.tensors.end();
  if (has_all && sections->second.dtype() == DType::kU8 && ends->second.dtype() == DType::kI64 &&
      checksums->second.size() == 16 * ends->second.size()) {
    checksums->second = checksums->second.clone();
    int64_t begin = 0;
    for (int64_t site = 0; site < ends->second.size(); ++site) {
      const int64_t end = ends->second.data<int64_t>()[site];
      if (end < begin || end > sections->second.size()) break;
      const auto checksum = section_checksum(
          {static_cast<const unsigned char*>(sections->second.raw()) + begin, static_cast<size_t>(end - begin)});
      std::copy(checksum.begin(), checksum.end(), static_cast<uint8_t*>(checksums->second.raw()) + 16 * site);
      begin = end;
    }
  }
  file.metadata["checksum"] = plan_checksum(file);
}

}  // namespace calibatt::test
