// Every operation of a Wan transformer block but self-attention, at the shapes of the public models, on the CUDA
// backend: time, share of the memory's copy bandwidth, products per second. Prints JSON. Random inputs; the norms are
// checked against the CPU backend on some rows first (the products are by cuBLASLt and tested at smaller sizes).
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/device.h"
#include "base/error.h"
#include "base/thread_pool.h"

namespace calibatt {
namespace {

using nlohmann::json;

constexpr int kWarmUps = 2, kRuns = 7;

struct Model {
  const char* name;
  int64_t tokens, heads, head_dim, ffn;
  int64_t dim() const { return heads * head_dim; }
};
constexpr Model kModels[] = {
    {"14B, 720p, 81 frames", 75600, 40, 128, 13824},
    {"14B, 480p, 81 frames", 32760, 40, 128, 13824},
    {"1.3B, 480p, 81 frames", 32760, 12, 128, 8960},
};

/// Uniform in [-1, 1), the same in every run.
Tensor noise(DType dtype, std::vector<int64_t> shape, uint64_t seed) {
  Tensor tensor(dtype, std::move(shape));
  parallel_for(tensor.size(), int64_t{1} << 20, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      uint64_t x = (static_cast<uint64_t>(i) + seed * 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
      x = (x ^ (x >> 31)) * 0x94d049bb133111ebu;
      const float value = static_cast<float>(x >> 40) / static_cast<float>(1 << 23) - 1.0f;
      if (dtype == DType::kF32) {
        tensor.f32()[i] = value;
      } else {
        tensor.data<bfloat16>()[i] = bfloat16(value);
      }
    }
  });
  return tensor;
}

Tensor first_rows(const Tensor& tensor, int64_t rows) {
  return {tensor.dtype(), {rows, tensor.dim(-1)}, tensor.storage()};
}

class Bench {
 public:
  explicit Bench(Backend& gpu) : gpu_(gpu) { copy_bandwidth_ = measure_copy(); }
  double copy_bandwidth() const { return copy_bandwidth_; }

  /// Median seconds of `work`; bytes: read and written once; operations: of products.
  json measure(const std::string& name, double bytes, double operations, const std::function<void()>& work) {
    std::vector<double> seconds;
    for (int turn = 0; turn < kWarmUps + kRuns; ++turn) {
      const auto timer = gpu_.make_timer();
      timer->start();
      work();
      timer->stop();
      if (turn >= kWarmUps) seconds.push_back(timer->seconds());
    }
    std::sort(seconds.begin(), seconds.end());
    const double median = seconds[kRuns / 2];
    json result = {
        {"operation", name}, {"ms", median * 1e3}, {"ms_least_most", {seconds.front() * 1e3, seconds.back() * 1e3}}};
    if (bytes > 0) {
      result["GB_per_s"] = bytes / median * 1e-9;
      if (copy_bandwidth_ > 0) result["share_of_copy_bandwidth"] = bytes / median / copy_bandwidth_;
    }
    if (operations > 0) result["TFLOP_per_s"] = operations / median * 1e-12;
    return result;
  }

 private:
  /// Bytes per second, read and written, of the driver's own copy.
  double measure_copy() {
    constexpr int64_t kBytes = int64_t{1} << 30;
    const Tensor from = gpu_.empty(DType::kU8, {kBytes});
    Tensor to = gpu_.empty(DType::kU8, {kBytes});
    const auto result = measure("copy", 0, 0, [&] { gpu_.convert(from, to); });
    return 2.0 * kBytes / (result["ms"].get<double>() * 1e-3);
  }

  Backend& gpu_;
  double copy_bandwidth_ = 0;
};

void check_close(const Tensor& found, const Tensor& expected, const char* what) {
  double difference = 0, norm = 0;
  const Tensor a = converted(found, DType::kF32), b = converted(expected, DType::kF32);
  for (int64_t i = 0; i < b.size(); ++i) {
    difference += std::pow(double{a.f32()[i]} - b.f32()[i], 2);
    norm += std::pow(double{b.f32()[i]}, 2);
  }
  if (!(difference <= std::ldexp(norm, -16))) {  // 2⁻⁸: one rounding to bf16
    throw Error(ErrorKind::kNumeric, std::string(what) + " differs from the CPU's; run the tests");
  }
}

json run_model(Backend& gpu, Bench& bench, const Model& model) {
  const auto cpu = cpu::make_cpu_backend();
  constexpr int64_t kChecked = 64;
  const int64_t tokens = model.tokens, dim = model.dim();
  const double cells = static_cast<double>(tokens) * static_cast<double>(dim);
  const Tensor residual_host = noise(DType::kF32, {tokens, dim}, 1), row_host = noise(DType::kF32, {dim}, 2);
  Tensor residual = gpu.from_host(residual_host);
  const Tensor row = gpu.from_host(row_host);
  Tensor normed = gpu.empty(DType::kBF16, {tokens, dim}), other = gpu.empty(DType::kBF16, {tokens, dim});
  json results = json::array();
  const auto add = [&](const std::string& name, double bytes, double operations, const std::function<void()>& work) {
    results.push_back(bench.measure(name, bytes, operations, work));
  };

  add("norm and modulate, F32 to BF16", 6 * cells, 0,
      [&] { gpu.layer_norm(residual, &row, &row, true, 1e-6f, normed); });
  Tensor expected(DType::kBF16, {kChecked, dim});
  cpu->layer_norm(first_rows(residual_host, kChecked), &row_host, &row_host, true, 1e-6f, expected);
  check_close(gpu.to_host(first_rows(normed, kChecked)), expected, "the layer norm");

  {
    const RopeTable rope_host{noise(DType::kF32, {tokens, model.head_dim}, 3),
                              noise(DType::kF32, {tokens, model.head_dim}, 4)};
    const RopeTable rope{gpu.from_host(rope_host.cos), gpu.from_host(rope_host.signed_sin)};
    const Tensor qkv_host = noise(DType::kBF16, {tokens, 3 * dim}, 5);
    Tensor qkv = gpu.from_host(qkv_host);
    const auto query = [&](Tensor& tensor, int64_t rows) {
      return HeadsView{tensor.raw(), DType::kBF16, rows, 3 * dim, model.head_dim};
    };
    const int heads = static_cast<int>(model.heads), head_dim = static_cast<int>(model.head_dim);
    gpu.norm_and_rotate(query(qkv, tokens), heads, head_dim, &row, 1e-6f, &rope);
    Tensor rotated = first_rows(qkv_host, kChecked).clone();
    const RopeTable first{first_rows(rope_host.cos, kChecked), first_rows(rope_host.signed_sin, kChecked)};
    cpu->norm_and_rotate(query(rotated, kChecked), heads, head_dim, &row_host, 1e-6f, &first);
    check_close(gpu.to_host(first_rows(qkv, kChecked)), rotated, "norm and rotation");
    add("norm and rotate, one of q and k", 4 * cells + 8.0 * static_cast<double>(tokens * model.head_dim), 0,
        [&] { gpu.norm_and_rotate(query(qkv, tokens), heads, head_dim, &row, 1e-6f, &rope); });

    const auto layer =
        gpu.make_linear(noise(DType::kBF16, {3 * dim, dim}, 6), noise(DType::kF32, {3 * dim}, 7), DType::kBF16);
    add("linear: q, k, v", 0, 6 * cells * static_cast<double>(dim), [&] { gpu.linear(*layer, normed, qkv); });
  }
  {
    const auto layer = gpu.make_linear(noise(DType::kBF16, {dim, dim}, 8), noise(DType::kF32, {dim}, 9), DType::kBF16);
    const double operations = 2 * cells * static_cast<double>(dim);
    add("linear: dim to dim", 0, operations, [&] { gpu.linear(*layer, normed, other); });
    add("linear: dim to dim, added to the residual", 0, operations,
        [&] { gpu.linear(*layer, normed, residual, {.accumulate = true}); });
    add("linear: dim to dim, gated and added", 0, operations,
        [&] { gpu.linear(*layer, normed, residual, {.accumulate = true, .gate = &row}); });
  }
  {
    const int64_t rows = std::min(tokens, gpu.rows_at_a_time());
    const auto in =
        gpu.make_linear(noise(DType::kBF16, {model.ffn, dim}, 10), noise(DType::kF32, {model.ffn}, 11), DType::kBF16);
    const auto out =
        gpu.make_linear(noise(DType::kBF16, {dim, model.ffn}, 12), noise(DType::kF32, {dim}, 13), DType::kBF16);
    Tensor hidden = gpu.empty(DType::kBF16, {rows, model.ffn});
    const Tensor input = first_rows(normed, rows);
    Tensor output = first_rows(residual, rows);
    const double operations = 2.0 * static_cast<double>(rows) * static_cast<double>(dim * model.ffn);
    const std::string size = " (" + std::to_string(rows) + " rows)";
    add("linear: feed-forward in, GELU" + size, 0, operations,
        [&] { gpu.linear(*in, input, hidden, {.activation = Activation::kGeluTanh}); });
    add("linear: feed-forward out, gated and added" + size, 0, operations,
        [&] { gpu.linear(*out, hidden, output, {.accumulate = true, .gate = &row}); });
  }
  return {{"model", model.name}, {"tokens", tokens}, {"operations", results}};
}

void run() {
  const auto gpu = cuda::make_cuda_backend();
  Bench bench(*gpu);
  json models = json::array();
  for (const Model& model : kModels) models.push_back(run_model(*gpu, bench, model));
  const json report = {{"device", gpu->device_name()},
                       {"copy_GB_per_s", bench.copy_bandwidth() * 1e-9},
                       {"runs", kRuns},
                       {"peak_device_bytes", gpu->peak_memory_bytes()},
                       {"models", models}};
  std::printf("%s\n", report.dump(2).c_str());
}

}  // namespace
}  // namespace calibatt

int main() {
  try {
    calibatt::run();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "calibatt_operations_bench: %s\n", error.what());
    return 1;
  }
}
