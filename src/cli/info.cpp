#include <cstdio>
#include <memory>
#include <optional>

#include "calibatt/error.h"
#include "calibatt/fit.h"
#include "calibatt/pipeline.h"
#include "commands.h"
#include "options.h"

namespace calibatt::cli {
namespace {

double gigabytes(uint64_t bytes) {
  return static_cast<double>(bytes) * 1e-9;
}

/// Where GPUs may share the weights, and are not told to or not to.
std::optional<MemoryEstimate> shared_memory(LoadOptions load, const GenerateOptions& run) {
  if (load.devices.size() == 1 || load.shard_weights != ShardWeights::kAuto || load.offload) return {};
  load.shard_weights = ShardWeights::kOn;
  try {
    return ModelOnDisk::open(load).memory(run, load.precision, load.weights);
  } catch (const Error&) {  // the model has no parts to share
    return {};
  }
}

/// What is shown is of a run wherever it is made; one that cannot be made here is told of, as the run would tell.
void tell_of_refusal(const LoadOptions& load, const GenerateOptions& run) {
  try {
    check_arithmetic(load, run);
  } catch (const Error& error) {
    warn(std::string("a run on this machine is refused: ") + error.what());
  }
}

void print_info(const ModelOnDisk& model, const LoadOptions& load, const GenerateOptions& options) {
  const ModelInfo& info = model.info();
  const GenerateOptions run = model.resolved(options);
  std::printf("%s: %s, %s of %s; prompts of up to %d tokens\n", printable(info.name).c_str(),
              printable(info.kind).c_str(), counted(info.num_layers, "layers").c_str(),
              counted(info.num_heads, "heads").c_str(), info.max_prompt_tokens);
  if (info.takes_image) std::printf("its videos begin with a picture: --image FILE\n");
  std::printf("what a run does here where no flag says otherwise:\n");
  std::printf("  --width %d --height %d (multiples of %d and %d)\n", *run.width, *run.height, info.width_multiple,
              info.height_multiple);
  std::printf("  --video-frames %d (%dk+1) --fps %g\n", *run.video_frames, info.frames_multiple, *run.fps);
  const bool listed = !run.timesteps.empty() || !run.noise_levels.empty();
  if (run.cfg_scale_2) std::printf("  --cfg-scale-2 %g (of the low noise levels)\n", *run.cfg_scale_2);
  std::printf("  --steps %d --cfg-scale %g --flow-shift %g --scheduler %s%s\n", *run.steps, *run.cfg_scale,
              *run.flow_shift, run.scheduler->c_str(),
              listed ? ", steps as listed" : (" --sigmas " + *run.sigmas).c_str());
  const MemoryEstimate memory = model.memory(run, load.precision, load.weights);
  const std::optional<MemoryEstimate> shared = shared_memory(load, run);
  const bool several = load.devices.size() > 1;
  std::printf(
      "memory for such a video%s: about %.2f GB = weights %.2f + the larger of a forward %.2f and decoding %.2f; "
      "of host memory the frames take %.2f GB",
      several ? ", on each GPU" : "", gigabytes(memory.peak()), gigabytes(memory.weights),
      gigabytes(memory.activations), gigabytes(memory.autoencoder), gigabytes(memory.video));
  const char* of_all = several ? ", of all GPUs together" : "";
  if (memory.host_weights > 0) std::printf(" and weights %.2f GB%s", gigabytes(memory.host_weights), of_all);
  std::printf("\n");
  if (shared) {
    std::printf("  with --shard-weights on, which is done where these do not fit: about %.2f GB, of it weights %.2f",
                gigabytes(shared->peak()), gigabytes(shared->weights));
    if (shared->host_weights > 0)
      std::printf("; of host memory weights %.2f GB%s", gigabytes(shared->host_weights), of_all);
    std::printf("\n");
  }
}

}  // namespace

void add_info(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("info", "Show a model's defaults, the sizes it can do, and the memory they take");
  struct InfoFlags {
    LoadOptions load;
    GenerateOptions run;
  };
  const auto flags = std::make_shared<InfoFlags>();
  add_model_flags(*command, flags->load);
  add_run_flags(*command, flags->run);
  add_eight_bit_flags(*command, flags->run);
  command->callback([flags, command] {
    const ModelOnDisk model = ModelOnDisk::open(flags->load);
    std::vector<std::string> unread{"--lora", "--lora-high", "--lora-low", "--threads", "--seed", "--negative-prompt"};
    if (flags->load.devices.size() == 1) unread.insert(unread.end(), {"--device", "--shard-weights"});
    warn_of_unread(*command, unread, "calibatt info tells what a model's settings say of a run");
    if (flags->load.offload && !model.offloads()) {
      warn(
          "--offload changes nothing where a CPU computes, as here: all weights are in host memory already; add "
          "--backend cuda to be told of a GPU");
    }
    print_info(model, flags->load, flags->run);
    tell_of_refusal(flags->load, flags->run);
  });
}

}  // namespace calibatt::cli
