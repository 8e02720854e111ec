#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "calibatt/output.h"
#include "calibatt/video.h"
#include "commands.h"
#include "options.h"
#include "page.h"

namespace calibatt::cli {

namespace {

/// JSON has no infinity: the PSNR of equal videos and frames is null there.
std::string report_of(const std::string& reference, const std::string& video, const FileComparison& result) {
  const nlohmann::json report = {{"reference", reference},
                                 {"video", video},
                                 {"frames", result.frames},
                                 {"height", result.height},
                                 {"width", result.width},
                                 {"identical", std::isinf(result.comparison.psnr_db)},
                                 {"psnr_db", result.comparison.psnr_db},
                                 {"ssim", result.comparison.ssim},
                                 {"flicker_difference", result.comparison.flicker_difference},
                                 {"psnr_db_per_frame", result.comparison.psnr_db_per_frame}};
  return report.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace

void add_compare(CLI::App& app) {
  CLI::App* command = app.add_subcommand("compare", "Say how close one video is to another: PSNR, SSIM, flicker");
  struct CompareFlags {
    std::string reference, other, side_by_side, html, report;
    ReportInputs page;
    double fps = 16;
  };
  const auto flags = std::make_shared<CompareFlags>();
  command->footer(
      "The videos must have the same size and number of frames.\n"
      "PSNR (dB) and SSIM (1: the same): higher is closer. Flicker difference: the mean change of a pixel from frame "
      "to\n"
      "frame, the video's minus the reference's, in grey levels (0 to 255); above 0 it flickers more.");
  command->add_option("reference", flags->reference, "The video to compare with, for example the dense one")
      ->type_name("FILE")
      ->required();
  command->add_option("video", flags->other, "The video to judge")->type_name("FILE")->required();
  CLI::Option* picture =
      command
          ->add_option("--side-by-side", flags->side_by_side,
                       "Also write both next to each other, the reference on the left: .mp4, .webm, .webp or .png")
          ->type_name("FILE");
  add_real_number(*command, "--fps", flags->fps, 0.1, 1000, "Frames per second of the side-by-side file")
      ->default_str("16")
      ->needs(picture);
  command->add_option("--report", flags->report, "Write the figures, also of each frame, to this JSON file")
      ->type_name("FILE");
  CLI::Option* html = command
                          ->add_option("--html", flags->html,
                                       "Also write a page to look at: both videos with a slider, and each frame's PSNR")
                          ->type_name("FILE");
  add_max_video_flag(*command, flags->page)->needs(html);
  command->callback([flags, command] {
    check_outputs({{OutputKind::kVideo, "--side-by-side", flags->side_by_side},
                   {OutputKind::kReport, "--report", flags->report},
                   {OutputKind::kPage, "--html", flags->html}},
                  {{"reference", flags->reference}, {"video", flags->other}});
    warn_of_unread_fps(command->count("--fps") > 0, flags->side_by_side);
    const FileComparison result = compare_video_files(flags->reference, flags->other, flags->side_by_side, flags->fps);
    std::printf("PSNR %s   SSIM %.4f   flicker difference %+.3f grey levels   (%s, %d×%d)\n",
                psnr_text(result.comparison.psnr_db, 2).c_str(), result.comparison.ssim,
                result.comparison.flicker_difference, counted(result.frames, "frames").c_str(), result.width,
                result.height);
    if (!flags->report.empty()) write_text_file(flags->report, report_of(flags->reference, flags->other, result));
    if (flags->html.empty()) return;
    flags->page.reference = flags->reference;
    flags->page.video = flags->other;
    flags->page.comparison = result.comparison;
    write_page(flags->page, flags->html);
  });
}

}  // namespace calibatt::cli
