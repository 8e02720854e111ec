#pragma once

#include <string_view>

namespace calibatt::cli {

/// A flag of another program.
struct KnownFlag {
  enum class Meaning {
    kRenamed,  ///< is our flag `ours`, with the same value
    kSize,     ///< has WIDTH*HEIGHT as its value
    kSwitch,   ///< is our flag `ours` where its value is true, and nothing where it is false
    kTask,     ///< says what kind of model it is
    kAnswered  ///< has no counterpart; `ours` says what to do instead
  };
  std::string_view name;
  Meaning meaning;
  std::string_view ours;
};

/// nullptr where nobody knows it. `name` as it was typed, with "--".
const KnownFlag* known_flag(std::string_view name);

}  // namespace calibatt::cli
