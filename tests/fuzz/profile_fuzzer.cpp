// libFuzzer: any bytes as a prompt's file of a profile, or as step_growth.json where they begin with "{", are measured
// values from which a plan is compiled, or an Error. Prompts' files also with their checksums made right, which hardly
// any mutant would hit, and step_growth.json without its own.
#include <cstring>

#include "calibrate/compile/compile.h"
#include "fuzz_input.h"
#include "io/safetensors.h"
#include "profile_seed.h"

namespace {

using namespace calibatt;

constexpr std::pair<const char*, Tensor PromptProfile::*> kFields[] = {
    {"energy", &PromptProfile::energy},
    {"harm", &PromptProfile::harm},
    {"harm_scale", &PromptProfile::harm_scale},
    {"level_error", &PromptProfile::level_error},
    {"copy_error", &PromptProfile::copy_error},
    {"similarity", &PromptProfile::similarity},
    {"levels", &PromptProfile::levels},
    {"rung_harm", &PromptProfile::rung_harm},
    {"site_checksums", &PromptProfile::site_checksums},
    {"step_products", &PromptProfile::step_products},
    {"solver_weights", &PromptProfile::solver_weights}};

void compile_all(const Profile& profile) {
  for (const Budget budget : {Budget::kEnergy, Budget::kError}) {
    CompileOptions options;
    options.budget = budget;
    if (profile.header.measured == Measured::kLevels) options.ranking = profile.header.code_ranking;
    if (profile.header.has_harm_codes()) options.skipped = profile.header.code_skipped;
    if (!profile.header.anchor_rows.empty()) options.anchor_rows_per_frame = profile.header.anchor_rows.front();
    options.density = 0.8;
    fuzz::attempt([&] { compile_plan(profile, options); });
    options.repetition = Repetition::kOff;
    fuzz::attempt([&] { compile_plan(profile, options); });
    options.density.reset();
    options.growth = fuzz::seed_growth();
    options.speedup = 1.2;
    fuzz::attempt([&] { compile_plan(profile, options); });
  }
}

/// What is measured may be no larger than a seed's would be by much: the compiler's time would be all.
bool is_small(const ProfileHeader& header) {
  const AttentionGeometry& g = header.geometry;
  const double blocks = 1.0 * g.num_query_blocks() * g.num_key_blocks();
  return blocks * g.heads * header.num_layers * header.num_steps() < 2000 &&
         1.0 * g.heads * header.num_layers * header.num_steps() * header.anchor_rows.size() < 2000;
}

void save_as_measured(const std::string& from, const std::string& folder) {
  const ProfileHeader header = load_header(from);
  if (!is_small(header)) return;
  const Safetensors file = Safetensors::open(from);
  PromptProfile prompt = PromptProfile::allocate(header, 0);
  for (const auto& [name, field] : kFields) {
    if (!file.contains(name)) continue;
    const Tensor found = file.get(name);
    Tensor& to = prompt.*field;
    if (to.empty() || (found.dtype() == to.dtype() && found.shape() == to.shape())) to = found.clone();
  }
  if (prompt.step_products.empty() != prompt.solver_weights.empty()) return;
  for (int step = 0; step < header.num_recorded_steps() && header.measured == Measured::kLevels; ++step) {
    for (int layer = 0; layer < header.num_layers; ++layer) seal_site(header, prompt, step, layer);
  }
  save_prompt(folder, header, prompt);
}

void load_as_growth(const std::string& folder, std::string text) {
  const auto load = [&] {
    fuzz::write_file(folder + "/step_growth.json", reinterpret_cast<const uint8_t*>(text.data()), text.size());
    for (const Measured measured : {Measured::kMaps, Measured::kLevels}) {
      fuzz::attempt([&] { load_growth(folder, fuzz::seed_header(measured)); });
    }
  };
  load();
  // As files were before they had a checksum.
  const std::string key = "\"checksum\"";
  if (const size_t at = text.find(key); at != std::string::npos) {
    text.replace(at, key.size(), "\"checked\"");
    load();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string folder = fuzz::own_folder("-profile"), repaired = fuzz::own_folder("-repaired");
  if (size > 0 && data[0] == '{') {
    load_as_growth(folder, {reinterpret_cast<const char*>(data), size});
    return 0;
  }
  const std::string path = prompt_file(folder, 0), again = prompt_file(repaired, 0);
  fuzz::write_file(path, data, size);
  fuzz::attempt([&] { load_profile(folder); });
  fuzz::attempt([&] {
    std::filesystem::remove(again);
    save_as_measured(path, repaired);
    compile_all(load_profile(repaired));
  });
  return 0;
}
