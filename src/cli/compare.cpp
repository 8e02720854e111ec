#include <cstdio>
#include <memory>

#include "commands.h"

namespace calibatt::cli {

void add_compare(CLI::App& app) {
  CLI::App* command = app.add_subcommand("compare", "PSNR, SSIM and flicker difference of two videos");
  struct Flags {
    std::string reference, other, side_by_side;
    double fps = 16;
  };
  const auto flags = std::make_shared<Flags>();
  command->add_option("reference", flags->reference, "The video to compare with")->required();
  command->add_option("video", flags->other, "The video to judge")->required();
  command->add_option("--side-by-side", flags->side_by_side, "Also write both next to each other to this file");
  command->add_option("--fps", flags->fps, "Frames per second of that file")->capture_default_str();
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
