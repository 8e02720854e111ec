#include <cstdio>
#include <memory>

#include "calibatt/calibrate.h"
#include "calibatt/output.h"
#include "commands.h"
#include "text.h"

namespace calibatt::cli {

void add_merge(CLI::App& app) {
  CLI::App* command = app.add_subcommand("merge", "Join the profile folders of several calibrate --prompt-range runs");
  struct MergeFlags {
    std::string output;
    std::vector<std::string> folders;
  };
  const auto flags = std::make_shared<MergeFlags>();
  command->add_option("-o,--output", flags->output, "Profile folder to make")->required();
  command->add_option("folders", flags->folders, "Profile folders")
      ->required()
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->callback([flags] {
    check_outputs({{OutputKind::kFolder, "-o", flags->output}}, {});
    const MergeSummary summary = merge_profiles(flags->folders, flags->output);
    std::printf("%s: %s (%d linked, %d copied); compile with calibatt calibrate … --profile %s -o PLAN\n",
                flags->output.c_str(), counted(summary.prompts, "prompts").c_str(), summary.linked,
                summary.prompts - summary.linked, flags->output.c_str());
  });
}

}  // namespace calibatt::cli
