#include <cstdio>
#include <memory>

#include "commands.h"

namespace calibatt::cli {

void add_compare(CLI::App& app) {
  CLI::App* command = app.add_subcommand("compare", "Say how close one video is to another: PSNR, SSIM, flicker");
  struct Flags {
    std::string reference, other, side_by_side;
    double fps = 16;
  };
  const auto flags = std::make_shared<Flags>();
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
  command->add_option("--fps", flags->fps, "Frames per second of the side-by-side file")
      ->capture_default_str()
      ->needs(picture);
  command->callback([flags] {
    if (!flags->side_by_side.empty()) check_video_output(flags->side_by_side);
    const VideoFrames reference = read_video(flags->reference), other = read_video(flags->other);
    const VideoComparison result = compare_videos(reference, other);
    std::printf("PSNR %.2f dB   SSIM %.4f   flicker difference %+.3f grey levels   (%d frames, %d×%d)\n",
                result.psnr_db, result.ssim, result.flicker_difference, reference.frames, reference.width,
                reference.height);
    if (!flags->side_by_side.empty()) write_video(side_by_side(reference, other), flags->fps, flags->side_by_side);
  });
}

}  // namespace calibatt::cli
