#pragma once

#include <string_view>

namespace calibatt::cli {

/// A flag of another program.
struct KnownFlag {
  enum class Meaning {
    kRenamed,    ///< is our flag `ours`, with the same value
    kSize,       ///< has WIDTH*HEIGHT as its value
    kSwitch,     ///< is our flag `ours` where its value is true, and nothing where it is false
    kTask,       ///< says what kind of model it is
    kNotNeeded,  ///< is a switch that would change nothing here; `ours` says why. The run goes on
    kAnswered    ///< has no counterpart; `ours` says what to do instead
  };
  std::string_view name;
  Meaning meaning;
  std::string_view ours;
  /// The value with which a kAnswered one would change nothing, so that the run goes on; "*": any.
  std::string_view harmless = {};
};

/// nullptr where nobody knows it. `name` as it was typed, with "--".
const KnownFlag* known_flag(std::string_view name);

}  // namespace calibatt::cli
