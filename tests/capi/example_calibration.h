// A calibration of the example plan's run, and a callback that makes its calls.
#pragma once

#include <string>
#include <vector>

#include "c_api_helpers.h"

namespace calibatt::test {

/// Of one of two prompts, with all that the struct points to.
struct ExampleCalibration {
  ExampleCalibration() {
    calibration.run = &run;
    calibration.prompts = prompts.data();
    calibration.num_prompts = 1;
    refer_to_settings();
    output.weight = weight.data();
    output.out_features = 128;
    output.residual_square_sum = 1;
  }
  ExampleCalibration(const ExampleCalibration&) = delete;
  ExampleCalibration& operator=(const ExampleCalibration&) = delete;

  /// Again after some were added.
  void refer_to_settings() {
    calibration.settings = settings.data();
    calibration.num_settings = static_cast<int32_t>(settings.size());
  }
  /// What a callback does: one call a step, by attend(call), which says whether to go on.
  int32_t denoise(calibatt_session* session, int num_steps, const auto& attend) {
    for (int step = 0; step < num_steps; ++step) {
      if (calibatt_session_begin_forward(session, step, CALIBATT_CONDITIONAL) != CALIBATT_OK) return 1;
      calibatt_call call = arrays.call();
      if (calibatt_session_wants_output(session) == 1) call.output = &output;
      if (!attend(call)) return 1;
    }
    return 0;
  }

  Folder folder;
  calibatt_run run = example_run();
  std::vector<calibatt_prompt> prompts{{"a", nullptr, 0}, {"b", nullptr, 1}};
  std::vector<calibatt_setting> settings{
      {"block-q", "8"}, {"block-k", "8"}, {"anchors", "2"}, {"token-order", "raster"}, {"density", "0.9"}};
  calibatt_calibration calibration = sized<calibatt_calibration>();
  Arrays arrays{1, 12, 2, 64, 3};
  std::vector<float> weight = std::vector<float>(128 * 128, 0.1f);
  calibatt_output output = sized<calibatt_output>();
};

}  // namespace calibatt::test
