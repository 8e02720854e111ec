#include "known_flags.h"

#include <algorithm>
#include <iterator>

namespace calibatt::cli {
namespace {

using enum KnownFlag::Meaning;

constexpr std::string_view kGpus = "several GPUs make a video together with --gpus N, and no launcher";
constexpr std::string_view kOtherInputs =
    "this version makes videos from text, or from text and a first picture (--image)";
constexpr std::string_view kFewFrames = "frames are decoded a few at a time anyway";
constexpr std::string_view kOwnKernels = "attention never holds its scores in memory";
constexpr std::string_view kManyPrompts = "give a file with one prompt a line: --prompts FILE";

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
    {"--guidance_scale_2", kRenamed, "--cfg-scale-2"},
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
    {"--t5_cpu", kNotNeeded, "the text encoder is read block by block and takes little memory"},
    {"--t5_fsdp", kNotNeeded, "the text encoder is read block by block and takes little memory"},
    {"--dit_fsdp", kNotNeeded,
     "GPUs share a Wan model's weights where they do not fit whole, or with --shard-weights on"},
    {"--ulysses_size", kAnswered, kGpus, "1"},
    {"--ring_size", kAnswered, kGpus, "1"},
    {"--convert_model_dtype", kNotNeeded, "weights are converted to --dtype as they are read"},
    {"--use_prompt_extend", kAnswered, "prompts are used as they are given; leave it out", "false"},
    {"--prompt_extend_method", kAnswered, "prompts are used as they are given", "*"},
    {"--prompt_extend_model", kAnswered, "prompts are used as they are given", "*"},
    {"--prompt_extend_target_lang", kAnswered, "prompts are used as they are given", "*"},
    {"--image_path", kRenamed, "--image"},
    {"--first_frame", kAnswered, kOtherInputs},
    {"--last_frame", kAnswered, kOtherInputs},
    {"--src_video", kAnswered, kOtherInputs},
    {"--lora_path", kRenamed, "--lora"},
    {"--lora_weights", kRenamed, "--lora"},
    {"--lora_weight", kRenamed, "--lora"},
    {"--lora_scale", kAnswered, "the strength stands behind the file: --lora FILE:0.8"},
    {"--lora_strength", kAnswered, "the strength stands behind the file: --lora FILE:0.8"},
    {"--enable_vae_tiling", kNotNeeded, kFewFrames},
    {"--enable_vae_slicing", kNotNeeded, kFewFrames},
    {"--enable_attention_slicing", kNotNeeded, kOwnKernels},
    {"--enable_xformers_memory_efficient_attention", kNotNeeded, kOwnKernels},
    {"--batch_size", kAnswered, kManyPrompts, "1"},
    {"--num_videos_per_prompt", kAnswered, "run once for each --seed", "1"},
    // stable-diffusion.cpp (github.com/leejet/stable-diffusion.cpp).
    {"--mode", kAnswered, kOtherInputs, "vid_gen"},
    {"-M", kAnswered, kOtherInputs, "vid_gen"},
    {"--diffusion_model", kRenamed, "--model"},
    {"--sampling_method", kRenamed, "--scheduler"},
    {"--offload_to_cpu", kSwitch, "--offload"},
    {"--t5xxl", kRenamed, "--text-encoder"},
    {"--init_img", kRenamed, "--image"},
    {"--batch_count", kAnswered, kManyPrompts, "1"},
    {"--vae_tiling", kNotNeeded, kFewFrames},
    {"--vae_on_cpu", kNotNeeded, kFewFrames},
    {"--clip_on_cpu", kNotNeeded, "the text encoder is read block by block and takes little memory"},
    {"--fa", kNotNeeded, kOwnKernels},
    {"--diffusion_fa", kNotNeeded, kOwnKernels},
    {"--verbose", kNotNeeded, "--report FILE has everything about the run"},
    // Our own, of runs, where it is given to calibrate.
    {"--keep_steps", kAnswered,
     "a run keeps steps (calibatt generate); those that a plan has in 8 bits are told to calibatt calibrate with "
     "--eight-bit-layers-from N and --eight-bit-attention-from N"},
    {"--color", kNotNeeded, "messages have no colours"},
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
