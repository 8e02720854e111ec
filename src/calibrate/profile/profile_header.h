#pragma once

#include <charconv>
#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/error.h"
#include "calibrate/profile/profile.h"
#include "io/safetensors.h"

namespace calibatt {

/// What to do about a damaged file, of which nobody has another copy.
inline constexpr std::string_view kMeasureAnew =
    "delete that file and run calibrate again: the same command goes on, and measures its prompt anew";
/// The same of what is measured of growth (step_growth.json and its part).
inline constexpr std::string_view kMeasureGrowthAnew = "delete that file, and calibrate measures it anew";
/// Where a file beside the prompts' has the checksum of its content.
inline constexpr const char* kChecksum = "checksum";

/// Reads a profile's file. What reads a damaged one says what is wrong with it; what to do about it is known here.
template <class Read>
auto read_or_advise(std::string_view advice, const Read& read) {
  try {
    return read();
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kFormat) throw;
    std::string message = error.what();
    if (message.ends_with(kCopyAnew)) message.resize(message.size() - kCopyAnew.size());
    throw Error(error.kind(), message + "; " + std::string(advice));
  }
}

/// The texts of a profile file's header.
using ProfileMetadata = std::map<std::string, std::string>;

std::string fingerprint_name(int transformer);  ///< of the field that has the fingerprint of its weights
ProfileMetadata to_metadata(const ProfileHeader& header);
/// Throws Error(kFormat) naming file and field.
ProfileHeader from_metadata(const ProfileMetadata& metadata, const std::string& path);
/// What of two files must agree: the kind of run alone (model, size, steps, what is measured and how), or also the list
/// of prompts and the seed. The model's name never does: a folder may be called anything.
enum class Comparison { kOneRun, kOneCalibration };
/// Throws Error(kMismatch) naming the first field in which the file at `path` differs from `expected`, and both values.
/// A precision that one of them does not tell is not compared. ours_name: whose `expected` is; advice: what to do about
/// it. levels_follow: whether ours with the steps, scheduler and flow shift of the file has its noise levels; nothing:
/// not known.
void require_same(const ProfileMetadata& expected, const ProfileMetadata& found, const std::string& path,
                  Comparison comparison, const std::string& ours_name = "this calibration",
                  const std::string& advice = "", std::optional<bool> levels_follow = {});

/// The same of what a header says before it is chosen what is measured (choose_measurements): other questions about the
/// file would be asked of the wrong run. Left out: weights, and conditions, which tell of weights in memory.
void require_same_run(const ProfileHeader& expected, const ProfileHeader& found, const std::string& path);

std::string number_text(double value);  ///< the shortest text that reads back as the same value

/// Reads fields back; every problem is an Error(kFormat) that names file and field.
class ProfileFields {
 public:
  ProfileFields(const ProfileMetadata& metadata, const std::string& path) : metadata_(metadata), path_(path) {}

  const std::string& text(const std::string& name) const {
    const auto found = metadata_.find(name);
    if (found == metadata_.end()) throw wrong(name, "is missing");
    return found->second;
  }
  double real(const std::string& name) const { return parsed<double>(name, text(name)); }
  int integer(const std::string& name) const { return parsed<int>(name, text(name)); }
  template <class T>
  std::vector<T> list(const std::string& name) const {
    std::vector<T> values;
    std::string_view rest = text(name);
    while (!rest.empty()) {
      const size_t comma = std::min(rest.find(','), rest.size());
      values.push_back(parsed<T>(name, rest.substr(0, comma)));
      rest.remove_prefix(std::min(comma + 1, rest.size()));
    }
    return values;
  }
  Error wrong(const std::string& name, const std::string& what) const {
    return Error(ErrorKind::kFormat,
                 path_ + ": profile field \"" + name + "\" " + what + "; " + std::string(kMeasureAnew));
  }

 private:
  template <class T>
  T parsed(const std::string& name, std::string_view text) const {
    T value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) {
      throw wrong(name, "is not a number: \"" + std::string(text) + "\"");
    }
    if constexpr (std::is_floating_point_v<T>) {
      if (!std::isfinite(value)) throw wrong(name, "is not finite: \"" + std::string(text) + "\"");
    }
    return value;
  }
  const ProfileMetadata& metadata_;
  const std::string& path_;
};

}  // namespace calibatt
