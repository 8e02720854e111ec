// The host's side of loading: a sharded checkpoint of random bf16 (and of F32) tensors as large as those of Wan 14B is
// written to a folder, then read, checked for NaN and copied into a ring of buffers as a GPU's staging memory is, or
// into fresh memory as offloaded blocks are. The pages are in the system's cache: what a fast disk may not exceed.
// Prints JSON: gigabytes of the file per second, median of the runs.
//   calibatt_load_bench [--gigabytes 3] [--runs 5] [--folder DIR]
#include <sys/mman.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/checked_copy.h"
#include "base/error.h"
#include "base/random.h"
#include "base/thread_pool.h"
#include "io/safetensors.h"
#include "models/weights.h"

namespace calibatt {
namespace {

namespace fs = std::filesystem;
constexpr int64_t kRows = 5120, kColumns = 5120;
constexpr size_t kShardTensors = 16, kChunkBytes = size_t{32} << 20, kChunks = 3;

std::vector<std::string> write_checkpoint(const fs::path& folder, DType dtype, double gigabytes) {
  const Tensor values = converted(TorchGenerator(1).randn({kRows, kColumns}), dtype);
  const auto count =
      std::max<size_t>(1, static_cast<size_t>(gigabytes * 1e9 / static_cast<double>(values.size_bytes())));
  std::vector<std::string> names;
  nlohmann::json index;
  for (size_t begin = 0; begin < count; begin += kShardTensors) {
    const std::string file = "part_" + std::to_string(begin) + ".safetensors";
    std::map<std::string, Tensor> shard;
    for (size_t i = begin; i < std::min(count, begin + kShardTensors); ++i) {
      names.push_back("tensor_" + std::to_string(i));
      shard[names.back()] = values;
      index["weight_map"][names.back()] = file;
    }
    write_safetensors(folder / file, shard);
  }
  std::ofstream(folder / "diffusion_pytorch_model.safetensors.index.json") << index;
  return names;
}

double median_rate(int runs, const std::string& folder, const std::vector<std::string>& names,
                   const std::function<void(const StoredTensor&)>& take) {
  std::vector<double> rates;
  for (int run = 0; run < runs; ++run) {
    size_t bytes = 0;
    const auto start = std::chrono::steady_clock::now();
    const Weights weights(Safetensors::open_folder(folder));
    for (const std::string& name : names) {
      const StoredTensor stored = weights.stored(name, {kRows, kColumns});
      take(stored);
      bytes += stored.tensor.size_bytes();
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    rates.push_back(static_cast<double>(bytes) * 1e-9 / seconds);
  }
  std::sort(rates.begin(), rates.end());
  return rates[rates.size() / 2];
}

nlohmann::json measure(DType dtype, double gigabytes, int runs, const fs::path& folder) {
  fs::create_directories(folder);
  const std::vector<std::string> names = write_checkpoint(folder, dtype, gigabytes);
  std::vector<Tensor> ring;
  for (size_t i = 0; i < kChunks; ++i) ring.push_back(Tensor::zeros(DType::kU8, {static_cast<int64_t>(kChunkBytes)}));
  size_t next = 0;
  const double staged = median_rate(runs, folder, names, [&](const StoredTensor& stored) {
    const size_t element = dtype_size(dtype);
    const auto chunk = static_cast<int64_t>(kChunkBytes / element);
    for (int64_t begin = 0; begin < stored.tensor.size(); begin += chunk) {
      const auto* from = static_cast<const char*>(stored.tensor.raw()) + static_cast<size_t>(begin) * element;
      void* const to = ring[next++ % kChunks].raw();
      if (!checked_copy(from, dtype, to, dtype, std::min(chunk, stored.tensor.size() - begin)).finite) {
        accept_values(stored, {.finite = false});
      }
    }
  });
  const double fresh = median_rate(runs, folder, names, [](const StoredTensor& stored) {
    constexpr size_t kBytes = static_cast<size_t>(kRows * kColumns) * sizeof(bfloat16);
    void* const to = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (to == MAP_FAILED) throw Error(ErrorKind::kIo, "no memory; use a smaller --gigabytes");
    static_cast<void>(madvise(to, kBytes, MADV_HUGEPAGE));
    checked_copy(stored.tensor.raw(), stored.tensor.dtype(), to, DType::kBF16, stored.tensor.size());
    munmap(to, kBytes);
  });
  fs::remove_all(folder);
  return {{"dtype", dtype_name(dtype)},
          {"gigabytes_per_second_staged", staged},
          {"gigabytes_per_second_into_fresh_bf16", fresh}};
}

}  // namespace
}  // namespace calibatt

int main(int argc, char** argv) {
  using namespace calibatt;
  CLI::App app("How fast weights are read, checked and copied on the host.");
  double gigabytes = 3;
  int runs = 5;
  std::string folder = fs::temp_directory_path() / ("calibatt_load_bench_" + std::to_string(getpid()));
  app.add_option("--gigabytes", gigabytes)->check(CLI::PositiveNumber);
  app.add_option("--runs", runs)->check(CLI::PositiveNumber);
  app.add_option("--folder", folder, "Where to write the checkpoint; removed afterwards");
  CLI11_PARSE(app, argc, argv);
  try {
    nlohmann::json cases = nlohmann::json::array();
    for (const DType dtype : {DType::kBF16, DType::kF32}) cases.push_back(measure(dtype, gigabytes, runs, folder));
    std::printf("%s\n", nlohmann::json{{"threads", num_threads()}, {"cases", cases}}.dump(2).c_str());
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "calibatt_load_bench: %s\n", error.what());
    return 1;
  }
}
