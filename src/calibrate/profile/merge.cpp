// Joins what several processes measured into one profile folder.
#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <optional>
#include <string_view>
#include <system_error>

#include "base/error.h"
#include "calibatt/calibrate.h"
#include "calibatt/counted.h"
#include "calibrate/profile/profile.h"
#include "calibrate/profile/step_growth.h"
#include "io/atomic_file.h"
#include "io/input_file.h"
#include "io/mapped_file.h"

namespace calibatt {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "prompt_", kSuffix = ".safetensors";

/// The prompts' files of one folder, by prompt.
std::map<int, std::string> prompts_in(const std::string& folder) {
  std::error_code error;
  std::map<int, std::string> prompts;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix) || name.size() <= kPrefix.size() + kSuffix.size())
      continue;
    const std::string_view digits =
        std::string_view(name).substr(kPrefix.size(), name.size() - kPrefix.size() - kSuffix.size());
    int prompt = 0;
    const auto [rest, failed] = std::from_chars(digits.data(), digits.data() + digits.size(), prompt);
    if (failed == std::errc() && rest != digits.data() + digits.size() && *rest == '_') {
      throw Error(ErrorKind::kUsage, "merge: " + folder + " holds prompts of more than one list (" + name +
                                         "); calibrate the list that you want with --prompt-range into a new folder");
    }
    if (failed != std::errc() || rest != digits.data() + digits.size() || prompt < 0) continue;
    if (prompt_file(folder, prompt) == entry->path().string()) prompts[prompt] = entry->path().string();
  }
  if (error) {
    throw Error(ErrorKind::kNotFound, folder + ": cannot be read as a profile folder: " + error.message() +
                                          "; give one that calibatt calibrate --profile made");
  }
  return prompts;
}

/// The name of one; empty where there is none, or no such folder.
std::string any_file_in(const std::string& folder) {
  std::error_code error;
  const fs::directory_iterator entry(folder, error);
  return error || entry == fs::directory_iterator() ? "" : entry->path().filename().string();
}

std::string listed(const std::vector<int>& prompts) {
  std::string text;
  for (size_t i = 0; i < prompts.size() && i < 20; ++i) text += (i > 0 ? ", " : "") + std::to_string(prompts[i]);
  return text + (prompts.size() > 20 ? ", …" : "");
}

// A hard link where the file system has them: no second copy of gigabytes. Either appears whole or not at all.
bool link_or_copy(const std::string& from, const std::string& to) {
  std::error_code error;
  fs::create_hard_link(from, to, error);
  if (!error) return true;
  const auto source = MappedFile::open(from);
  AtomicFile file(to);
  file.write(source->bytes().data(), source->size());
  file.commit();
  return false;
}

/// Whoever looks after one folder, or deletes it, would not think of the other.
void require_outside(const std::string& output, const std::vector<std::string>& folders) {
  const auto whole = [](const std::string& path) {
    std::error_code error;
    const fs::path absolute = fs::absolute(fs::path(path) / "", error).parent_path();
    const fs::path canonical = fs::weakly_canonical(absolute, error);
    return error ? absolute : canonical;
  };
  const fs::path inner = whole(output);
  for (const std::string& folder : folders) {
    const fs::path outer = whole(folder);
    if (std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first != outer.end()) continue;
    throw Error(ErrorKind::kUsage, "merge: " + output + " is in " + folder +
                                       ", one of the folders to merge; give a folder outside of them with -o");
  }
}

/// How errors of steps grow was measured once for a run of this kind. The folder that knows most says it: of several
/// the one that measured at the steps of today, and what the 8 bits of today do; of equal ones the first. What it does
/// not know of 8 bits it takes from another.
std::optional<StepGrowth> growth_of(const std::vector<std::string>& folders, const ProfileHeader& header) {
  const auto knowledge = [&](const StepGrowth& growth) {
    const bool today = std::ranges::equal(growth.factors, steps_of_growth(header), {}, &StepGrowth::Factor::step);
    return std::pair(today, growth.knows({.layers = true}, growth.layers) + growth.knows({.attention = true}, ""));
  };
  std::optional<StepGrowth> best;
  std::vector<StepGrowth> all;
  for (const std::string& folder : folders) {
    const std::optional<StepGrowth> growth = read_growth(folder, header);
    if (!growth) continue;
    all.push_back(*growth);
    if (!best || knowledge(*growth) > knowledge(*best)) best = growth;
  }
  for (const StepGrowth& other : all) best->take_eight_bits(other);
  return best;
}

/// All of it, or nothing: a part of a profile would be taken for one that is to be gone on with.
MergeSummary write_merged(const std::map<int, std::string>& files, const ProfileHeader& header,
                          const std::optional<StepGrowth>& growth, const std::string& output) {
  std::error_code error;
  fs::create_directories(output, error);
  if (error) throw Error(ErrorKind::kIo, "merge: cannot create " + output + ": " + error.message());
  MergeSummary summary;
  try {
    for (const auto& [prompt, path] : files) {
      summary.linked += link_or_copy(path, prompt_file(output, prompt));
      ++summary.prompts;
    }
    if (growth) save_growth(output, header, *growth);
  } catch (...) {
    for (const auto& [prompt, path] : files) fs::remove(prompt_file(output, prompt), error);
    fs::remove(output, error);
    throw;
  }
  return summary;
}

}  // namespace

MergeSummary merge_profiles(const std::vector<std::string>& folders, const std::string& output) {
  if (folders.empty()) throw Error(ErrorKind::kUsage, "merge: give the profile folders to merge");
  if (is_folder(output) && !prompts_in(output).empty()) {
    throw Error(ErrorKind::kUsage, "merge: " + output + " already holds prompts; give a new folder with -o");
  }
  if (const std::string other = any_file_in(output); !other.empty()) {
    throw Error(ErrorKind::kUsage, "merge: " + output + " holds other files (" + other +
                                       "), among which a profile would be lost; give a new folder with -o");
  }
  std::map<int, std::string> files;
  std::string first_file;
  ProfileHeader header;
  for (const std::string& folder : folders) {
    const std::map<int, std::string> found = prompts_in(folder);
    if (found.empty()) {
      throw Error(ErrorKind::kNotFound, "there is no calibration profile in " + folder + "; calibrate first");
    }
    for (const auto& [prompt, path] : found) {
      if (first_file.empty()) {
        first_file = path;
        header = load_header(path);
      } else {
        require_mergeable(first_file, path);
      }
      const auto [at, fresh] = files.emplace(prompt, path);
      if (!fresh) {
        throw Error(ErrorKind::kUsage, "merge: prompt " + std::to_string(prompt) + " is in two folders, " + at->second +
                                           " and " + path + "; leave one of them out");
      }
    }
  }
  require_outside(output, folders);
  std::vector<int> missing;
  for (int prompt = 0; prompt < header.provenance.num_prompts; ++prompt) {
    if (!files.contains(prompt)) missing.push_back(prompt);
  }
  if (!missing.empty()) {
    throw Error(ErrorKind::kUsage, "merge: of the calibration's " + counted(header.provenance.num_prompts, "prompts") +
                                       " these are missing: " + listed(missing) +
                                       "; calibrate them with --prompt-range and add their folder");
  }
  if (files.rbegin()->first >= header.provenance.num_prompts) {
    throw Error(ErrorKind::kFormat, files.rbegin()->second + ": the calibration has only " +
                                        counted(header.provenance.num_prompts, "prompts") + "; remove the file");
  }
  const std::optional<StepGrowth> growth = growth_of(folders, header);  // looked at before anything is written
  return write_merged(files, header, growth, output);
}

}  // namespace calibatt
