#pragma once

#include <optional>
#include <string>

#include "calibatt/export.h"

namespace calibatt {

/// How far the end of runs with a plan that was made with speedup or psnr is from dense ones, as calibration predicted
/// it, and as it measured it in one run with the plan that was not calibrated on. Absent: the plan does not say.
struct EndOfRun {
  /// Relative change of the final latents, √(mean square of their change / mean square of dense ones).
  std::optional<double> latents_predicted = {}, latents_measured = {};
  std::optional<double> psnr_predicted = {},
                        psnr_measured = {};  ///< dB against the dense video; infinite: no pixel differs
};

/// A plan file, described in a few lines of text. Throws Error(kNotFound / kFormat).
CALIBATT_API std::string describe_plan(const std::string& plan_path);

/// How evenly its work would be shared among so many GPUs that take whole heads of each layer, dealt in order and by
/// what they cost: the run, its calls, each layer. Throws as describe_plan, and Error(kUsage) unless num_gpus is 1
/// to 64.
CALIBATT_API std::string describe_plan_on_gpus(const std::string& plan_path, int num_gpus);

/// How far runs with a plan are expected to be from dense attention, in the words of every output. basis: as
/// PlanUse::error_basis.
CALIBATT_API std::string expected_error_text(std::optional<double> error, const std::string& basis);

/// "about 47.5 dB of the video", "over 100 dB of the video", "no change but of rounding": of a PSNR that is predicted.
CALIBATT_API std::string expected_psnr_text(double psnr_db);
/// "change of the final latents 2.74 % (about 47.5 dB of the video) predicted; …"; empty where nothing is known.
CALIBATT_API std::string end_of_run_text(const EndOfRun& end);
/// In words, where that run came out far below the prediction, with what helps; else empty.
CALIBATT_API std::string doubt_about_prediction(const EndOfRun& end);

/// What tells a plan from every other: equal for equal content, wherever the file lies. Reads the file's header alone.
/// Throws Error(kNotFound / kFormat).
CALIBATT_API std::string plan_checksum_of(const std::string& plan_path);

/// The kept blocks of one head as a PNG (rows: query blocks, columns: key blocks). Throws Error(kUsage) when out of
/// range.
CALIBATT_API void write_head_picture(const std::string& plan_path, int step, int layer, int head,
                                     const std::string& png_path);

/// Density of every step and layer as a PNG.
CALIBATT_API void write_density_picture(const std::string& plan_path, const std::string& png_path);

}  // namespace calibatt
