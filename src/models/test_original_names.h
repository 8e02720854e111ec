#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <string>

#include "io/atomic_file.h"
#include "io/mapped_tensors.h"

namespace calibatt::test {

/// Pairs of Wan-AI's and our names that tools/golden/original_layout.py wrote, independently of original_names.cpp.
class OriginalNames {
 public:
  /// component: "transformer", "text_encoder", "vae" (tiny-wan's), "vae_wan21" or "vae_wan22" (the public ones').
  OriginalNames(const std::string& golden_data, const std::string& component) {
    const auto names = nlohmann::json::parse(read_text_file(golden_data + "/original/names.json"));
    for (const auto& [theirs, ours] : names.at(component).items()) theirs_[ours.get<std::string>()] = theirs;
  }
  /// With N for the number of a block.
  const std::map<std::string, std::string>& theirs_by_ours() const { return theirs_; }

  std::string original_of(const std::string& ours) const {
    if (const auto found = theirs_.find(ours); found != theirs_.end()) return found->second;
    static const std::regex block(R"(\b(blocks?)\.(\d+))");
    std::smatch match;
    if (!std::regex_search(ours, match, block)) return ours;
    return std::regex_replace(theirs_.at(std::regex_replace(ours, block, "$1.N")), std::regex(R"(\.N\.)"),
                              "." + match[2].str() + ".");
  }

  /// All tensors under Wan-AI's names.
  std::map<std::string, Tensor> original_of(const MappedTensors& ours) const {
    std::map<std::string, Tensor> tensors;
    for (const auto& [name, entry] : ours.entries()) tensors[original_of(name)] = ours.get(name);
    return tensors;
  }

 private:
  std::map<std::string, std::string> theirs_;
};

}  // namespace calibatt::test
