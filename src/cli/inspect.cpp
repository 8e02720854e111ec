#include <cstdio>
#include <memory>

#include "calibatt/plan.h"
#include "commands.h"

namespace calibatt::cli {

void add_inspect(CLI::App& app) {
  CLI::App* command = app.add_subcommand("inspect", "Show what is in a plan");
  struct Flags {
    std::string plan, head_png, density_png;
    std::vector<int> site{0, 0, 0};
  };
  const auto flags = std::make_shared<Flags>();
  command->add_option("plan", flags->plan, "Plan file")->required();
  command->add_option("--site", flags->site, "step layer head, for --head-png")->expected(3)->capture_default_str();
  command->add_option("--head-png", flags->head_png, "Picture of the kept blocks of one head (see --site)");
  command->add_option("--density-png", flags->density_png, "Picture of the density of every step and layer");
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
