#include <cstdio>
#include <memory>
#include <optional>

#include "calibatt/output.h"
#include "calibatt/video.h"
#include "commands.h"
#include "options.h"

namespace calibatt::cli {

void add_encode(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("encode", "Make the video from frames that were kept because it could not be written");
  struct EncodeFlags {
    std::string frames, output;
    std::optional<double> fps;
  };
  const auto flags = std::make_shared<EncodeFlags>();
  command->add_option("frames", flags->frames, "The file that calibatt generate kept")->type_name("FILE")->required();
  command->add_option("-o,--output", flags->output, "Video file: .mp4, .webm, .webp, or .png for numbered frames")
      ->type_name("FILE")
      ->required();
  add_real_number(*command, "--fps", flags->fps, 0.1, 1000, "Frames per second [as they were made for]");
  command->callback([flags] {
    check_outputs({{OutputKind::kVideo, "-o", flags->output}}, {{"", flags->frames}});
    warn_of_unread_fps(flags->fps.has_value(), flags->output);
    double fps = 0;
    const VideoFrames video = kept_frames(flags->frames, fps);
    write_video(video, flags->fps.value_or(fps), flags->output);
    std::printf("%s: %d×%d, %s; %s is no longer needed\n",
                printable(written_names(flags->output, video.frames)).c_str(), video.width, video.height,
                counted(video.frames, "frames").c_str(), printable(flags->frames).c_str());
  });
}

}  // namespace calibatt::cli
