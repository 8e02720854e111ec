#include <cstdio>
#include <memory>

#include "calibatt/plan.h"
#include "commands.h"

namespace calibatt::cli {

void add_inspect(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("inspect", "Show what is in a plan: what it was made for and how, and its density");
  struct Flags {
    std::string plan, head_png, density_png;
    std::vector<int> site{0, 0, 0};
  };
  const auto flags = std::make_shared<Flags>();
  command->add_option("plan", flags->plan, "Plan made by `calibatt calibrate`")->type_name("FILE")->required();
  CLI::Option* head_png =
      command
          ->add_option("--head-png", flags->head_png,
                       "Write a picture of one head's kept blocks (rows: query blocks, columns: key blocks)")
          ->type_name("FILE");
  command->add_option("--site", flags->site, "Which head --head-png draws: its step, layer and number, from 0")
      ->type_name("STEP LAYER HEAD")
      ->expected(3)
      ->default_str("0 0 0")
      ->needs(head_png);
  command
      ->add_option("--density-png", flags->density_png,
                   "Write a picture of the density (share of attention that is computed) of every step and layer")
      ->type_name("FILE");
  command->callback([flags] {
    if (!flags->head_png.empty()) check_output(flags->head_png, {".png"});
    if (!flags->density_png.empty()) check_output(flags->density_png, {".png"});
    std::fputs(describe_plan(flags->plan).c_str(), stdout);
    if (!flags->head_png.empty()) {
      write_head_picture(flags->plan, flags->site[0], flags->site[1], flags->site[2], flags->head_png);
    }
    if (!flags->density_png.empty()) write_density_picture(flags->plan, flags->density_png);
  });
}

}  // namespace calibatt::cli
