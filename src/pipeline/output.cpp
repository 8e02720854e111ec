#include "calibatt/output.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "io/atomic_file.h"
#include "io/output_target.h"
#include "io/system_error.h"
#include "media/frame_names.h"
#include "media/kept_frames.h"
#include "media/video_writer.h"
#include "pipeline/report_kind.h"
#include "plan/plan_heads.h"

namespace calibatt {
namespace {

namespace fs = std::filesystem;

using FileId = std::pair<dev_t, ino_t>;

std::optional<FileId> id_of(const std::string& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) return std::nullopt;
  return FileId{status.st_dev, status.st_ino};
}

std::vector<std::string> extensions_of(OutputKind kind) {
  if (kind == OutputKind::kVideo) return video_extensions();
  if (kind == OutputKind::kPicture) return {".png"};
  if (kind == OutputKind::kPlan || kind == OutputKind::kFrames) return {".safetensors"};
  if (kind == OutputKind::kPage) return {".html"};
  return {};
}

void check_extension(const Output& output) {
  const std::vector<std::string> known = extensions_of(output.kind);
  if (known.empty() || std::find(known.begin(), known.end(), lower_extension(output.path)) != known.end()) return;
  std::string text;
  for (const std::string& each : known) text += (text.empty() ? "" : ", ") + each;
  throw Error(ErrorKind::kUsage,
              output.flag + " " + output.path + ": the name must end in " + (known.size() > 1 ? "one of " : "") + text);
}

// Other programs have a config.json as well; those of diffusers, transformers and Wan-AI say what they configure.
bool is_model_settings(const fs::path& file) {
  std::error_code ignored;
  if (!fs::is_regular_file(file, ignored)) return false;
  if (file.filename() != "config.json") return true;
  std::ifstream stream(file);
  const nlohmann::json config = nlohmann::json::parse(stream, nullptr, /*allow_exceptions=*/false);
  return config.is_object() && (config.contains("_class_name") || config.contains("model_type"));
}

/// By which a folder is that of a model or of one of its parts; empty: it is not.
std::string settings_of_model(const fs::path& folder) {
  for (const char* settings : {"model_index.json", "config.json", "tokenizer_config.json", "scheduler_config.json"}) {
    if (is_model_settings(folder / settings)) return settings;
  }
  return "";
}

// What is written into a model's folder, or that of one of its parts, would be taken for files of the model.
void check_no_model(const Output& output) {
  const std::string settings = settings_of_model(output.path);
  if (settings.empty()) return;
  throw Error(ErrorKind::kUsage, output.flag + " " + output.path + ": is a model's folder, with its " + settings +
                                     "; give a folder of its own");
}

/// Whether those who read models look for a file of this name.
bool is_name_in_models(const std::string& name) {
  constexpr std::array<std::string_view, 10> kSettings{
      "model_index.json",         "config.json",        "generation_config.json", "scheduler_config.json",
      "preprocessor_config.json", "tokenizer.json",     "tokenizer_config.json",  "special_tokens_map.json",
      "added_tokens.json",        "adapter_config.json"};
  if (std::ranges::find(kSettings, name) != kSettings.end()) return true;
  return (name.starts_with("model") || name.starts_with("diffusion_pytorch_model")) &&
         (name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json"));
}

// A new file beside a model's own is not one of them, unless it is called like one that models may lack.
void check_no_file_of_model(const Output& output, const std::string& path) {
  if (!is_name_in_models(fs::path(path).filename().string())) return;
  if (settings_of_model(folder_of(path)).empty()) return;
  throw Error(ErrorKind::kUsage, output.flag + " " + output.path +
                                     ": would be read as a file of the model in that folder; give another name");
}

// The folder is there, or the nearest one above it that is there can take it.
void check_folder(const Output& output) {
  fs::path folder = fs::path(output.path) / "";
  folder = folder.parent_path();
  struct stat status {};
  for (fs::path part = folder;; part = part.parent_path().empty() ? "." : part.parent_path()) {
    if (lstat(part.c_str(), &status) != 0) {
      if (errno != ENOENT || part == part.parent_path()) throw_write_error(output.path, errno);
      continue;
    }
    if (stat(part.c_str(), &status) != 0) throw_write_error(output.path, errno);
    if (!S_ISDIR(status.st_mode)) {
      throw Error(ErrorKind::kIo,
                  output.flag + " " + output.path + ": " + part.string() + " is not a folder; give another name");
    }
    std::string probe = (part / ".calibatt-XXXXXX").string();
    if (mkdtemp(probe.data()) == nullptr) throw_write_error(output.path, errno);
    rmdir(probe.c_str());
    return;
  }
}

/// One output, followed to where it is written.
struct Place {
  const Output* output = nullptr;
  std::string path;                           ///< absolute, without links and dots
  std::optional<FrameNames> frames;           ///< of numbered frames
  std::map<FileId, std::string> replaceable;  ///< regular files that are there already and may be replaced
};

std::string normalised(const std::string& path) {
  std::error_code error;
  const fs::path folder = fs::weakly_canonical(folder_of(path), error);
  std::error_code ignored;
  return ((error ? fs::absolute(folder_of(path), ignored) : folder) / fs::path(path).filename()).string();
}

void add_replaceable(Place& place, const std::string& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) return;
  place.replaceable[{status.st_dev, status.st_ino}] = path;
}

Place place_of(const Output& output) {
  Place place{&output, "", {}, {}};
  if (output.kind == OutputKind::kFolder) {
    check_folder(output);
    check_no_model(output);
    std::error_code error;
    const fs::path folder = fs::absolute(fs::path(output.path) / "", error).parent_path();
    const fs::path canonical = fs::weakly_canonical(folder, error);
    place.path = (error ? folder : canonical).string();
    return place;
  }
  check_extension(output);
  if (output.kind == OutputKind::kVideo && lower_extension(output.path) == ".png") {
    static_cast<void>(AtomicFile(FrameNames(output.path).name(0)));
    place.path = normalised(output.path);
    place.frames = FrameNames(place.path);
    std::error_code error;
    for (fs::directory_iterator entry(folder_of(place.path), error), end; !error && entry != end;
         entry.increment(error)) {
      if (!place.frames->is_frame(entry->path().string())) continue;
      if (std::error_code gone; !entry->is_regular_file(gone) && entry->exists(gone)) {
        throw Error(ErrorKind::kIo, output.flag + " " + entry->path().string() +
                                        ": is in a frame's place and no regular file; give another name");
      }
      add_replaceable(place, entry->path().string());
    }
    return place;
  }
  const OutputTarget target = resolve_output(output.path);
  if (target.stream) return place;             // nothing there can be lost
  static_cast<void>(AtomicFile(output.path));  // a file beside it can be made; none stays
  place.path = normalised(target.path);
  add_replaceable(place, place.path);
  if (place.replaceable.empty()) check_no_file_of_model(output, place.path);  // one that is there is judged by its kind
  return place;
}

// A model's settings are JSON too.
bool is_report(const std::string& path) {
  std::ifstream file(path);
  return report_kind_of(nlohmann::json::parse(file, nullptr, false)).has_value();
}

bool is_like(OutputKind kind, const std::string& path, const std::string& head) {
  if (kind == OutputKind::kReport) return is_report(path);
  if (kind == OutputKind::kPage) return head.starts_with("<!doctype html>");
  if (kind == OutputKind::kPlan) return head.find('"' + std::string(kPlanFormatName) + '"') != std::string::npos;
  if (kind == OutputKind::kFrames) return head.find('"' + std::string(kKeptFramesFormat) + '"') != std::string::npos;
  const std::string extension = lower_extension(path);
  if (extension == ".mp4") return head.substr(4, 4) == "ftyp";
  if (extension == ".webm") return head.starts_with("\x1a\x45\xdf\xa3");
  if (extension == ".webp") return head.starts_with("RIFF") && head.substr(8, 4) == "WEBP";
  return head.starts_with("\x89PNG");
}

// A file may be replaced by a newer one of its kind. Anything else was not made by an earlier run, but named by
// mistake.
void check_replaceable(const Place& place) {
  constexpr size_t kHeadBytes = size_t{4} << 20;  // a plan says what it is at the start of its header
  for (const auto& [id, path] : place.replaceable) {
    std::string head(kHeadBytes, '\0');
    std::ifstream file(path, std::ios::binary);
    file.read(head.data(), static_cast<std::streamsize>(head.size()));
    head.resize(static_cast<size_t>(std::max<std::streamsize>(file.gcount(), 0)));
    if (file.is_open() && (head.empty() || is_like(place.output->kind, path, head.append(16, '\0')))) continue;
    constexpr const char* kKinds[] = {"video",       "picture",   "plan",  "file of kept frames",
                                      "JSON report", "HTML page", "folder"};
    throw Error(ErrorKind::kUsage, place.output->flag + " " + path + ": there is a file of that name that is no " +
                                       kKinds[static_cast<int>(place.output->kind)] +
                                       ", and it would be lost; give another name, or remove it first");
  }
}

/// A folder that is written into may be one that is read where the same flag names it: a profile that is gone on with.
void check_no_input_folder(const Place& place, const std::vector<Input>& inputs) {
  if (place.output->kind != OutputKind::kFolder) return;
  const std::optional<FileId> folder = id_of(place.path);
  for (const Input& input : inputs) {
    if (!folder || input.flag == place.output->flag || id_of(input.path) != folder) continue;
    throw Error(ErrorKind::kUsage, place.output->flag + " " + place.output->path + ": is the folder of " + input.flag +
                                       " " + input.path + ", where nothing else should be; give a folder of its own");
  }
}

/// Nor may a file be taken for one that a profile's folder has or will have.
void check_no_file_of_profile(const Place& place, const std::vector<Place>& places) {
  if (place.output->kind == OutputKind::kFolder || place.path.empty()) return;
  const std::string name = fs::path(place.path).filename().string();
  constexpr std::string_view kBesidePrompts[] = {"held_out_run.safetensors", "step_growth.json",
                                                 "step_growth_part.safetensors"};
  if (!name.starts_with("prompt_") && std::ranges::find(kBesidePrompts, name) == std::end(kBesidePrompts)) return;
  for (const Place& folder : places) {
    if (folder.output->kind != OutputKind::kFolder || fs::path(place.path).parent_path() != folder.path) continue;
    throw Error(ErrorKind::kUsage, place.output->flag + " " + place.output->path +
                                       ": would be read as a file of the folder of " + folder.output->flag +
                                       "; give another name");
  }
}

bool same_place(const Place& a, const Place& b) {
  if (a.path.empty() || b.path.empty()) return false;
  if (a.path == b.path || (a.frames && a.frames->is_frame(b.path)) || (b.frames && b.frames->is_frame(a.path))) {
    return true;
  }
  return std::any_of(a.replaceable.begin(), a.replaceable.end(),
                     [&](const auto& item) { return b.replaceable.contains(item.first); });
}

/// Every file that is read, with the input it belongs to.
std::map<FileId, std::string> files_read(const std::vector<Input>& inputs) {
  std::map<FileId, std::string> files;
  const auto add = [&](const Input& input, const std::string& path) {
    if (const auto id = id_of(path)) files.emplace(*id, input.flag + " " + input.path);
  };
  for (const Input& input : inputs) {
    std::error_code error;
    if (fs::is_directory(input.path, error)) {
      constexpr auto kOptions =
          fs::directory_options::follow_directory_symlink | fs::directory_options::skip_permission_denied;
      constexpr int kMaxDepth = 2;  // of the files in a model's folder; and a chain of links ends
      for (fs::recursive_directory_iterator entry(input.path, kOptions, error), end; !error && entry != end;
           entry.increment(error)) {
        if (entry.depth() >= kMaxDepth) entry.disable_recursion_pending();
        add(input, entry->path().string());
      }
    } else if (!fs::exists(input.path, error) && lower_extension(input.path) == ".png") {
      const FrameNames names(input.path);
      for (int i = 0; fs::exists(names.name(i), error); ++i) add(input, names.name(i));
    } else {
      add(input, input.path);
    }
  }
  return files;
}

}  // namespace

void check_outputs(const std::vector<Output>& outputs, const std::vector<Input>& inputs) {
  std::vector<Place> places;
  for (const Output& output : outputs) {
    if (!output.path.empty()) places.push_back(place_of(output));
  }
  for (const Place& place : places) {
    check_no_input_folder(place, inputs);
    check_no_file_of_profile(place, places);
  }
  const std::map<FileId, std::string> read = files_read(inputs);
  for (const Place& place : places) {
    for (const auto& [id, path] : place.replaceable) {
      if (const auto found = read.find(id); found != read.end()) {
        throw Error(ErrorKind::kUsage, place.output->flag + " " + place.output->path +
                                           ": would overwrite what is read (" + found->second + "); give another name");
      }
    }
  }
  for (size_t i = 0; i < places.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (!same_place(places[i], places[j])) continue;
      throw Error(ErrorKind::kUsage, places[i].output->flag + " " + places[i].output->path + " and " +
                                         places[j].output->flag + " " + places[j].output->path +
                                         " are one file; give each its own name");
    }
  }
  for (const Place& place : places) check_replaceable(place);
}

}  // namespace calibatt
