#include <cstdio>
#include <limits>
#include <memory>
#include <optional>

#include "calibatt/output.h"
#include "calibatt/pipeline.h"
#include "calibatt/plan.h"
#include "commands.h"
#include "options.h"
#include "text.h"

namespace calibatt::cli {

void add_inspect(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("inspect", "Show what is in a plan: what it was made for and how, and its density");
  struct InspectFlags {
    std::string plan, head_png, density_png;
    std::vector<int> site{0, 0, 0};
    std::optional<int> gpus;
  };
  const auto flags = std::make_shared<InspectFlags>();
  command->add_option("plan", flags->plan, "Plan made by `calibatt calibrate`")->type_name("FILE")->required();
  CLI::Option* head_png =
      command
          ->add_option("--head-png", flags->head_png,
                       "Write a picture of one head's kept blocks (rows: query blocks, columns: key blocks)")
          ->type_name("FILE");
  command
      ->add_option_function<std::vector<std::string>>(
          "--site",
          [flags](const std::vector<std::string>& numbers) {
            for (size_t i = 0; i < 3; ++i) {
              flags->site[i] = static_cast<int>(whole_number("--site", numbers[i], 0, std::numeric_limits<int>::max()));
            }
          },
          "Which head --head-png draws: its step, layer and number, from 0")
      ->type_name("STEP LAYER HEAD")
      ->expected(3)
      ->default_str("0 0 0")
      ->needs(head_png);
  command
      ->add_option("--density-png", flags->density_png,
                   "Write a picture of the density (share of attention that is computed) of every step and layer")
      ->type_name("FILE");
  add_whole_number(
      *command, "--gpus", flags->gpus, 1, kMostDevices,
      "Show how evenly that many GPUs would share the plan's work, if each took some heads of every layer");
  command->callback([flags] {
    check_outputs({{OutputKind::kPicture, "--head-png", flags->head_png},
                   {OutputKind::kPicture, "--density-png", flags->density_png}},
                  {{"plan", flags->plan}});
    std::fputs(printable(describe_plan(flags->plan), size_t{1} << 20).c_str(), stdout);
    if (flags->gpus) std::printf("\n%s", describe_plan_on_gpus(flags->plan, *flags->gpus).c_str());
    if (!flags->head_png.empty()) {
      write_head_picture(flags->plan, flags->site[0], flags->site[1], flags->site[2], flags->head_png);
      std::printf("\n%s: kept blocks of step %d, layer %d, head %d\n", printable(flags->head_png).c_str(),
                  flags->site[0], flags->site[1], flags->site[2]);
    }
    if (!flags->density_png.empty()) {
      write_density_picture(flags->plan, flags->density_png);
      std::printf("\n%s: density of every step and layer\n", printable(flags->density_png).c_str());
    }
  });
}

}  // namespace calibatt::cli
