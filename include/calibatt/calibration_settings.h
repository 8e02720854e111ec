#pragma once

#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "calibatt/calibrate.h"
#include "calibatt/export.h"

namespace calibatt {

/// A knob of CalibrateOptions as people set it: --name VALUE on the command line, {name, value} from other programs.
struct CalibrationSetting {
  enum class Group {
    kMeasured,  ///< changes what is measured, and with it the profile
    kCompiled,  ///< changes only how a plan is compiled from a profile
  };
  using Field =
      std::variant<std::string CalibrateOptions::*, int CalibrateOptions::*, std::optional<int> CalibrateOptions::*,
                   double CalibrateOptions::*, std::optional<double> CalibrateOptions::*>;
  std::string name;
  Group group;
  Field field;
  std::string description;
  std::vector<std::string> choices = {};  ///< of a text; empty: others are possible
  int lowest = 0, highest = 0;            ///< of a whole number; other numbers are judged by `validate`
};

/// All of them, in the order in which people read of them.
CALIBATT_API std::span<const CalibrationSetting> calibration_settings();

/// Throws Error(kUsage) that names the setting when there is none of this name, or when the value is not of its kind.
CALIBATT_API void set(CalibrateOptions& options, const CalibrationSetting& setting, const std::string& value);
CALIBATT_API void set(CalibrateOptions& options, const std::string& name, const std::string& value);

}  // namespace calibatt
