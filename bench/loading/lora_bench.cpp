// Merging a LoRA of Wan 14B's size: blocks of random bf16 weights and a LoRA of their ten matrices are written to a
// folder, then each merged matrix is asked for once, as loading does, beside reading the same matrices without a LoRA.
// The first merged matrix is checked against its definition. Prints JSON: seconds for all blocks, extrapolated from
// those made.
//   calibatt_lora_bench [--dim 5120] [--ffn 13824] [--blocks 2] [--of 40] [--rank 64] [--runs 3] [--folder DIR]
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "base/thread_pool.h"
#include "io/safetensors.h"
#include "models/lora.h"
#include "models/original_names.h"
#include "models/weights.h"

namespace calibatt {
namespace {

namespace fs = std::filesystem;

struct Sizes {
  int64_t dim = 5120, ffn = 13824, rank = 64;
  int blocks = 2, of = 40, runs = 3;
};

void write_files(const Sizes& sizes, const fs::path& folder) {
  const auto random = [](int64_t rows, int64_t columns, float scale) {
    Tensor values = TorchGenerator(1).randn({rows, columns});
    for (int64_t i = 0; i < values.size(); ++i) values.f32()[i] *= scale;
    return converted(values, DType::kBF16);
  };
  const auto scaled = [](int64_t in) { return 1 / std::sqrt(static_cast<float>(in)); };
  const Tensor square = random(sizes.dim, sizes.dim, scaled(sizes.dim)),
               wide = random(sizes.ffn, sizes.dim, scaled(sizes.dim)),
               narrow = random(sizes.dim, sizes.ffn, scaled(sizes.ffn));
  std::map<std::string, Tensor> weights, lora;
  for (int block = 0; block < sizes.blocks; ++block) {
    for (const char* part : {"self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.k",
                             "cross_attn.v", "cross_attn.o", "ffn.0", "ffn.2"}) {
      const std::string name = "blocks." + std::to_string(block) + "." + part;
      const Tensor& weight = name.ends_with("ffn.0") ? wide : name.ends_with("ffn.2") ? narrow : square;
      weights[diffusers_transformer_name(name + ".weight")] = weight;
      lora[name + ".lora_down.weight"] = random(sizes.rank, weight.dim(1), scaled(weight.dim(1)));
      lora[name + ".lora_up.weight"] = random(weight.dim(0), sizes.rank, scaled(sizes.rank));
    }
  }
  write_safetensors(folder / "diffusion_pytorch_model.safetensors", weights);
  write_safetensors(folder / "lora.safetensors", lora);
}

double seconds_of(const MappedTensors& tensors, const Sizes& sizes) {
  std::vector<double> runs;
  for (int run = 0; run < sizes.runs; ++run) {
    const auto start = std::chrono::steady_clock::now();
    const Weights weights(tensors);
    for (const auto& [name, entry] : tensors.entries()) weights.get(name, entry.shape);
    runs.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(runs.begin(), runs.end());
  return runs[runs.size() / 2] * sizes.of / sizes.blocks;
}

/// The largest difference of some elements from base + up·down, in units of bf16's rounding.
double check(const MappedTensors& base, const MappedTensors& merged, const Safetensors& lora, const Sizes& sizes) {
  const std::string name = "blocks.0.attn1.to_q.weight";
  const auto wide = [](const Tensor& tensor) { return converted(tensor, DType::kF32); };
  const Tensor stored = wide(base.get(name)), found = wide(merged.get(name)),
               down = wide(lora.get("blocks.0.self_attn.q.lora_down.weight")),
               up = wide(lora.get("blocks.0.self_attn.q.lora_up.weight"));
  double worst = 0;
  for (int64_t i = 0; i < stored.size(); i += 997) {
    double expected = stored.f32()[i];
    for (int64_t r = 0; r < sizes.rank; ++r) {
      expected += double{up.f32()[i / sizes.dim * sizes.rank + r]} * down.f32()[r * sizes.dim + i % sizes.dim];
    }
    worst = std::max(worst, std::abs(found.f32()[i] - expected) / (std::abs(expected) / 256 + 1e-6));
  }
  return worst;
}

nlohmann::json measure(const Sizes& sizes, const fs::path& folder) {
  fs::create_directories(folder);
  write_files(sizes, folder);
  const Safetensors base = Safetensors::open_folder(folder), lora = Safetensors::open(folder / "lora.safetensors");
  const auto start = std::chrono::steady_clock::now();
  WeightOverlay overlay;
  add_lora({lora.path()}, base, overlay);
  const double opened = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const MappedTensors merged = overlay.over(base);
  const double error = check(base, merged, lora, sizes);
  if (error > 1) throw Error(ErrorKind::kNumeric, "the merged weights are not base + up · down");
  const double plain = seconds_of(base, sizes), with = seconds_of(merged, sizes);
  fs::remove_all(folder);
  return {{"dim", sizes.dim},
          {"ffn", sizes.ffn},
          {"rank", sizes.rank},
          {"blocks_measured", sizes.blocks},
          {"blocks", sizes.of},
          {"threads", num_threads()},
          {"seconds_reading_alone", plain},
          {"seconds_reading_and_merging", with},
          {"seconds_opening_the_lora", opened * sizes.of / sizes.blocks},
          {"worst_error_in_bf16_roundings", error}};
}

}  // namespace
}  // namespace calibatt

int main(int argc, char** argv) {
  using namespace calibatt;
  CLI::App app("How long merging a LoRA takes.");
  Sizes sizes;
  std::string folder = fs::temp_directory_path() / ("calibatt_lora_bench_" + std::to_string(getpid()));
  app.add_option("--dim", sizes.dim)->check(CLI::PositiveNumber);
  app.add_option("--ffn", sizes.ffn)->check(CLI::PositiveNumber);
  app.add_option("--rank", sizes.rank)->check(CLI::PositiveNumber);
  app.add_option("--blocks", sizes.blocks, "Made and measured")->check(CLI::PositiveNumber);
  app.add_option("--of", sizes.of, "Of the model")->check(CLI::PositiveNumber);
  app.add_option("--runs", sizes.runs)->check(CLI::PositiveNumber);
  app.add_option("--folder", folder, "Where to write the files; removed afterwards");
  CLI11_PARSE(app, argc, argv);
  try {
    std::printf("%s\n", measure(sizes, folder).dump(2).c_str());
  } catch (const Error& error) {
    fs::remove_all(folder);
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
