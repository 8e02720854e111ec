#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>

#include "commands.h"

namespace calibatt::cli {

namespace {
namespace fs = std::filesystem;

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string clock_text(double seconds) {
  const int whole = static_cast<int>(std::lround(seconds));
  return whole >= 3600 ? format("%d:%02d:%02d", whole / 3600, whole / 60 % 60, whole % 60)
                       : format("%d:%02d", whole / 60, whole % 60);
}
}  // namespace

std::string format(const char* pattern, ...) {
  va_list arguments, copy;
  va_start(arguments, pattern);
  va_copy(copy, arguments);
  std::string text(static_cast<size_t>(std::vsnprintf(nullptr, 0, pattern, copy)), '\0');
  va_end(copy);
  std::vsnprintf(text.data(), text.size() + 1, pattern, arguments);
  va_end(arguments);
  return text;
}

void add_model_flags(CLI::App& command, LoadOptions& load) {
  command
      .add_option("-m,--model", load.model_dir,
                  "Model folder in the diffusers layout (with model_index.json), or Wan-AI's own")
      ->type_name("FOLDER")
      ->required();
  command
      .add_option_function<std::string>(
          "--dtype,--precision",
          [&load](const std::string& name) {
            load.precision = name == "f32" || name == "fp32"   ? Precision::kF32
                             : name == "f16" || name == "fp16" ? Precision::kF16
                             : name == "bf16"                  ? Precision::kBF16
                                                               : Precision::kAuto;
          },
          "Arithmetic: bf16, fp16 (on a GPU), fp32, or auto (bf16 where the hardware has it)")
      ->check(CLI::IsMember({"auto", "bf16", "fp32", "f32", "fp16", "f16"}).description("auto|bf16|fp16|fp32"))
      ->default_str("auto");
  command.add_option("-t,--threads", load.threads, "Threads; 0: all processors")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  command
      .add_option("--backend", load.backend,
                  "Where to compute: cpu, cuda, or auto (cuda where this build has it and a GPU is there)")
      ->capture_default_str();
  command.add_option("--device", load.device, "Index of the GPU, as CUDA counts them")->capture_default_str();
  command.add_flag("--offload", load.offload,
                   "Keep the transformer's blocks in host memory and stream them to the GPU: 14B on 24 GB cards");
  load.warn = [](const std::string& message) { std::fprintf(stderr, "calibatt: warning: %s\n", message.c_str()); };
}

void add_run_flags(CLI::App& command, GenerateOptions& run) {
  command.add_option("-n,--negative-prompt", run.negative_prompt, "What the video should not show");
  command.add_option("-s,--seed", run.seed, "Seed of the initial noise (the same noise as torch's CPU generator)")
      ->capture_default_str();
  command.add_option("--steps", run.steps, "Denoising steps [the model's default]")->check(CLI::Range(1, 1000));
  command.add_option("--cfg-scale", run.cfg_scale, "Classifier-free guidance; 1 turns it off [the model's default]");
  command.add_option("--flow-shift", run.flow_shift, "Shift of the noise schedule [the model's default]");
  command.add_option("-W,--width", run.width, "Width in pixels [the model's default]");
  command.add_option("-H,--height", run.height, "Height in pixels [the model's default]");
  command.add_option("--video-frames", run.video_frames, "Frames, 4k+1 [the model's default]");
  command.add_option("--fps", run.fps, "Frames per second of the video file [the model's default]");
  command.add_option("--scheduler", run.scheduler, "unipc or euler [the model's default]")
      ->check(CLI::IsMember({"unipc", "euler"}));
  command
      .add_option("--sigmas", run.sigmas,
                  "How noise levels are spaced: as diffusers does it, or as Wan-AI's original script [by the model's "
                  "layout]")
      ->check(CLI::IsMember({"diffusers", "original"}));
}

void check_output(const std::string& path, const std::vector<std::string>& extensions) {
  const fs::path target(path);
  if (path.empty()) throw Error(ErrorKind::kUsage, "the output path is empty; give -o FILE");
  if (!extensions.empty()) {
    const std::string extension = target.extension().string();
    if (std::find(extensions.begin(), extensions.end(), extension) == extensions.end()) {
      std::string known;
      for (const std::string& each : extensions) known += (known.empty() ? "" : ", ") + each;
      throw Error(ErrorKind::kUsage, path + ": unknown extension '" + extension + "'; use one of " + known);
    }
  }
  if (fs::is_directory(target)) throw Error(ErrorKind::kUsage, path + ": is a folder; give a file name in it");
  const fs::path folder = target.has_parent_path() ? target.parent_path() : fs::path(".");
  if (!fs::is_directory(folder)) {
    throw Error(ErrorKind::kNotFound, path + ": the folder " + folder.string() + " does not exist; create it first");
  }
  if (access(folder.c_str(), W_OK) != 0) {
    throw Error(ErrorKind::kIo,
                path + ": the folder " + folder.string() + " is not writable; choose another place with -o");
  }
}

void check_video_output(const std::string& path) {
  check_output(path, {".mp4", ".webm", ".webp", ".png"});
}

void write_text_file(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".partial";
  std::FILE* file = std::fopen(temporary.c_str(), "wb");
  bool good = file != nullptr;
  if (file != nullptr) {
    good = std::fwrite(text.data(), 1, text.size(), file) == text.size();
    good = std::fclose(file) == 0 && good;
  }
  if (!good || std::rename(temporary.c_str(), path.c_str()) != 0) {
    const std::string reason = std::strerror(errno);
    std::remove(temporary.c_str());
    throw Error(ErrorKind::kIo, path + ": not written (" + reason + "); free some space or choose another place");
  }
}

void ProgressBar::update(const std::string& stage, double fraction) {
  if (start_seconds_ < 0) start_seconds_ = now_seconds();
  fraction = std::clamp(fraction, 0.0, 1.0);
  const double elapsed = now_seconds() - start_seconds_;
  const std::string left = fraction > 0.01 ? clock_text(elapsed / fraction * (1 - fraction)) + " left" : "";
  static const bool terminal = isatty(STDERR_FILENO) != 0;
  if (terminal) {
    constexpr int kWidth = 30;
    const int filled = static_cast<int>(fraction * kWidth);
    const std::string bar =
        std::string(static_cast<size_t>(filled), '=') + std::string(static_cast<size_t>(kWidth - filled), ' ');
    std::fprintf(stderr, "\r%s [%s] %3.0f %%  %s  %s\033[K", label_.c_str(), bar.c_str(), fraction * 100, stage.c_str(),
                 left.c_str());
    std::fflush(stderr);
    drawn_ = true;
  } else if (const int tenth = static_cast<int>(fraction * 10); tenth != last_tenth_ || stage != last_stage_) {
    last_tenth_ = tenth;
    last_stage_ = stage;
    std::fprintf(stderr, "%s %3.0f %%  %s  %s\n", label_.c_str(), fraction * 100, stage.c_str(), left.c_str());
  }
}

void ProgressBar::finish() {
  if (drawn_) std::fputs("\r\033[K", stderr);
  drawn_ = false;
}

}  // namespace calibatt::cli
