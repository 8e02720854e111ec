#pragma once

#include <string>
#include <vector>

#include "calibatt/calibrate.h"
#include "calibrate/profile/profile.h"

namespace calibatt {

/// One line for each reason why settings that are not at their defaults change nothing of a calibration that measures
/// what this header says, naming them as flags. Contradictions are not among them: `validate` and
/// `choose_measurements` refuse those.
std::vector<std::string> unread_settings(const CalibrateOptions& options, const ProfileHeader& header);

}  // namespace calibatt
