#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "calibatt/report.h"

namespace calibatt {

/// Everything that a page shows, as JSON: what its script reads, and what its tables are made from.
///
/// Keys: program, title, tiles[{label, value, unit, note}], warnings[text], left_out[text], plans[] (plan_model.h),
/// maps[{name, density_map, reuse, measured}] (of runs and calibrations whose plan is not here), runs[{name, kind,
/// prompt, seconds, density, forwards, eight_bits, facts}], comparisons[{name, prompt, psnr_db, ssim,
/// flicker_difference, psnr_frames[], fps, reference, video, labels[2], speedup_transformer, speedup_total}],
/// calibrations[{name, facts}], tradeoff[{name, speedup, psnr_db, density, kind}]. A PSNR of null is that of identical
/// pictures. Errors as make_report_page.
nlohmann::json page_model(const ReportInputs& inputs);

}  // namespace calibatt
