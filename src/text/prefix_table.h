#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace calibatt {

/// Strings with a number each, to find those that a text begins with. Of equal strings the last one counts.
class PrefixTable {
 public:
  using Entry = std::pair<std::string, int32_t>;

  PrefixTable() = default;
  explicit PrefixTable(std::vector<Entry> entries) : entries_(std::move(entries)) {
    const auto by_text = [](const Entry& a, const Entry& b) { return a.first < b.first; };
    std::stable_sort(entries_.begin(), entries_.end(), by_text);
    // What std::unique keeps is the first of equals.
    std::reverse(entries_.begin(), entries_.end());
    const auto same = [](const Entry& a, const Entry& b) { return a.first == b.first; };
    entries_.erase(std::unique(entries_.begin(), entries_.end(), same), entries_.end());
    std::reverse(entries_.begin(), entries_.end());
  }

  /// Calls visit(length in bytes, number) for each entry that `text` begins with, the shortest first; none is empty.
  template <class Visit>
  void visit_prefixes(std::string_view text, Visit&& visit) const {
    auto begin = entries_.begin(), end = entries_.end();
    for (size_t length = 0; length < text.size(); ++length) {
      // All of [begin, end) begin as the text does up to here; the one that ends here is in front.
      if (begin != end && begin->first.size() == length) ++begin;
      const auto byte = [length](const Entry& entry) { return static_cast<unsigned char>(entry.first[length]); };
      const auto wanted = static_cast<unsigned char>(text[length]);
      begin = std::partition_point(begin, end, [&](const Entry& entry) { return byte(entry) < wanted; });
      end = std::partition_point(begin, end, [&](const Entry& entry) { return byte(entry) == wanted; });
      if (begin == end) return;
      if (begin->first.size() == length + 1) visit(length + 1, begin->second);
    }
  }

  std::optional<int32_t> find(std::string_view text) const {
    const auto found = std::partition_point(entries_.begin(), entries_.end(),
                                            [text](const Entry& entry) { return entry.first < text; });
    if (found == entries_.end() || found->first != text) return std::nullopt;
    return found->second;
  }

 private:
  std::vector<Entry> entries_;
};

}  // namespace calibatt
