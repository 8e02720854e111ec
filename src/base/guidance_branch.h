#pragma once

namespace calibatt {

/// Which branch of classifier-free guidance a forward is of. Calibration records the conditional one only.
enum class GuidanceBranch { kConditional, kUnconditional };

}  // namespace calibatt
