#include "calibrate/profile/profile.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <string_view>

#include "base/error.h"
#include "calibrate/profile/harm_code.h"
#include "calibrate/profile/level_code.h"
#include "calibrate/profile/profile_header.h"
#include "io/fingerprint.h"
#include "io/input_file.h"
#include "io/safetensors.h"
#include "io/system_error.h"

namespace calibatt {
namespace {

constexpr std::string_view kFormat = "calibatt-profile";
constexpr std::string_view kVersion = "3";  // 1: without times, ranked_from and levels; 2: prompts have no identities
constexpr size_t kChecksumDigits = 32;

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
    std::vector<Part> parts{
        {"levels", &PromptProfile::levels, DType::kU8, {n, l, h, r, packed_row_bytes(static_cast<int>(c))}},
        {"site_checksums", &PromptProfile::site_checksums, DType::kU8, {n, l, int64_t{kChecksumDigits}}}};
    if (header.code_ranking == Ranking::kHarm) {
      parts.push_back({"rung_harm", &PromptProfile::rung_harm, DType::kF32, {n, l, h, kNumHarmRungs}});
      parts.push_back({"level_error", &PromptProfile::level_error, DType::kF32, {n, l, h, levels}});
      if (anchors > 0) {
        parts.push_back({"copy_error", &PromptProfile::copy_error, DType::kF32, {n, l, h, anchors}});
      }
    } else if (header.output_errors) {
      parts.push_back({"level_error", &PromptProfile::level_error, DType::kF32, {n, l, h, 2, kNumCodeLevels}});
    }
    return parts;
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

// What of a run's steps was seen, beside the parts: profiles of front ends that do not see them, and those from before,
// lack it. With a checksum of its own, so that programs that do not know it read the rest.
constexpr std::pair<const char*, Tensor PromptProfile::*> kStepTables[] = {
    {"step_products", &PromptProfile::step_products}, {"solver_weights", &PromptProfile::solver_weights}};
constexpr const char* kStepChecksum = "step_checksum";

std::string step_checksum(const PromptProfile& prompt) {
  Hasher hasher;
  for (const auto& [name, field] : kStepTables) {
    hasher.update(name);
    hasher.update((prompt.*field).raw(), (prompt.*field).size_bytes());
  }
  return hasher.hex();
}

using Poll = std::function<void()>;

/// Maps are gigabytes, perhaps from a disk: pieces of them, with polls between.
bool all_pieces(int64_t size, const Poll& poll, const std::function<bool(int64_t begin, int64_t end)>& holds) {
  constexpr int64_t kPiece = 1 << 25;
  bool all = true;
  for (int64_t begin = 0; begin < size && all; begin += kPiece) {
    if (poll) poll();
    all = holds(begin, std::min(begin + kPiece, size));
  }
  return all;
}

std::string checksum_of(const std::map<std::string, Tensor>& tensors, const Poll& poll = {}) {
  Hasher hasher;
  for (const auto& [name, tensor] : tensors) {
    if (name == "levels") continue;  // checked site by site (verify_site)
    hasher.update(name);
    const auto* bytes = static_cast<const char*>(tensor.raw());
    all_pieces(static_cast<int64_t>(tensor.size_bytes()), poll, [&](int64_t begin, int64_t end) {
      hasher.update(bytes + begin, static_cast<size_t>(end - begin));
      return true;
    });
  }
  return hasher.hex();
}

// Everything in a profile is a finite number, and all but similarities are at least 0.
bool all_valid(const std::string& name, const Tensor& tensor, const Poll& poll) {
  if (tensor.dtype() == DType::kU8) return true;
  if (tensor.dtype() == DType::kF16) {
    const auto* values = tensor.data<uint16_t>();
    const auto is_no_share = [](uint16_t bits) { return bits >= 0x7c00u; };  // negative ones are not, either
    return all_pieces(tensor.size(), poll, [&](int64_t begin, int64_t end) {
      return std::none_of(values + begin, values + end, is_no_share);
    });
  }
  return std::all_of(tensor.f32(), tensor.f32() + tensor.size(),
                     [&](float value) { return std::isfinite(value) && (value >= 0 || name == "similarity"); });
}

void read_step_tables(const Safetensors& file, const ProfileFields& fields, const ProfileHeader& header,
                      PromptProfile& prompt) {
  if (!file.metadata().contains(kStepChecksum)) return;
  const int64_t size = int64_t{header.num_steps()} + 1;
  for (const auto& [name, field] : kStepTables) {
    const Tensor table = read_or_advise(kMeasureAnew, [&, name = name] { return file.get(name, {size, size}); });
    if (table.dtype() != DType::kF64) throw fields.wrong(name, "has the wrong type");
    const auto* values = table.data<double>();
    if (!std::all_of(values, values + table.size(), [](double value) { return std::isfinite(value); })) {
      throw fields.wrong(name, "holds a value that cannot be");
    }
    prompt.*field = table;
  }
  if (step_checksum(prompt) != fields.text(kStepChecksum)) {
    throw fields.wrong(kStepChecksum, "does not fit the content: the file was altered");
  }
}

PromptProfile read_prompt(const Safetensors& file, const ProfileHeader& header, int index, const Poll& poll = {}) {
  const ProfileFields fields(file.metadata(), file.path());
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
    const Tensor tensor = read_or_advise(kMeasureAnew, [&] { return file.get(part.name, part.shape); });
    if (tensor.dtype() != part.dtype) throw fields.wrong(part.name, "has the wrong type");
    tensors[part.name] = tensor;
    prompt.*part.field = tensor;
  }
  if (checksum_of(tensors, poll) != fields.text("checksum"))
    throw fields.wrong("checksum", "does not fit the content: the file was altered");
  for (const auto& [name, tensor] : tensors) {
    if (!all_valid(name, tensor, poll)) throw fields.wrong(name, "holds a value that cannot be");
  }
  read_step_tables(file, fields, header, prompt);
  return prompt;
}

Safetensors open_profile(const std::string& path) {
  Safetensors file = read_or_advise(kMeasureAnew, [&] { return Safetensors::open(path); });
  const auto format = file.metadata().find("format");
  if (format == file.metadata().end() || format->second != kFormat) {
    throw Error(ErrorKind::kFormat,
                path + " is not a calibration profile; delete that file, or give another profile folder");
  }
  const std::string version = ProfileFields(file.metadata(), path).text("version");
  if (version != kVersion && version != "2" && version != "1") {
    throw Error(ErrorKind::kFormat, path + " has profile version " + version + ", this program reads 1 to " +
                                        std::string(kVersion) + "; calibrate again into another profile folder");
  }
  return file;
}

// What is known of a prompt where only all prompts together have a hash: its place among them and the run's seed.
std::string old_identity(const std::string& prompts_hash, const std::string& prompt, const std::string& seed) {
  return prompts_hash + ":" + prompt + ":" + seed;
}

std::string old_identity(const ProfileHeader& header, int prompt) {
  const auto seed = header.provenance.settings.find("seed");
  return old_identity(header.provenance.prompts_hash, std::to_string(prompt),
                      seed == header.provenance.settings.end() ? "" : seed->second);
}

std::string identity_of(const ProfileHeader& header, int prompt) {
  const auto at = static_cast<size_t>(prompt);
  return at < header.prompt_identities.size() ? header.prompt_identities[at] : old_identity(header, prompt);
}

bool is_of_prompt(const ProfileMetadata& metadata, const std::string& path, const ProfileHeader& header, int prompt) {
  const auto own = metadata.find("prompt_identity"), seed = metadata.find("setting.seed");
  if (own != metadata.end()) return own->second == identity_of(header, prompt);
  const ProfileFields fields(metadata, path);
  return old_identity(fields.text("prompts_hash"), fields.text("prompt"), seed == metadata.end() ? "" : seed->second) ==
         old_identity(header, prompt);
}

// All prompts' files of a folder, in the order of their names.
std::vector<std::string> files_in(const std::string& folder) {
  std::vector<std::string> files;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with("prompt_") && name.ends_with(".safetensors")) files.push_back(entry->path().string());
  }
  // What cannot be looked at must not count as nothing: hours were spent on it.
  if (error && error != std::errc::no_such_file_or_directory) throw_open_error(folder, error.value());
  std::sort(files.begin(), files.end());
  return files;
}

// Measured in the same kind of run, whatever the prompt. Weights are compared in the scheme that the file has.
void require_same_run(const ProfileHeader& header, const ProfileMetadata& found, const std::string& path) {
  ProfileMetadata expected = to_metadata(header);
  for (size_t i = 0; i < header.provenance.transformers.size() && header.fingerprint; ++i) {
    const std::string name = fingerprint_name(static_cast<int>(i));
    const auto theirs = found.find(name);
    if (theirs == found.end() || fingerprint_scheme(theirs->second) == fingerprint_scheme(expected[name])) continue;
    expected[name] = header.fingerprint(static_cast<int>(i), theirs->second);
  }
  require_same(expected, found, path, Comparison::kOneRun);
}

}  // namespace

std::string prompt_file(const std::string& folder, int prompt) {
  char name[32];
  std::snprintf(name, sizeof name, "prompt_%04d.safetensors", prompt);
  return (std::filesystem::path(folder) / name).string();
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

void save_prompt(const std::string& folder, const ProfileHeader& header, const PromptProfile& prompt,
                 const std::function<void()>& poll) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) {
    throw Error(ErrorKind::kIo,
                "cannot create the profile folder " + folder + ": " + error.message() + "; choose another place");
  }
  std::map<std::string, Tensor> tensors;
  for (const Part& part : parts_of(header)) tensors[part.name] = prompt.*part.field;
  ProfileMetadata metadata = to_metadata(header);
  const std::string identity = identity_of(header, prompt.prompt);
  std::string path = prompt_file(folder, prompt.prompt);
  // Hours of another prompt's measurement are not written over.
  if (path_exists(path) && !is_of_prompt(open_profile(path).metadata(), path, header, prompt.prompt))
    path.insert(path.rfind('.'), "_" + hash_hex(identity).substr(0, 16));
  metadata["prompt_identity"] = identity;
  metadata["format"] = kFormat;
  metadata["version"] = kVersion;
  metadata["tool_version"] = header.provenance.tool_version;
  metadata["prompt"] = number_text(prompt.prompt);
  metadata["own_ranking"] = prompt.own_ranking ? "1" : "0";
  metadata["ranked_from"] = number_text(prompt.ranked_from);
  metadata["attention_seconds"] = number_text(prompt.attention_seconds);
  metadata["run_seconds"] = number_text(prompt.run_seconds);
  metadata["checksum"] = checksum_of(tensors, poll);
  if (!prompt.step_products.empty()) {
    for (const auto& [table, field] : kStepTables) tensors[table] = prompt.*field;
    metadata[kStepChecksum] = step_checksum(prompt);
  }
  write_safetensors(path, tensors, metadata, poll);
}

std::optional<PromptProfile> load_prompt(const std::string& folder, const ProfileHeader& header, int prompt,
                                         const std::function<void()>& poll) {
  for (const std::string& path : files_in(folder)) {
    const Safetensors file = open_profile(path);
    require_same_run(header, file.metadata(), path);
    if (is_of_prompt(file.metadata(), path, header, prompt)) return read_prompt(file, header, prompt, poll);
  }
  return std::nullopt;
}

int count_other_prompts(const std::string& folder, const ProfileHeader& header) {
  int others = 0;
  for (const std::string& path : files_in(folder)) {
    const Safetensors file = open_profile(path);
    bool asked_for = false;
    for (int prompt = 0; prompt < header.provenance.num_prompts && !asked_for; ++prompt) {
      asked_for = is_of_prompt(file.metadata(), path, header, prompt);
    }
    others += !asked_for;
  }
  return others;
}

int count_prompts(const std::string& folder) {
  return static_cast<int>(files_in(folder).size());
}

std::string profile_beside(const std::string& folder, const ProfileHeader& header) {
  namespace fs = std::filesystem;
  if (!files_in(folder).empty()) return "";
  const auto is_of_run = [&](const std::string& other) {
    try {
      const std::vector<std::string> files = files_in(other);
      if (files.empty()) return false;
      require_same(to_metadata(header), open_profile(files[0]).metadata(), files[0], Comparison::kOneRun);
      return true;
    } catch (const Error&) {
      return false;  // of another run, or damaged
    }
  };
  const fs::path parent = fs::path(folder).parent_path();
  std::set<std::string> others;
  std::error_code error;
  for (fs::directory_iterator entry(parent.empty() ? "." : parent, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.ends_with(".profile")) others.insert((parent / name).string());
  }
  const auto found = std::ranges::find_if(others, is_of_run);
  return found == others.end() ? "" : *found;
}

Profile load_profile(const std::string& folder) {
  Profile profile;
  for (int prompt = 0;; ++prompt) {
    const std::string path = prompt_file(folder, prompt);
    if (!path_exists(path)) break;
    const Safetensors file = open_profile(path);
    if (prompt == 0) {
      profile.header = from_metadata(file.metadata(), path);
    } else {
      require_same(to_metadata(profile.header), file.metadata(), path, Comparison::kOneRun);
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
  require_same(to_metadata(from_metadata(file.metadata(), path)), other.metadata(), other_path,
               Comparison::kOneCalibration, path, "only prompts of one calibration can be merged");
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
  throw Error(ErrorKind::kFormat, prompt.path + ": the level codes of recorded step " + number_text(recorded) +
                                      ", layer " + number_text(layer) +
                                      " do not fit their checksum: the file was altered; " + std::string(kMeasureAnew));
}

std::vector<double> attention_shares(const Profile& profile) {
  std::vector<double> shares;
  for (const PromptProfile& prompt : profile.prompts) {
    if (prompt.run_seconds > 0) shares.push_back(std::clamp(prompt.attention_seconds / prompt.run_seconds, 0.0, 1.0));
  }
  std::ranges::sort(shares);
  return shares;
}

std::optional<double> measured_attention_share(const Profile& profile) {
  const std::vector<double> shares = attention_shares(profile);
  if (shares.empty()) return std::nullopt;
  return (shares[(shares.size() - 1) / 2] + shares[shares.size() / 2]) / 2;
}

}  // namespace calibatt
