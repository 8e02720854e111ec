#pragma once

#include "attention/plan_fit.h"

namespace calibatt {

/// The same run, whose fingerprints are taken once and then known to every rank.
RunDescription with_known_fingerprints(RunDescription run);

}  // namespace calibatt
