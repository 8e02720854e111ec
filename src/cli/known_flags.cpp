#include "known_flags.h"

#include <algorithm>
#include <iterator>

namespace calibatt::cli {
namespace {

using enum KnownFlag::Meaning;

// Earlier names of ours, Wan-AI's generate.py (github.com/Wan-Video/Wan2.1), and the arguments of diffusers'
// WanPipeline as its users' scripts take them.
constexpr KnownFlag kKnown[] = {
    {"--sample_steps", kRenamed, "--steps"},
    {"--num_inference_steps", kRenamed, "--steps"},
    {"--num_steps", kRenamed, "--steps"},
    {"--sample_shift", kRenamed, "--flow-shift"},
    {"--shift", kRenamed, "--flow-shift"},
    {"--sample_guide_scale", kRenamed, "--cfg-scale"},
    {"--guidance_scale", kRenamed, "--cfg-scale"},
    {"--guide_scale", kRenamed, "--cfg-scale"},
    {"--cfg", kRenamed, "--cfg-scale"},
    {"--sample_solver", kRenamed, "--scheduler"},
    {"--denoising_step_list", kRenamed, "--timesteps"},
    {"--frame_num", kRenamed, "--video-frames"},
    {"--num_frames", kRenamed, "--video-frames"},
    {"--frames", kRenamed, "--video-frames"},
    {"--base_seed", kRenamed, "--seed"},
    {"--save_file", kRenamed, "--output"},
    {"--output_path", kRenamed, "--output"},
    {"--output_file", kRenamed, "--output"},
    {"--out", kRenamed, "--output"},
    {"--ckpt_dir", kRenamed, "--model"},
    {"--model_id", kRenamed, "--model"},
    {"--model_path", kRenamed, "--model"},
    {"--pretrained_model_name_or_path", kRenamed, "--model"},
    {"--torch_dtype", kRenamed, "--dtype"},
    {"--prompt_file", kRenamed, "--prompts"},
    {"--profile_folder", kRenamed, "--profile"},
    {"--precision", kRenamed, "--dtype"},
    {"--size", kSize, ""},
    {"--resolution", kSize, ""},
    {"--offload_model", kSwitch, "--offload"},
    {"--enable_model_cpu_offload", kSwitch, "--offload"},
    {"--enable_sequential_cpu_offload", kSwitch, "--offload"},
    {"--task", kTask, ""},
    {"--t5_cpu", kAnswered, "the text encoder is read block by block and takes little memory; leave it out"},
    {"--t5_fsdp", kAnswered, "this version runs on one GPU; leave it out"},
    {"--dit_fsdp", kAnswered, "this version runs on one GPU; leave it out"},
    {"--ulysses_size", kAnswered, "this version runs on one GPU; leave it out"},
    {"--ring_size", kAnswered, "this version runs on one GPU; leave it out"},
    {"--use_prompt_extend", kAnswered, "prompts are used as they are given; leave it out"},
    {"--image", kAnswered, "this version makes videos from text only"},
    {"--lora", kAnswered, "this version does not add LoRA weights; fuse them and give the saved folder as --model"},
    {"--enable_vae_tiling", kAnswered, "frames are decoded a few at a time anyway; leave it out"},
    {"--batch_size", kAnswered, "give a file with one prompt a line: --prompts FILE"},
    {"--num_videos_per_prompt", kAnswered, "run once for each --seed"},
};

}  // namespace

const KnownFlag* known_flag(std::string_view name) {
  const auto same = [&](const KnownFlag& flag) {
    return std::equal(name.begin(), name.end(), flag.name.begin(), flag.name.end(),
                      [](char a, char b) { return a == b || (a == '-' && b == '_'); });
  };
  const auto* found = std::find_if(std::begin(kKnown), std::end(kKnown), same);
  return found == std::end(kKnown) ? nullptr : found;
}

}  // namespace calibatt::cli
