#include "calibatt/report.h"

#include <cstdio>
#include <memory>

#include "calibatt/output.h"
#include "commands.h"
#include "options.h"
#include "page.h"

namespace calibatt::cli {

void write_page(const ReportInputs& inputs, const std::string& path) {
  const ReportPage page = make_report_page(inputs);
  for (const std::string& text : page.left_out) warn(text);
  write_text_file(path, page.html);
  std::printf("%s: the report (%.1f MB), to be opened in a browser\n", printable(path).c_str(),
              static_cast<double>(page.html.size()) / 1e6);
}

CLI::Option* add_max_video_flag(CLI::App& command, ReportInputs& page) {
  return add_real_number(command, "--max-video-mb", page.max_video_megabytes, 0, 1e6,
                         "Leave out videos that would take the page's video files beyond so many megabytes")
      ->default_str("4");
}

void add_report(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("report", "Write a page to look at: a plan, its runs, videos and times, as one HTML file");
  struct ReportFlags {
    ReportInputs inputs;
    std::string output;
  };
  const auto flags = std::make_shared<ReportFlags>();
  command->footer(
      "Files are known by their content: JSON as --report of `generate`, `calibrate` and `compare` and as `bench` "
      "(report.json)\n"
      "write it, and plans. Reports of a dense run and of a planned one of the same video are compared. The page is "
      "one file "
      "that\n"
      "loads nothing from elsewhere; docs/report.md says what it shows.");
  command->add_option("files", flags->inputs.files, "Reports (JSON) and plans, in any order")->type_name("FILE");
  CLI::Option* video =
      command->add_option("--video", flags->inputs.video, "A video to show: .mp4 or .webm")->type_name("FILE");
  command
      ->add_option("--reference", flags->inputs.reference,
                   "The video that --video is compared with, for example the dense one")
      ->type_name("FILE")
      ->needs(video);
  add_max_video_flag(*command, flags->inputs);
  command->add_option("-o,--output", flags->output, "The page to write: .html")->type_name("FILE")->required();
  command->callback([flags] {
    std::vector<Input> inputs{{"--video", flags->inputs.video}, {"--reference", flags->inputs.reference}};
    for (const std::string& file : flags->inputs.files) inputs.push_back({"file", file});
    check_outputs({{OutputKind::kPage, "-o", flags->output}}, inputs);
    write_page(flags->inputs, flags->output);
  });
}

}  // namespace calibatt::cli
