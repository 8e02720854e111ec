#include "options.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <mutex>
#include <numeric>
#include <random>
#include <string_view>
#include <vector>

#include "calibatt/eight_bits.h"
#include "calibatt/error.h"
#include "calibatt/fit.h"

namespace calibatt::cli {
namespace {

constexpr int kMaxInt = std::numeric_limits<int>::max();

[[noreturn]] void refuse(const std::string& flag, const std::string& text, const std::string& what) {
  throw Error(ErrorKind::kUsage, flag + " " + shown(text) + ": " + what);
}

bool has_leading_zero(const std::string& text) {
  const size_t first = text.starts_with('-') ? 1 : 0;
  return text.size() > first + 1 && text[first] == '0';
}

Precision precision_of(const std::string& text) {
  const std::string name = text.starts_with("torch.") ? text.substr(6) : text;
  if (name == "f32" || name == "fp32" || name == "float32") return Precision::kF32;
  if (name == "f16" || name == "fp16" || name == "float16") return Precision::kF16;
  if (name == "bf16" || name == "bfloat16") return Precision::kBF16;
  if (name == "auto") return Precision::kAuto;
  refuse(
      "--dtype", text,
      name.starts_with("fp8") || name.starts_with("float8") || name.starts_with("int")
          ? "arithmetic is in bf16, fp16 (on a GPU) or fp32; linear layers are in 8 bits with --weights-dtype fp8 or "
            "int8"
          : "choose bf16, fp16 (on a GPU), fp32 or auto");
}

// As PyTorch has it, a device is more than a number.
int device_of(const std::string& text) {
  if (text.starts_with("cuda")) {
    const std::string index = text.starts_with("cuda:") ? text.substr(5) : "0";
    refuse("--device", text, "give the index alone, --device " + shown(index) + "; --backend cuda says what computes");
  }
  if (text == "cpu") refuse("--device", text, "is the index of a GPU; --backend cpu computes without one");
  return static_cast<int>(whole_number("--device", text, 0, 1024));
}

std::vector<int> devices_of(const std::string& text) {
  std::vector<int> devices;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    if (end == begin && !text.empty()) {
      refuse("--device", text,
             "item " + std::to_string(devices.size() + 1) + " is empty; give numbers between commas, such as 0,2");
    }
    devices.push_back(device_of(text.substr(begin, end - begin)));
    begin = end + 1;
  }
  return devices;
}

// By its own name here; other names say which is nearest.
std::string scheduler_of(const std::string& text) {
  if (text == "unipc" || text == "euler") return text;
  std::string name = text;
  std::ranges::transform(name, name.begin(), [](unsigned char letter) { return std::tolower(letter); });
  const auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
  if (has("lcm")) {
    refuse("--scheduler", text,
           "is not there; models of few steps run with --scheduler euler, the --timesteps that they were made for and "
           "--cfg-scale 1");
  }
  if (has("dpm")) refuse("--scheduler", text, "is not there; --scheduler unipc is the nearest, and what Wan-AI uses");
  if (has("unipc")) refuse("--scheduler", text, "is --scheduler unipc here");
  if (has("euler")) refuse("--scheduler", text, "is --scheduler euler here");
  refuse("--scheduler", text, "choose unipc or euler");
}

uint64_t drawn_seed() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

// As other programs have it: −1 takes any seed. Which one is in the summary and the report.
uint64_t seed_of(const std::string& text, bool random) {
  if (text == "-1" && random) return drawn_seed();
  uint64_t seed = 0;
  const char *begin = text.data(), *end = begin + text.size();
  const auto [rest, failed] = std::from_chars(begin, end, seed);
  if (failed != std::errc() || rest != end || has_leading_zero(text)) {
    refuse("--seed", text,
           "must be a whole number from 0 to 18446744073709551615" +
               std::string(random ? ", or -1 for a random one" : ""));
  }
  return seed;
}

// In brackets or not. A 0 at the end is where every walk ends, and no step.
std::vector<double> listed_steps(const std::string& flag, const std::string& text, double max) {
  std::string_view list = text;
  if (list.size() > 1 && list.front() == '[' && list.back() == ']') list = list.substr(1, list.size() - 2);
  std::vector<double> values;
  while (true) {
    const size_t comma = std::min(list.find(','), list.size());
    std::string_view item = list.substr(0, comma);
    while (item.starts_with(' ')) item.remove_prefix(1);
    while (item.ends_with(' ')) item.remove_suffix(1);
    values.push_back(real_number(flag, std::string(item), 0, max));
    if (comma == list.size()) break;
    list.remove_prefix(comma + 1);
  }
  if (values.back() == 0) values.pop_back();
  if (values.empty()) refuse(flag, text, "lists no step");
  return values;
}

double lora_scale(const std::string& flag, const std::string& text) {
  return real_number(flag + " FILE:SCALE, where SCALE is", text, -100, 100);
}

bool exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

// FILE or FILE:SCALE. A file whose name ends like that is given with a scale behind it.
Lora lora_of(const std::string& flag, const std::string& text, Lora::Expert expert) {
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos) return {text, 1, expert};
  const std::string path = text.substr(0, colon), scale = text.substr(colon + 1);
  const bool numeric = !scale.empty() && scale.find_first_not_of("+-.0123456789eE") == std::string::npos;
  if (exists(numeric ? path : text)) return {numeric ? path : text, numeric ? lora_scale(flag, scale) : 1, expert};
  // The file may stand before an earlier colon: FILE:1:2.
  for (size_t at = text.find(':'); at != std::string::npos; at = text.find(':', at + 1)) {
    if (exists(text.substr(0, at))) lora_scale(flag, text.substr(at + 1));
  }
  if (numeric || scale.find_first_of("/.") == std::string::npos) return {path, lora_scale(flag, scale), expert};
  return {text, 1, expert};  // is not there, as who opens it says
}

void add_lora(std::vector<Lora>& loras, const std::string& flag, const std::string& text, const Lora& lora) {
  for (const Lora& other : loras) {
    if (other.path != lora.path || other.expert != lora.expert) continue;
    refuse(flag, text, "the same file is given before; give it once, with its strength behind a colon");
  }
  loras.push_back(lora);
}

void add_lora_flag(CLI::App& command, const std::string& flag, LoadOptions& load, Lora::Expert expert,
                   const std::string& description) {
  command
      .add_option_function<std::vector<std::string>>(
          flag,
          [&load, flag, expert](const std::vector<std::string>& texts) {
            for (const std::string& text : texts) add_lora(load.loras, flag, text, lora_of(flag, text, expert));
          },
          description)
      ->allow_extra_args(false)
      ->type_name("FILE[:SCALE]");
}

void add_device_flags(CLI::App& command, LoadOptions& load) {
  CLI::Option* device = command
                            .add_option_function<std::string>(
                                "--device",
                                [&load](const std::string& text) {
                                  load.devices = devices_of(text);
                                  load.devices_source = "--device " + shown(text);
                                },
                                "Index of the GPU, as CUDA counts them; of several that make each video together, such "
                                "as 0,2")
                            ->type_name("LIST")
                            ->default_str("0");
  command
      .add_option_function<std::string>(
          "--gpus",
          [&load](const std::string& text) {
            load.devices.resize(static_cast<size_t>(whole_number("--gpus", text, 1, kMostDevices)));
            std::iota(load.devices.begin(), load.devices.end(), 0);
            load.devices_source = "--gpus " + std::to_string(load.devices.size());
          },
          "Make each video with so many GPUs together, the first ones of this machine [1]")
      ->type_name("NUMBER")
      ->excludes(device);
}

std::mutex kept_mutex;
std::optional<std::vector<std::string>> kept_warnings;  // none: nobody keeps them

bool add_once(const std::string& text, std::vector<std::string>& all) {
  if (std::ranges::find(all, text) != all.end()) return false;
  all.push_back(text);
  return true;
}

}  // namespace

KeptWarnings::KeptWarnings() {
  const std::lock_guard lock(kept_mutex);
  kept_warnings.emplace();
}

KeptWarnings::~KeptWarnings() {
  const std::lock_guard lock(kept_mutex);
  kept_warnings.reset();
}

std::vector<std::string> KeptWarnings::with(const std::vector<std::string>& more) const {
  const std::lock_guard lock(kept_mutex);
  std::vector<std::string> all = *kept_warnings;
  for (const std::string& each : more) add_once(each, all);
  return all;
}

void warn(const std::string& message) {
  {
    const std::lock_guard lock(kept_mutex);
    if (kept_warnings && !add_once(message, *kept_warnings)) return;
  }
  std::fprintf(stderr, "calibatt: warning: %s\n", printable(message).c_str());
}

void warn_of_unread(const CLI::App& command, const std::vector<std::string>& flags, const std::string& why) {
  std::string given;
  for (const std::string& flag : flags) {
    if (command.count(flag) > 0) given += (given.empty() ? "" : ", ") + flag;
  }
  if (!given.empty()) warn(given + (given.find(',') == std::string::npos ? " is" : " are") + " not read: " + why);
}

void warn_of_unread_fps(bool given, const std::string& output) {
  std::string extension = std::filesystem::path(output).extension().string();
  std::ranges::transform(extension, extension.begin(), [](unsigned char letter) { return std::tolower(letter); });
  if (given && extension == ".png") {
    warn("--fps is not read: numbered pictures have no frame rate");
  }
}

std::vector<Input> inputs_of(const LoadOptions& load) {
  std::vector<Input> inputs{{"--model", load.model_dir}};
  inputs.push_back({"--transformer", load.transformer});
  inputs.push_back({"--transformer-2", load.transformer_2});
  inputs.push_back({"--text-encoder", load.text_encoder});
  inputs.push_back({"--vae", load.vae});
  for (const Lora& lora : load.loras) inputs.push_back({"--lora", lora.path});
  return inputs;
}

void add_model_flags(CLI::App& command, LoadOptions& load) {
  command
      .add_option("-m,--model", load.model_dir,
                  "Model folder in the diffusers layout (with model_index.json), or Wan-AI's own")
      ->type_name("FOLDER")
      ->required();
  add_loading_flags(command, load);
}

void add_loading_flags(CLI::App& command, LoadOptions& load) {
  const auto add_part = [&command](const std::string& flag, std::string& path, const std::string& description) {
    command.add_option(flag, path, description)->type_name("FILE");
  };
  add_part("--transformer", load.transformer,
           "Transformer in one safetensors file (also in fp8), in place of the model folder's");
  add_part("--transformer-2", load.transformer_2,
           "That of the low noise levels, where --transformer is that of the high ones (Wan 2.2 A14B)");
  add_part("--text-encoder", load.text_encoder, "The same for the text encoder");
  add_part("--vae", load.vae, "The same for the video autoencoder");
  add_lora_flag(command, "--lora", load, Lora::Expert::kAll,
                "LoRA to merge into the transformer (of two, into both), and its strength [1]; may be given several "
                "times");
  add_lora_flag(command, "--lora-high", load, Lora::Expert::kHigh, "The same for that of the high noise levels alone");
  add_lora_flag(command, "--lora-low", load, Lora::Expert::kLow, "The same for that of the low noise levels alone");
  command
      .add_option_function<std::string>(
          "--dtype", [&load](const std::string& name) { load.precision = precision_of(name); },
          "Arithmetic: bf16, fp16 (on a GPU), fp32, or auto (bf16 where the hardware has it)")
      ->type_name("auto|bf16|fp16|fp32")
      ->default_str("auto");
  command
      .add_option_function<std::string>(
          "--weights-dtype", [&load](const std::string& name) { load.weights = weights_precision_of(name); },
          "Linear layers of the transformer's blocks: int8 or fp8 (weights and inputs in 8 bits, fp8 being e4m3; on "
          "Hopper GPUs, and on the CPU for comparison; calibrate: what a plan may have), bf16, or auto (as --dtype)")
      ->type_name("auto|bf16|fp8|int8")
      ->default_str("auto");
  command
      .add_option_function<std::string>(
          "--keep-layers", [&load](const std::string& text) { load.kept_layers = kept_layers_of(text); },
          "Of --weights-dtype fp8 and int8: layers that stay as --dtype has them, such as ffn.net.2,blocks.0 (Mochi: "
          "ff.net.2,transformer_blocks.0); an entry that names none is answered with all of the model's")
      ->type_name("LIST");
  add_whole_number(command, "-t,--threads", load.threads, 0, 4096, "Threads; 0: all processors")->default_str("0");
  command
      .add_option("--backend", load.backend,
                  "Where to compute: cpu, cuda, or auto (cuda where this build has it and a GPU is there)")
      ->type_name("NAME")
      ->capture_default_str();
  add_device_flags(command, load);
  command
      .add_option_function<std::string>(
          "--shard-weights",
          [&load](const std::string& name) {
            load.shard_weights = name == "on"    ? ShardWeights::kOn
                                 : name == "off" ? ShardWeights::kOff
                                                 : ShardWeights::kAuto;
          },
          "Of several GPUs: each keeps a part of the transformer's blocks and gathers the others' as it comes to them "
          "(on), or all of them (off); auto: all where they fit")
      ->check(CLI::IsMember({"auto", "on", "off"}))
      ->type_name("auto|on|off")
      ->default_str("auto");
  command.add_flag("--offload", load.offload,
                   "Keep the transformer's blocks in host memory, once for all GPUs, and stream them to these: 14B at "
                   "720p in 11 GB");
  load.warn = warn;
}

void check_attention_here(const LoadOptions& load, const GenerateOptions& run) {
  if (run.attention_dtype != AttentionDtype::kModel) check_arithmetic(load, run);
}

void check_before_loading(const ModelOnDisk& model, GenerateOptions& run) {
  model.check_image(run);
  const GenerateOptions resolved = model.resolved(run);
  for (const std::string& line : model.unread(run)) warn(line);
  if (run.image && !(run.width && run.height)) {
    std::fprintf(stderr, "calibatt: the video is of %d×%d, after the shape of %s\n", *resolved.width, *resolved.height,
                 printable(run.image->source).c_str());
  }
  run.width = resolved.width;  // it need not be asked again
  run.height = resolved.height;
}

void add_run_flags(CLI::App& command, GenerateOptions& run, bool random_seed, bool* drawn) {
  command
      .add_option_function<std::string>(
          "--image",
          [&run](const std::string& path) { run.image = std::make_shared<const Picture>(read_picture(path)); },
          "Picture that the video begins with (PNG, JPEG, WebP), for image-to-video models; without --width and "
          "--height, or with one of them, the video is of its shape")
      ->type_name("FILE");
  command.add_option("-n,--negative-prompt", run.negative_prompt, "What the video should not show")->type_name("TEXT");
  command
      .add_option_function<std::string>(
          "-s,--seed",
          [&run, random_seed, drawn](const std::string& text) {
            run.seed = seed_of(text, random_seed);
            if (drawn != nullptr) *drawn = text == "-1";
          },
          std::string("Seed of the initial noise (the same noise as torch's CPU generator)") +
              (random_seed ? "; -1: a random one" : ""))
      ->type_name("NUMBER")
      ->default_str("0");
  add_sampling_flags(command, run);
}

void add_sampling_flags(CLI::App& command, GenerateOptions& run) {
  add_whole_number(command, "--steps", run.steps, 1, 1000, "Denoising steps [the model's default]");
  add_real_number(command, "--cfg-scale", run.cfg_scale, 0, 1000,
                  "Classifier-free guidance; 1 turns it off [the model's default]");
  add_real_number(command, "--cfg-scale-2", run.cfg_scale_2, 0, 1000,
                  "The same for the second transformer, that of the low noise levels (Wan 2.2 A14B) [--cfg-scale, or "
                  "the model's default]");
  add_real_number(command, "--flow-shift", run.flow_shift, 1e-3, 1000,
                  "Shift of the noise schedule [the model's default]");
  add_whole_number(command, "-W,--width", run.width, 1, kMaxInt,
                   "Width in pixels, a multiple of 16, for Wan 2.2 TI2V-5B of 32 [the model's default]");
  add_whole_number(command, "-H,--height", run.height, 1, kMaxInt,
                   "Height in pixels, a multiple of 16, for Wan 2.2 TI2V-5B of 32 [the model's default]");
  add_whole_number(command, "--video-frames", run.video_frames, 1, kMaxInt,
                   "Frames, 4k+1 (for example 17, 49, 81); Mochi: 6k+1 [the model's default]");
  add_real_number(command, "--fps", run.fps, 0.1, 1000, "Frames per second of the video file [the model's default]");
  command
      .add_option_function<std::string>(
          "--scheduler", [&run](const std::string& text) { run.scheduler = scheduler_of(text); },
          "unipc or euler [the model's default]")
      ->type_name("unipc|euler");
  command
      .add_option_function<std::string>(
          "--sigmas",
          [&run](const std::string& text) {
            if (text.find_first_of("0123456789") == std::string::npos) {
              run.sigmas = text;
              return;
            }
            run.noise_levels = listed_steps("--sigmas", text, 1);
          },
          "Noise levels: diffusers, original (Wan-AI's script), even or linear-quadratic (Mochi), how they are spaced "
          "[by "
          "the model; Wan with euler: even]; or the levels themselves, not shifted: 1,0.94,0.83,0.63")
      ->type_name("NAME|LIST");
  command
      .add_option_function<std::string>(
          "--timesteps", [&run](const std::string& text) { run.timesteps = listed_steps("--timesteps", text, 1000); },
          "The steps themselves, before the shift, as few-step models are made for: 1000,750,500,250")
      ->type_name("LIST");
}

void add_attention_dtype_flag(CLI::App& command, GenerateOptions& run, const std::string& description) {
  command
      .add_option_function<std::string>(
          "--attention-dtype", [&run](const std::string& name) { run.attention_dtype = attention_dtype_of(name); },
          description)
      ->type_name("auto|bf16|fp8")
      ->default_str("auto");
}

void add_eight_bit_flags(CLI::App& command, GenerateOptions& run) {
  add_attention_dtype_flag(command, run,
                           "Self-attention: as --dtype says, or fp8 (int8 queries and keys, e4m3 weights and values) "
                           "in all but the first steps; on Hopper GPUs");
  add_whole_number(
      command, "--keep-steps", run.kept_steps, 0, kMaxInt,
      "Of --weights-dtype fp8 or int8 and of --attention-dtype fp8: so many first steps stay as --dtype has them "
      "[as the plan says, where it does, else a quarter of all]");
}

void add_mismatch_flag(CLI::App& command, GenerateOptions& run, const std::vector<std::string>& choices) {
  command
      .add_option_function<std::string>(
          "--on-mismatch",
          [&run](const std::string& choice) {
            run.on_mismatch = choice == "dense"  ? OnMismatch::kDense
                              : choice == "warn" ? OnMismatch::kWarn
                                                 : OnMismatch::kRefuse;
          },
          "When the plan was made for something else: refuse; warn: apply a plan of the same size and shape to other "
          "weights (a fine-tune)" +
              std::string(choices.size() > 2 ? "; or run dense and say so" : ""))
      ->check(CLI::IsMember(choices))
      ->default_str("refuse");
}

}  // namespace calibatt::cli
