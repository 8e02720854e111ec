#include "serve/serve.h"

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "calibatt/error.h"
#include "calibatt/output.h"
#include "commands.h"
#include "interrupt.h"
#include "options.h"

namespace calibatt::cli {
namespace {

struct ServeFlags {
  LoadOptions load;
  std::vector<std::string> models, plans;
  int max_queue = 100, max_videos = 1000, max_steps = 100, max_megapixels = 0;
  double keep_hours = 24;
  serve::ServeOptions service;
};

struct NamedPath {
  std::string name, path;
};

bool is_name(const std::string& text) {
  constexpr const char* kLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  return !text.empty() && text.size() <= 100 && text.find_first_not_of(kLetters) == std::string::npos;
}

/// PATH or NAME=PATH. A path that is there is one, whatever signs are in it.
NamedPath named_path(const std::string& flag, const std::string& text) {
  const size_t equals = text.find('=');
  std::error_code ignored;
  if (equals == std::string::npos || std::filesystem::exists(text, ignored)) return {"", text};
  const std::string name = text.substr(0, equals), path = text.substr(equals + 1);
  if (!is_name(name) || path.empty()) {
    throw Error(ErrorKind::kUsage,
                flag + " " + shown(text) + ": give PATH, or NAME=PATH with a name of letters, digits, dots and dashes");
  }
  return {name, path};
}

std::vector<serve::ServedModel> models_of(const ServeFlags& flags) {
  const LoadOptions& load = flags.load;
  const bool parts = !load.transformer.empty() || !load.transformer_2.empty() || !load.text_encoder.empty() ||
                     !load.vae.empty() || !load.loras.empty();
  if (parts && flags.models.size() > 1) {
    throw Error(ErrorKind::kUsage,
                "parts and LoRAs belong to one model, and there are several: start a service for that one alone");
  }
  std::vector<serve::ServedModel> models;
  for (const std::string& text : flags.models) {
    NamedPath model = named_path("--model", text);
    models.push_back({std::move(model.name), load});
    models.back().load.model_dir = std::move(model.path);
  }
  return models;
}

std::vector<serve::ServedPlan> plans_of(const ServeFlags& flags) {
  std::vector<serve::ServedPlan> plans;
  for (const std::string& text : flags.plans) {
    NamedPath plan = named_path("--plan", text);
    if (plan.name.empty()) plan.name = std::filesystem::path(plan.path).stem().string();
    plans.push_back({std::move(plan.name), std::move(plan.path)});
  }
  return plans;
}

void check_folder(const ServeFlags& flags) {
  std::vector<Input> inputs;
  for (const serve::ServedModel& model : flags.service.models) {
    for (Input& input : inputs_of(model.load)) inputs.push_back(std::move(input));
  }
  for (const serve::ServedPlan& plan : flags.service.plans) inputs.push_back({"--plan", plan.path});
  check_outputs({{OutputKind::kFolder, "-o", flags.service.folder}}, inputs);
}

void run(ServeFlags& flags) {
  serve::ServeOptions& service = flags.service;
  service.models = models_of(flags);
  service.plans = plans_of(flags);
  service.job_limits.max_queue = static_cast<size_t>(flags.max_queue);
  service.job_limits.max_kept = static_cast<size_t>(flags.max_videos);
  service.job_limits.keep_seconds = static_cast<int64_t>(flags.keep_hours * 3600);
  service.video_limits.max_pixels = int64_t{flags.max_megapixels} * 1'000'000;
  service.video_limits.max_steps = flags.max_steps;
  service.log = [](const std::string& line) { std::fprintf(stderr, "calibatt: %s\n", printable(line).c_str()); };
  check_folder(flags);
  watch_for_interrupts();
  const size_t left = serve::serve(service, interrupt_requested, [&](const std::string& url) {
    std::printf("serving %s at %s (videos in %s; Ctrl-C ends it)\n",
                counted(static_cast<int64_t>(service.models.size()), "models").c_str(), url.c_str(),
                printable(service.folder).c_str());
    std::fflush(stdout);
  });
  throw Interrupted(left == 0 ? "interrupted; every video that was asked for is made"
                              : "interrupted; " + counted(static_cast<int64_t>(left), "videos") +
                                    (left == 1 ? " waits in " : " wait in ") + service.folder +
                                    ", and the same command goes on with " + (left == 1 ? "it" : "them"));
}

void add_limits(CLI::App& command, ServeFlags& flags) {
  add_whole_number(command, "--max-queue", flags.max_queue, 1, 100000, "Videos that wait; more are refused (429)")
      ->default_str("100");
  add_whole_number(command, "--max-videos", flags.max_videos, 1, 1000000,
                   "Finished videos that are kept; beyond it the oldest go")
      ->default_str("1000");
  add_real_number(command, "--keep-hours", flags.keep_hours, 0.001, 1e6, "How long a finished video is kept")
      ->default_str("24");
  add_whole_number(command, "--max-steps", flags.max_steps, 1, 1000, "Most steps of a video")->default_str("100");
  add_whole_number(command, "--max-megapixels", flags.max_megapixels, 1, 1000000,
                   "Most pixels of a video, width × height × frames, in millions [4 times the model's default video]");
}

}  // namespace

void add_serve(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("serve", "Make videos for others: an HTTP service in the form of OpenAI's /v1/videos");
  const auto flags = std::make_shared<ServeFlags>();
  serve::ServeOptions& service = flags->service;
  command
      ->add_option("-m,--model", flags->models,
                   "Model folder, as other commands take it; several may be given, each with its own -m. Requests call "
                   "it by its folder's name, or by NAME")
      ->type_name("[NAME=]FOLDER")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->allow_extra_args(false)
      ->required();
  command
      ->add_option("--plan", flags->plans,
                   "Plan file; several may be given. Requests call it by its file's name without the extension, or by "
                   "NAME. With one model, the first is used where a request says nothing; \"none\" is dense")
      ->type_name("[NAME=]FILE")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->allow_extra_args(false);
  add_mismatch_flag(*command, service.defaults, {"refuse", "warn", "dense"});
  service.folder = "calibatt-videos";
  command
      ->add_option("-o,--output", service.folder,
                   "Folder for jobs and videos; the same folder again goes on where it was")
      ->type_name("FOLDER")
      ->capture_default_str();
  command
      ->add_option("--host", service.host,
                   "Address to listen at; 0.0.0.0 is all of this machine's (give --api-key, and TLS by a proxy)")
      ->type_name("ADDRESS")
      ->capture_default_str();
  add_whole_number(*command, "--port", service.port, 0, 65535, "Port; 0: any that is free")->default_str("8000");
  command
      ->add_option("--api-key", service.api_key,
                   "Key that requests must bring (Authorization: Bearer KEY); other users of this machine do not see "
                   "it in the environment")
      ->type_name("KEY")
      ->envname("CALIBATT_API_KEY");
  add_limits(*command, *flags);
  add_sampling_flags(*command, service.defaults);
  add_eight_bit_flags(*command, service.defaults);
  add_loading_flags(*command, flags->load);
  command->callback([flags] { run(*flags); });
}

}  // namespace calibatt::cli
