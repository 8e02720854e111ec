// Every operation of a Wan transformer block but self-attention, at the shapes of the public models, on the CUDA
// backend: time, share of the memory's copy bandwidth, products per second. Prints JSON. Random inputs; some rows of
// every result are compared with the CPU backend's before it is timed.
//   calibatt_operations_bench [--model 14B-720p] [--candidates REPEATS]
#include <cuda_runtime_api.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/device/device.h"
#include "backend/cuda/device/event_timer.h"
#include "backend/cuda/gemm.h"
#include "backend/cuda/kernels/elementwise.h"
#include "backend/cuda/linear.h"
#include "base/error.h"
#include "base/thread_pool.h"

namespace calibatt {
namespace {

using nlohmann::json;

constexpr int kWarmUps = 2, kRuns = 7;
constexpr int64_t kChecked = 64;   // rows that are compared
constexpr int64_t kTextKeys = 61;  // a prompt of 60 tokens and its padding

struct Model {
  const char *id, *name;
  int64_t tokens, heads, head_dim, ffn;
  int64_t dim() const { return heads * head_dim; }
};
constexpr Model kModels[] = {
    {"14B-720p", "14B, 720p, 81 frames", 75600, 40, 128, 13824},
    {"14B-480p", "14B, 480p, 81 frames", 32760, 40, 128, 13824},
    {"1.3B-480p", "1.3B, 480p, 81 frames", 32760, 12, 128, 8960},
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

  /// Median seconds of `work`; bytes: read and written once; operations: of products. stream: where the work is
  /// enqueued, when it is not the backend's.
  json measure(const std::string& name, double bytes, double operations, const std::function<void()>& work,
               cudaStream_t stream = nullptr) {
    std::vector<double> seconds;
    for (int turn = 0; turn < kWarmUps + kRuns; ++turn) {
      const std::unique_ptr<Timer> timer =
          stream != nullptr ? std::make_unique<cuda::EventTimer>(stream) : gpu_.make_timer();
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

/// The weights of the first kChecked queries: attention to values that are unit vectors.
Tensor weights_on_cpu(Backend& cpu, AttentionCall call, const Tensor& query, const Tensor& keys, int slots) {
  const int64_t num_keys = call.k.num_tokens;
  const int64_t dim = int64_t{call.num_heads} * call.head_dim;
  Tensor unit = Tensor::zeros(DType::kF32, {num_keys, dim});
  for (int64_t key = 0; key < num_keys; ++key) {
    for (int64_t head = 0; head < call.num_heads; ++head) unit.f32()[key * dim + head * call.head_dim + key] = 1;
  }
  const Tensor values = converted(unit, DType::kBF16);
  Tensor out(DType::kF32, {kChecked, call.num_heads, call.head_dim});
  call.q.data = query.raw();
  call.q.num_tokens = kChecked;
  call.k.data = keys.raw();
  call.v = {values.raw(), DType::kBF16, num_keys, dim, call.head_dim};
  call.out = {out.raw(), DType::kF32, kChecked, dim, call.head_dim};
  cpu.attention(call);
  Tensor weights(DType::kF32, {kChecked, int64_t{call.num_heads} * slots});
  for (int64_t head = 0; head < kChecked * call.num_heads; ++head) {
    std::copy_n(out.f32() + head * call.head_dim, slots, weights.f32() + head * slots);
  }
  return weights;
}

/// What becomes of a product.
enum class Way { kWritten, kGelu, kAdded, kGated, kGatedInTwoPasses };

/// Linear layers on a stream of their own, so that the passes they are made of can be run one by one too.
class Products {
 public:
  struct Layer {
    Tensor weight, bias;  // host
    std::shared_ptr<const LinearLayer> gpu, cpu;
  };

  Products(Bench& bench, int trial_repeats) : bench_(bench), trial_repeats_(trial_repeats) {}
  size_t peak_bytes() const { return context_.peak_bytes(); }

  Layer make(int64_t out, int64_t in, uint64_t seed) {
    Layer layer{noise(DType::kBF16, {out, in}, seed), noise(DType::kF32, {out}, seed + 1), nullptr, nullptr};
    layer.gpu = linear_.make(layer.weight, layer.bias, DType::kBF16);
    layer.cpu = cpu_->make_linear(layer.weight, layer.bias, DType::kBF16);
    return layer;
  }
  Tensor empty(DType dtype, std::vector<int64_t> shape) { return context_.allocate(dtype, std::move(shape)); }

  /// Compared, then timed. out: F32 where something is added to it, else BF16.
  json measure(const std::string& name, const Layer& layer, const Tensor& input, Tensor& out, Way way,
               const Tensor& gate) {
    const auto work = [&] { run(layer, input, out, way, gate); };
    compare(name, layer, input, out, way, gate, work);
    const double operations =
        2.0 * static_cast<double>(input.dim(0)) * static_cast<double>(input.dim(1) * layer.weight.dim(0));
    json result = bench_.measure(name, 0, operations, work, context_.stream());
    if (trial_repeats_ > 0 && way != Way::kGatedInTwoPasses) result["candidates"] = candidates(layer, input, out, way);
    return result;
  }

 private:
  void run(const Layer& layer, const Tensor& input, Tensor& out, Way way, const Tensor& gate) {
    switch (way) {
      case Way::kWritten:
        return linear_.run(*layer.gpu, input, out, {});
      case Way::kGelu:
        return linear_.run(*layer.gpu, input, out, {.activation = Activation::kGeluTanh});
      case Way::kAdded:
        return linear_.run(*layer.gpu, input, out, {.accumulate = true});
      case Way::kGated:
        return linear_.run(*layer.gpu, input, out, {.accumulate = true, .gate = &gate});
      case Way::kGatedInTwoPasses: {
        Tensor product = context_.allocate(DType::kBF16, out.shape());
        linear_.run(*layer.gpu, input, product, {});
        cuda::add_gated(out.f32(), product.raw(), DType::kBF16, gate.f32(), out.dim(0), out.dim(1), context_.stream());
      }
    }
  }

  void compare(const std::string& name, const Layer& layer, const Tensor& input, const Tensor& out, Way way,
               const Tensor& gate, const std::function<void()>& work) {
    const bool adds = out.dtype() == DType::kF32, gated = way == Way::kGated || way == Way::kGatedInTwoPasses;
    const Tensor before = adds ? checked_rows(out) : Tensor(), gate_row = gated ? to_host(gate) : Tensor();
    work();
    Tensor change = converted(checked_rows(out), DType::kF32);
    for (int64_t i = 0; adds && i < change.size(); ++i) change.f32()[i] -= before.f32()[i];
    Tensor expected = Tensor::zeros(DType::kF32, change.shape());
    cpu_->linear(*layer.cpu, checked_rows(input), expected,
                 {.activation = way == Way::kGelu ? Activation::kGeluTanh : Activation::kNone,
                  .accumulate = adds,
                  .gate = gated ? &gate_row : nullptr});
    check_close(change, expected, name.c_str());
  }

  /// What cuBLASLt proposes for the product itself, in its order of preference.
  json candidates(const Layer& layer, const Tensor& input, Tensor& out, Way way) {
    const Tensor weight = cuda::upload(context_, layer.weight, DType::kBF16);
    const Tensor bias = cuda::upload(context_, layer.bias, out.dtype());
    cuda::GemmCall call{.input = input.raw(), .weight = weight.raw(), .out = out.raw(), .out_dtype = out.dtype()};
    call.rows = input.dim(0);
    call.out_features = weight.dim(0);
    call.in_features = weight.dim(1);
    call.bias = bias.raw();
    call.gelu = way == Way::kGelu;
    call.accumulate = out.dtype() == DType::kF32;
    json result = json::array();
    for (const cuda::GemmCandidate& each : gemm_.tried_candidates(call, trial_repeats_)) {
      result.push_back({{"ms", each.milliseconds}, {"finalist", each.finalist}, {"is", each.describe()}});
    }
    return result;
  }

  Tensor to_host(const Tensor& device) {
    Tensor host(device.dtype(), device.shape());
    context_.copy_to_host(host.raw(), device.raw(), device.size_bytes());
    return host;
  }
  Tensor checked_rows(const Tensor& device) { return to_host(first_rows(device, kChecked)); }

  Bench& bench_;
  int trial_repeats_;
  cuda::Context context_;
  cuda::CublasLinear linear_{context_};
  cuda::Gemm gemm_{context_};
  std::unique_ptr<Backend> cpu_ = cpu::make_cpu_backend();
};

/// Where a model's measurements go, and its sizes.
struct ModelBench {
  Backend& gpu;
  Bench& bench;
  const Model& model;
  Backend& cpu;  ///< what the results are compared with
  json results = json::array();

  void add(const std::string& name, double bytes, const std::function<void()>& work) {
    results.push_back(bench.measure(name, bytes, 0, work));
  }
  double cells() const { return static_cast<double>(model.tokens) * static_cast<double>(model.dim()); }
};

void norm_and_rotate(ModelBench& of, const Tensor& row_host, const Tensor& row) {
  Backend& gpu = of.gpu;
  const Model& model = of.model;
  const int64_t tokens = model.tokens, dim = model.dim();
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
  of.cpu.norm_and_rotate(query(rotated, kChecked), heads, head_dim, &row_host, 1e-6f, &first);
  check_close(gpu.to_host(first_rows(qkv, kChecked)), rotated, "norm and rotation");
  of.add("norm and rotate, one of q and k", 4 * of.cells() + 8.0 * static_cast<double>(tokens * model.head_dim),
         [&] { gpu.norm_and_rotate(query(qkv, tokens), heads, head_dim, &row, 1e-6f, &rope); });
}

void attend_to_a_prompt(ModelBench& of) {
  Backend& gpu = of.gpu;
  const Model& model = of.model;
  const int64_t tokens = model.tokens, dim = model.dim();
  const int heads = static_cast<int>(model.heads), head_dim = static_cast<int>(model.head_dim);
  const int slots = gpu.attention_weight_slots(DType::kBF16, head_dim, kTextKeys);
  const Tensor query_host = noise(DType::kBF16, {tokens, dim}, 14),
               keys_host = noise(DType::kBF16, {kTextKeys, dim}, 15);
  const Tensor query = gpu.from_host(query_host), keys = gpu.from_host(keys_host);
  Tensor weights = gpu.empty(DType::kBF16, {tokens, model.heads * slots});
  AttentionCall call;
  call.num_heads = heads;
  call.head_dim = head_dim;
  call.scale = 1 / std::sqrt(static_cast<float>(head_dim));
  call.q = {query.raw(), DType::kBF16, tokens, dim, head_dim};
  call.k = {keys.raw(), DType::kBF16, kTextKeys, dim, head_dim};
  gpu.attention_weights(call, weights);
  check_close(gpu.to_host(first_rows(weights, kChecked)), weights_on_cpu(of.cpu, call, query_host, keys_host, slots),
              "attention to a prompt");
  of.add("attention to a prompt, weights of " + std::to_string(kTextKeys) + " keys",
         2 * of.cells() + 2.0 * static_cast<double>(tokens * model.heads * slots),
         [&] { gpu.attention_weights(call, weights); });
}

void linear_layers(ModelBench& of, Products& products, const Tensor& normed, Tensor& residual, const Tensor& row) {
  Backend& gpu = of.gpu;
  const Model& model = of.model;
  const int64_t tokens = model.tokens, dim = model.dim();
  gpu.synchronize();  // the products have a stream of their own; a measurement waits for its end
  const auto add_product = [&](const std::string& name, const Products::Layer& layer, const Tensor& input, Tensor& out,
                               Way way) { of.results.push_back(products.measure(name, layer, input, out, way, row)); };
  {
    const Products::Layer layer = products.make(3 * dim, dim, 6);
    Tensor qkv = products.empty(DType::kBF16, {tokens, 3 * dim});
    add_product("linear: q, k, v", layer, normed, qkv, Way::kWritten);
  }
  {
    const Products::Layer layer = products.make(dim, dim, 8);
    Tensor other = products.empty(DType::kBF16, {tokens, dim});
    add_product("linear: dim to dim", layer, normed, other, Way::kWritten);
    add_product("linear: dim to dim, added to the residual", layer, normed, residual, Way::kAdded);
    const Products::Layer projected = products.make(
        dim, model.heads * gpu.attention_weight_slots(DType::kBF16, static_cast<int>(model.head_dim), kTextKeys), 16);
    add_product("linear: weights of a prompt's keys to dim, added to the residual", projected,
                {DType::kBF16, {tokens, projected.weight.dim(1)}, normed.storage()}, residual, Way::kAdded);
    add_product("linear: dim to dim, gated and added", layer, normed, residual, Way::kGated);
    add_product("linear: dim to dim, gated and added in two passes", layer, normed, residual, Way::kGatedInTwoPasses);
  }
  {
    const Products::Layer in = products.make(model.ffn, dim, 10), out = products.make(dim, model.ffn, 12);
    Tensor hidden = products.empty(DType::kBF16, {tokens, model.ffn});
    for (const int64_t rows : {std::min<int64_t>(tokens, 32768), tokens}) {
      const Tensor input = first_rows(normed, rows);
      Tensor some_hidden = first_rows(hidden, rows), output = first_rows(residual, rows);
      const std::string size = " (" + std::to_string(rows) + " rows)";
      add_product("linear: feed-forward in, GELU" + size, in, input, some_hidden, Way::kGelu);
      add_product("linear: feed-forward out, gated and added" + size, out, some_hidden, output, Way::kGated);
      add_product("linear: feed-forward out, gated and added in two passes" + size, out, some_hidden, output,
                  Way::kGatedInTwoPasses);
      if (rows == tokens) break;
    }
  }
}

json run_model(Backend& gpu, Bench& bench, Products& products, const Model& model) {
  const auto cpu = cpu::make_cpu_backend();
  const int64_t tokens = model.tokens, dim = model.dim();
  const Tensor residual_host = noise(DType::kF32, {tokens, dim}, 1), row_host = noise(DType::kF32, {dim}, 2);
  Tensor residual = gpu.from_host(residual_host);
  const Tensor row = gpu.from_host(row_host);
  Tensor normed = gpu.empty(DType::kBF16, {tokens, dim});
  ModelBench of{gpu, bench, model, *cpu};

  of.add("norm and modulate, F32 to BF16", 6 * of.cells(),
         [&] { gpu.layer_norm(residual, &row, &row, true, 1e-6f, normed); });
  Tensor expected(DType::kBF16, {kChecked, dim});
  cpu->layer_norm(first_rows(residual_host, kChecked), &row_host, &row_host, true, 1e-6f, expected);
  check_close(gpu.to_host(first_rows(normed, kChecked)), expected, "the layer norm");

  norm_and_rotate(of, row_host, row);
  attend_to_a_prompt(of);
  linear_layers(of, products, normed, residual, row);
  return {{"model", model.name}, {"tokens", tokens}, {"operations", of.results}};
}

void run(const std::string& model_id, int trial_repeats) {
  const auto gpu = cuda::make_cuda_backend();
  Bench bench(*gpu);
  Products products(bench, trial_repeats);
  json models = json::array();
  for (const Model& model : kModels) {
    if (model_id.empty() || model_id == model.id) models.push_back(run_model(*gpu, bench, products, model));
  }
  const json report = {{"device", gpu->device_name()},
                       {"copy_GB_per_s", bench.copy_bandwidth() * 1e-9},
                       {"runs", kRuns},
                       {"peak_device_bytes", gpu->peak_memory_bytes() + products.peak_bytes()},
                       {"models", models}};
  std::printf("%s\n", report.dump(2).c_str());
}

}  // namespace
}  // namespace calibatt

int main(int argc, char** argv) {
  CLI::App app("The operations of a Wan transformer block but self-attention.");
  std::string model;
  int trial_repeats = 0;
  app.add_option("--model", model, "only this one; default: all")
      ->check(CLI::IsMember({"14B-720p", "14B-480p", "1.3B-480p"}));
  app.add_option("--candidates", trial_repeats,
                 "Also the time of every algorithm that cuBLASLt proposes for a product, each trial so many in a row")
      ->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  try {
    calibatt::run(model, trial_repeats);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "calibatt_operations_bench: %s\n", error.what());
    return 1;
  }
}
