#include "calibrate/profile.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <map>
#include <string_view>

#include "base/error.h"
#include "calibrate/level_code.h"
#include "io/fingerprint.h"
#include "io/safetensors.h"

namespace calibatt {
namespace {

using Metadata = std::map<std::string, std::string>;

constexpr std::string_view kFormat = "calibatt-profile";
constexpr std::string_view kVersion = "2";  // 1: without times, ranked_from and levels
constexpr size_t kChecksumDigits = 32;
constexpr const char* kMeasured = "measured";  // absent: maps
constexpr std::string_view kSettingPrefix = "setting.";

std::string number(double value) {
  char text[40];
  const auto end =
      std::to_chars(text, text + sizeof text, value).ptr;  // shortest text that reads back as the same value
  return {text, end};
}

template <class Range>
std::string joined(const Range& values) {
  std::string text;
  for (const auto value : values) text += (text.empty() ? "" : ",") + number(value);
  return text;
}

Metadata to_metadata(const ProfileHeader& header) {
  const AttentionGeometry& g = header.geometry;
  const PlanProvenance& p = header.provenance;
  Metadata metadata{
      {"frames", number(g.frames)},
      {"height", number(g.height)},
      {"width", number(g.width)},
      {"text_tokens", number(g.text_tokens)},
      {"heads", number(g.heads)},
      {"head_dim", number(g.head_dim)},
      {"block_q", number(g.block_q)},
      {"block_k", number(g.block_k)},
      {"token_order", g.order.to_string()},
      {"num_layers", number(header.num_layers)},
      {"sigmas", joined(header.sigmas)},
      {"output_errors", header.output_errors ? "1" : "0"},
      {"samples_per_block", number(header.samples_per_block)},
      {"anchor_rows", joined(header.anchor_rows)},
      {"energy_levels", joined(kEnergyLevels)},
      {"density_levels", joined(kDensityLevels)},
      {"model_name", p.model_name},
      {"model_fingerprint", p.model_fingerprint},
      {"prompts_hash", p.prompts_hash},
      {"num_prompts", number(p.num_prompts)},
      {"video_frames", number(p.video_frames)},
      {"video_height", number(p.video_height)},
      {"video_width", number(p.video_width)},
      {"guidance_scale", number(p.guidance_scale)},
      {"scheduler", p.scheduler},
      {"flow_shift", number(p.flow_shift)},
  };
  if (header.measured == Measured::kLevels) {
    metadata[kMeasured] = "levels";
    metadata["recorded_steps"] = joined(header.recorded_steps);
    metadata["code_levels"] = joined(kCodeLevels);
  }
  for (const auto& [name, value] : p.settings) metadata[std::string(kSettingPrefix) + name] = value;
  return metadata;
}

/// Reads fields back; every problem is an Error(kFormat) that names file and field.
class Fields {
 public:
  Fields(const Metadata& metadata, const std::string& path) : metadata_(metadata), path_(path) {}

  const std::string& text(const std::string& name) const {
    const auto found = metadata_.find(name);
    if (found == metadata_.end()) throw wrong(name, "is missing");
    return found->second;
  }
  double real(const std::string& name) const { return parsed<double>(name, text(name)); }
  int integer(const std::string& name) const { return parsed<int>(name, text(name)); }
  template <class T>
  std::vector<T> list(const std::string& name) const {
    std::vector<T> values;
    std::string_view rest = text(name);
    while (!rest.empty()) {
      const size_t comma = std::min(rest.find(','), rest.size());
      values.push_back(parsed<T>(name, rest.substr(0, comma)));
      rest.remove_prefix(std::min(comma + 1, rest.size()));
    }
    return values;
  }
  Error wrong(const std::string& name, const std::string& what) const {
    return Error(ErrorKind::kFormat,
                 path_ + ": profile field \"" + name + "\" " + what + "; delete the file and calibrate again");
  }

 private:
  template <class T>
  T parsed(const std::string& name, std::string_view text) const {
    T value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) {
      throw wrong(name, "is not a number: \"" + std::string(text) + "\"");
    }
    return value;
  }
  const Metadata& metadata_;
  const std::string& path_;
};

bool sound_recorded_steps(const ProfileHeader& header) {
  const std::vector<int>& steps = header.recorded_steps;
  return !steps.empty() && steps.front() >= 0 && steps.back() < header.num_steps() &&
         std::adjacent_find(steps.begin(), steps.end(), std::greater_equal<>()) == steps.end();
}

ProfileHeader from_metadata(const Metadata& metadata, const std::string& path) {
  const Fields fields(metadata, path);
  ProfileHeader header;
  AttentionGeometry& g = header.geometry;
  g.frames = fields.integer("frames");
  g.height = fields.integer("height");
  g.width = fields.integer("width");
  g.text_tokens = fields.integer("text_tokens");
  g.heads = fields.integer("heads");
  g.head_dim = fields.integer("head_dim");
  g.block_q = fields.integer("block_q");
  g.block_k = fields.integer("block_k");
  try {
    g.order = TokenOrder::parse(fields.text("token_order"));
    g.validate();
  } catch (const Error& error) {
    throw Error(ErrorKind::kFormat, path + ": " + error.what() + "; delete the file and calibrate again");
  }
  header.num_layers = fields.integer("num_layers");
  header.sigmas = fields.list<double>("sigmas");
  header.output_errors = fields.text("output_errors") == "1";
  header.samples_per_block = fields.integer("samples_per_block");
  header.anchor_rows = fields.list<int>("anchor_rows");
  PlanProvenance& p = header.provenance;
  p.tool_version = fields.text("tool_version");
  p.model_name = fields.text("model_name");
  p.model_fingerprint = fields.text("model_fingerprint");
  p.prompts_hash = fields.text("prompts_hash");
  p.num_prompts = fields.integer("num_prompts");
  p.video_frames = fields.integer("video_frames");
  p.video_height = fields.integer("video_height");
  p.video_width = fields.integer("video_width");
  p.guidance_scale = fields.real("guidance_scale");
  p.scheduler = fields.text("scheduler");
  p.flow_shift = fields.real("flow_shift");
  for (const auto& [name, value] : metadata) {
    if (name.starts_with(kSettingPrefix)) p.settings[name.substr(kSettingPrefix.size())] = value;
  }
  constexpr int kMany = 1 << 16;
  if (header.num_layers < 1 || header.num_layers > kMany) throw fields.wrong("num_layers", "is out of range");
  if (header.sigmas.empty() || header.sigmas.size() > kMany) throw fields.wrong("sigmas", "is empty or far too long");
  if (fields.text("energy_levels") != joined(kEnergyLevels) ||
      fields.text("density_levels") != joined(kDensityLevels)) {
    throw fields.wrong("energy_levels", "or \"density_levels\" is not this version's");
  }
  for (const int rows : header.anchor_rows) {
    if (rows < 1 || rows > g.height) throw fields.wrong("anchor_rows", "is out of range");
  }
  if (metadata.contains(kMeasured)) {
    if (fields.text(kMeasured) != "levels") throw fields.wrong(kMeasured, "is not known to this version");
    header.measured = Measured::kLevels;
    header.recorded_steps = fields.list<int>("recorded_steps");
    if (!sound_recorded_steps(header)) throw fields.wrong("recorded_steps", "is not a rising list of steps");
    if (fields.text("code_levels") != joined(kCodeLevels)) throw fields.wrong("code_levels", "is not this version's");
  }
  return header;
}

// Long lists (a run's noise levels) by their number, beginning and end: both values have to fit into one message.
std::string shortened(const std::string& value) {
  if (value.size() <= 60 || value.find(',') == std::string::npos) return value;
  const auto count = 1 + std::count(value.begin(), value.end(), ',');
  const std::string second = value.substr(0, value.find(',', value.find(',') + 1));
  return std::to_string(count) + " values, " + second + ",…" + value.substr(value.rfind(','));
}

void require_same(const Metadata& expected, const Metadata& found, const std::string& path,
                  const std::string& ours_name = "this calibration", const std::string& advice = "") {
  static const std::string kAbsent = "(absent)";
  const auto refuse = [&](const std::string& name, const std::string& theirs, const std::string& ours) {
    return Error(ErrorKind::kMismatch,
                 path + " was measured with " + name + " = " + shortened(theirs) + ", " + ours_name + " has " +
                     shortened(ours) + "; " +
                     (advice.empty() ? "give another profile folder, or delete this one" : advice));
  };
  const auto measured = [](const Metadata& metadata) {
    const auto at = metadata.find(kMeasured);
    return at == metadata.end() ? std::string("maps") : at->second;
  };
  if (measured(expected) != measured(found)) throw refuse(kMeasured, measured(found), measured(expected));
  for (const auto& [name, value] : expected) {
    const auto other = found.find(name);
    if (other == found.end()) throw refuse(name, kAbsent, value);
    if (other->second != value) throw refuse(name, other->second, value);
  }
  for (const auto& [name, value] : found) {
    if (name.starts_with(kSettingPrefix) && !expected.contains(name)) throw refuse(name, value, kAbsent);
  }
}

struct Part {
  std::string name;
  Tensor PromptProfile::*field;
  DType dtype;
  std::vector<int64_t> shape;
};

// What a prompt's profile consists of (profile.h says what the axes are).
std::vector<Part> parts_of(const ProfileHeader& header) {
  const AttentionGeometry& g = header.geometry;
  const int64_t s = header.num_steps(), l = header.num_layers, h = g.heads, r = g.num_query_blocks(),
                c = g.num_key_blocks();
  const auto levels = static_cast<int64_t>(kEnergyLevels.size()),
             anchors = static_cast<int64_t>(header.anchor_rows.size());
  if (header.measured == Measured::kLevels) {
    const auto n = static_cast<int64_t>(header.num_recorded_steps());
    return {{"levels", &PromptProfile::levels, DType::kU8, {n, l, h, r, packed_row_bytes(static_cast<int>(c))}},
            {"site_checksums", &PromptProfile::site_checksums, DType::kU8, {n, l, int64_t{kChecksumDigits}}}};
  }
  std::vector<Part> parts{{"energy", &PromptProfile::energy, DType::kF16, {s, l, h, r, c}}};
  if (!header.output_errors) return parts;
  parts.push_back({"harm", &PromptProfile::harm, DType::kF16, {2, s, l, h, r, c}});
  parts.push_back({"harm_scale", &PromptProfile::harm_scale, DType::kF32, {2, s, l, h}});
  parts.push_back({"level_error", &PromptProfile::level_error, DType::kF32, {s, l, h, 2, 2, levels}});
  if (anchors == 0) return parts;
  parts.push_back({"copy_error", &PromptProfile::copy_error, DType::kF32, {s, l, h, anchors}});
  parts.push_back({"similarity", &PromptProfile::similarity, DType::kF32, {s, l, h, anchors}});
  return parts;
}

std::string checksum_of(const std::map<std::string, Tensor>& tensors) {
  Hasher hasher;
  for (const auto& [name, tensor] : tensors) {
    if (name == "levels") continue;  // checked site by site (verify_site)
    hasher.update(name);
    hasher.update(tensor.raw(), tensor.size_bytes());
  }
  return hasher.hex();
}

// Everything in a profile is a finite number, and all but similarities are at least 0.
bool all_valid(const std::string& name, const Tensor& tensor) {
  if (tensor.dtype() == DType::kU8) return true;
  if (tensor.dtype() == DType::kF16) {
    const auto* values = tensor.data<uint16_t>();
    return std::none_of(values, values + tensor.size(),
                        [](uint16_t bits) { return bits >= 0x7c00u; });  // also negative ones
  }
  return std::all_of(tensor.f32(), tensor.f32() + tensor.size(),
                     [&](float value) { return std::isfinite(value) && (value >= 0 || name == "similarity"); });
}

PromptProfile read_prompt(const Safetensors& file, const ProfileHeader& header, int index) {
  const Fields fields(file.metadata(), file.path());
  if (fields.integer("prompt") != index) throw fields.wrong("prompt", "does not fit the file's name");
  PromptProfile prompt;
  prompt.prompt = index;
  prompt.path = file.path();
  prompt.own_ranking = fields.text("own_ranking") == "1";
  if (fields.text("version") != "1") {
    prompt.ranked_from = fields.integer("ranked_from");
    prompt.attention_seconds = fields.real("attention_seconds");
    prompt.run_seconds = fields.real("run_seconds");
  }
  std::map<std::string, Tensor> tensors;
  for (const Part& part : parts_of(header)) {
    const Tensor tensor = file.get(part.name, part.shape);
    if (tensor.dtype() != part.dtype) throw fields.wrong(part.name, "has the wrong type");
    tensors[part.name] = tensor;
    prompt.*part.field = tensor;
  }
  if (checksum_of(tensors) != fields.text("checksum"))
    throw fields.wrong("checksum", "does not fit the content: the file was altered");
  for (const auto& [name, tensor] : tensors) {
    if (!all_valid(name, tensor)) throw fields.wrong(name, "holds a value that cannot be");
  }
  return prompt;
}

Safetensors open_profile(const std::string& path) {
  Safetensors file = Safetensors::open(path);
  const auto format = file.metadata().find("format");
  if (format == file.metadata().end() || format->second != kFormat) {
    throw Error(ErrorKind::kFormat, path + " is not a calibration profile; give another profile folder");
  }
  const std::string version = Fields(file.metadata(), path).text("version");
  if (version != kVersion && version != "1") {
    throw Error(ErrorKind::kFormat, path + " has profile version " + version + ", this program reads 1 and " +
                                        std::string(kVersion) + "; calibrate again into another profile folder");
  }
  return file;
}

}  // namespace

std::string prompt_file(const std::string& folder, int prompt) {
  char name[32];
  std::snprintf(name, sizeof name, "prompt_%04d.safetensors", prompt);
  return (std::filesystem::path(folder) / name).string();
}

void validate(const ProfileHeader& header) {
  header.geometry.validate();
  const auto require = [](bool condition, const std::string& what) {
    if (!condition) throw Error(ErrorKind::kUsage, "calibration: " + what);
  };
  require(header.num_layers >= 1, "the model must have at least one layer");
  require(!header.sigmas.empty(), "the run must have at least one step");
  require(header.provenance.num_prompts >= 1, "give at least one prompt");
  if (header.measured == Measured::kLevels) {
    require(sound_recorded_steps(header), "the recorded steps must be a rising list of the run's steps");
    require(!header.output_errors, "level codes come without output errors");
  }
  require(header.samples_per_block >= 1,
          "the samples per block must be at least 1, not " + number(header.samples_per_block));
  for (const int rows : header.anchor_rows) {
    require(rows >= 1 && rows <= header.geometry.height, "anchor rows per frame must be between 1 and the " +
                                                             number(header.geometry.height) + " rows of a frame, not " +
                                                             number(rows));
  }
}

PromptProfile PromptProfile::allocate(const ProfileHeader& header, int prompt) {
  PromptProfile profile;
  profile.prompt = prompt;
  for (const Part& part : parts_of(header)) {
    profile.*part.field =
        part.dtype == DType::kU8 ? Tensor(part.dtype, part.shape) : Tensor::zeros(part.dtype, part.shape);
  }
  return profile;
}

void save_prompt(const std::string& folder, const ProfileHeader& header, const PromptProfile& prompt) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) {
    throw Error(ErrorKind::kIo,
                "cannot create the profile folder " + folder + ": " + error.message() + "; choose another place");
  }
  std::map<std::string, Tensor> tensors;
  for (const Part& part : parts_of(header)) tensors[part.name] = prompt.*part.field;
  Metadata metadata = to_metadata(header);
  metadata["format"] = kFormat;
  metadata["version"] = kVersion;
  metadata["tool_version"] = header.provenance.tool_version;
  metadata["prompt"] = number(prompt.prompt);
  metadata["own_ranking"] = prompt.own_ranking ? "1" : "0";
  metadata["ranked_from"] = number(prompt.ranked_from);
  metadata["attention_seconds"] = number(prompt.attention_seconds);
  metadata["run_seconds"] = number(prompt.run_seconds);
  metadata["checksum"] = checksum_of(tensors);
  write_safetensors(prompt_file(folder, prompt.prompt), tensors, metadata);
}

std::optional<PromptProfile> load_prompt(const std::string& folder, const ProfileHeader& header, int prompt) {
  const std::string path = prompt_file(folder, prompt);
  if (!std::filesystem::exists(path)) return std::nullopt;
  const Safetensors file = open_profile(path);
  require_same(to_metadata(header), file.metadata(), path);
  return read_prompt(file, header, prompt);
}

Profile load_profile(const std::string& folder) {
  Profile profile;
  for (int prompt = 0;; ++prompt) {
    const std::string path = prompt_file(folder, prompt);
    if (!std::filesystem::exists(path)) break;
    const Safetensors file = open_profile(path);
    if (prompt == 0) {
      profile.header = from_metadata(file.metadata(), path);
    } else {
      require_same(to_metadata(profile.header), file.metadata(), path);
    }
    profile.prompts.push_back(read_prompt(file, profile.header, prompt));
  }
  if (profile.prompts.empty()) {
    throw Error(ErrorKind::kNotFound, "there is no calibration profile in " + folder + "; calibrate first");
  }
  return profile;
}

ProfileHeader load_header(const std::string& path) {
  return from_metadata(open_profile(path).metadata(), path);
}

void require_mergeable(const std::string& path, const std::string& other_path) {
  const Safetensors file = open_profile(path), other = open_profile(other_path);
  require_same(to_metadata(from_metadata(file.metadata(), path)), other.metadata(), other_path, path,
               "only prompts of one calibration can be merged");
}

int64_t site_level_bytes(const ProfileHeader& header) {
  const AttentionGeometry& g = header.geometry;
  return int64_t{g.heads} * g.num_query_blocks() * packed_row_bytes(g.num_key_blocks());
}

const uint8_t* site_levels(const ProfileHeader& header, const PromptProfile& prompt, int recorded, int layer) {
  CALIBATT_ASSERT(recorded >= 0 && recorded < header.num_recorded_steps() && layer >= 0 && layer < header.num_layers);
  return prompt.levels.data<uint8_t>() + (int64_t{recorded} * header.num_layers + layer) * site_level_bytes(header);
}

namespace {
std::string site_checksum(const ProfileHeader& header, const PromptProfile& prompt, int recorded, int layer) {
  Hasher hasher;
  hasher.update(site_levels(header, prompt, recorded, layer), static_cast<size_t>(site_level_bytes(header)));
  return hasher.hex();
}
size_t site_checksum_offset(const ProfileHeader& header, int recorded, int layer) {
  return (static_cast<size_t>(recorded) * header.num_layers + layer) * kChecksumDigits;
}
}  // namespace

void seal_site(const ProfileHeader& header, PromptProfile& prompt, int recorded, int layer) {
  const std::string digits = site_checksum(header, prompt, recorded, layer);
  CALIBATT_ASSERT(digits.size() == kChecksumDigits);
  std::copy(digits.begin(), digits.end(),
            prompt.site_checksums.data<char>() + site_checksum_offset(header, recorded, layer));
}

void verify_site(const ProfileHeader& header, const PromptProfile& prompt, int recorded, int layer) {
  const std::string_view expected(prompt.site_checksums.data<char>() + site_checksum_offset(header, recorded, layer),
                                  kChecksumDigits);
  if (site_checksum(header, prompt, recorded, layer) == expected) return;
  throw Error(ErrorKind::kFormat,
              prompt.path + ": the level codes of recorded step " + number(recorded) + ", layer " + number(layer) +
                  " do not fit their checksum: the file was altered; delete it and calibrate again");
}

std::optional<double> measured_attention_share(const Profile& profile) {
  double attention = 0, run = 0;
  for (const PromptProfile& prompt : profile.prompts) {
    if (prompt.run_seconds <= 0) continue;
    attention += prompt.attention_seconds;
    run += prompt.run_seconds;
  }
  if (run <= 0) return std::nullopt;
  return std::clamp(attention / run, 0.0, 1.0);
}

std::vector<float> energy_of(const PromptProfile& prompt, size_t site_head, int num_blocks) {
  const auto* stored = prompt.energy.data<uint16_t>() + site_head * num_blocks;
  std::vector<float> energy(num_blocks);
  for (int i = 0; i < num_blocks; ++i) energy[i] = half_to_float(stored[i]);
  return energy;
}

std::vector<float> mean_energy(const std::vector<PromptProfile>& prompts, size_t site_head, int num_blocks) {
  std::vector<float> mean(num_blocks, 0.0f);
  for (const PromptProfile& prompt : prompts) {
    const auto* stored = prompt.energy.data<uint16_t>() + site_head * num_blocks;
    for (int i = 0; i < num_blocks; ++i) mean[i] += half_to_float(stored[i]) / static_cast<float>(prompts.size());
  }
  return mean;
}

std::vector<float> mean_harm(const std::vector<PromptProfile>& prompts, Skipped skipped, size_t site_head,
                             int num_blocks) {
  std::vector<float> mean(num_blocks, 0.0f);
  for (const PromptProfile& prompt : prompts) {
    const auto heads_per_step = static_cast<size_t>(prompt.energy.dim(1) * prompt.energy.dim(2));
    const auto num_heads = static_cast<size_t>(prompt.harm_scale.size() / 2);
    for_each_neighbouring_step(site_head, heads_per_step, num_heads, [&](size_t neighbour, float share) {
      const size_t at = static_cast<size_t>(skipped) * num_heads + neighbour;
      const auto* stored = prompt.harm.data<uint16_t>() + at * num_blocks;
      const float scale = prompt.harm_scale.f32()[at];
      const float weight = share * scale * scale / static_cast<float>(prompts.size());
      for (int i = 0; i < num_blocks; ++i) {
        const float root = half_to_float(stored[i]);
        mean[i] += weight * root * root;
      }
    });
  }
  return mean;
}

}  // namespace calibatt
