#include "operations.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "backend/cpu/cpu_backend.h"
#include "backend/cuda/device/device.h"
#include "backend/cuda/device/event_timer.h"
#include "backend/cuda/kernels/elementwise.h"
#include "base/error.h"
#include "base/thread_pool.h"

namespace calibatt::bench {

using nlohmann::json;

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

void check_close(const Tensor& found, const Tensor& expected, const std::string& what) {
  double difference = 0, norm = 0;
  const Tensor a = converted(found, DType::kF32), b = converted(expected, DType::kF32);
  for (int64_t i = 0; i < b.size(); ++i) {
    difference += std::pow(double{a.f32()[i]} - b.f32()[i], 2);
    norm += std::pow(double{b.f32()[i]}, 2);
  }
  if (!(difference <= std::ldexp(norm, -16))) {  // 2⁻⁸: one rounding to bf16
    throw Error(ErrorKind::kNumeric, what + " differs from the CPU's; run the tests");
  }
}

json Bench::measure(const std::string& name, double bytes, double operations, const std::function<void()>& work,
                    cudaStream_t stream) {
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

double Bench::measure_copy() {
  constexpr int64_t kBytes = int64_t{1} << 30;
  const Tensor from = gpu_.empty(DType::kU8, {kBytes});
  Tensor to = gpu_.empty(DType::kU8, {kBytes});
  const auto result = measure("copy", 0, 0, [&] { gpu_.convert(from, to); });
  return 2.0 * kBytes / (result["ms"].get<double>() * 1e-3);
}

Products::Products(Bench& bench, int trial_repeats)
    : bench_(bench), trial_repeats_(trial_repeats), cpu_(cpu::make_cpu_backend()) {}

Products::Layer Products::make(int64_t out, int64_t in, uint64_t seed, bool has_bias) {
  Layer layer{noise(DType::kBF16, {out, in}, seed), {}, nullptr, nullptr};
  if (has_bias) layer.bias = noise(DType::kF32, {out}, seed + 1);
  layer.gpu = linear_.make(layer.weight, layer.bias, DType::kBF16);
  layer.cpu = cpu_->make_linear(layer.weight, layer.bias, DType::kBF16);
  return layer;
}

json Products::measure(const std::string& name, const Layer& layer, const Tensor& input, Tensor& out, Way way,
                       const Tensor& gate) {
  const auto work = [&] { run(layer, input, out, way, gate); };
  compare(name, layer, input, out, way, gate, work);
  const double operations =
      2.0 * static_cast<double>(input.dim(0)) * static_cast<double>(input.dim(1) * layer.weight.dim(0));
  json result = bench_.measure(name, 0, operations, work, context_.stream());
  if (trial_repeats_ > 0 && way != Way::kGatedInTwoPasses) result["candidates"] = candidates(layer, input, out, way);
  return result;
}

void Products::run(const Layer& layer, const Tensor& input, Tensor& out, Way way, const Tensor& gate) {
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

void Products::compare(const std::string& name, const Layer& layer, const Tensor& input, const Tensor& out, Way way,
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
json Products::candidates(const Layer& layer, const Tensor& input, Tensor& out, Way way) {
  const Tensor weight = cuda::upload(context_, layer.weight, DType::kBF16);
  const Tensor bias = layer.bias.empty() ? Tensor() : cuda::upload(context_, layer.bias, out.dtype());
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

Tensor Products::to_host(const Tensor& device) {
  Tensor host(device.dtype(), device.shape());
  context_.copy_to_host(host.raw(), device.raw(), device.size_bytes());
  return host;
}

}  // namespace calibatt::bench
