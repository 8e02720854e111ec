// The linear layers of one Wan block as a forward calls them, in bf16 and in 8 bits (e4m3 or int8), with all that makes
// their inputs: norms, GELU, quantisation. Some rows of every product are compared with the CPU backend's before
// anything is timed. Both take turns in random order, round by round; prints JSON with the ratio of each round.
//   calibatt_linear_bench [--model 14B-720p] [--weights-dtype fp8|int8] [--rounds 15]
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cuda/cuda_backend.h"
#include "base/error.h"
#include "operations.h"
#include "random_tensor.h"

namespace calibatt::bench {
namespace {

using nlohmann::json;

constexpr float kEps = 1e-6f;
constexpr int64_t kTextKeys = 61;      // of a prompt of 60 tokens: one stands for the padding
constexpr double kTolerance = 0x1p-6;  // of products in 8 bits: what their short sums and one rounding to bf16 make

constexpr Operations kModels[] = {
    {"14B-720p", "14B, 720p, 81 frames", 75600, 40, 128, 13824},
    {"14B-480p", "14B, 480p, 81 frames", 32760, 40, 128, 13824},
    {"1.3B-480p", "1.3B, 480p, 81 frames", 32760, 12, 128, 8960},
};

struct Layer {
  Tensor weight, bias;  // host
  std::shared_ptr<const LinearLayer> wide, eight_bit;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// A block's layers and activations; those of both formats, and where they can be the same memory.
class Block {
 public:
  Block(Backend& gpu, const Operations& model, DType eight_bits)
      : gpu_(gpu),
        type_(eight_bits),
        eight_bits_(gpu.eight_bit_ops()),
        tokens_(model.tokens),
        dim_(model.dim()),
        ffn_(model.ffn) {
    qkv_ = make(3 * dim_, dim_);
    output_ = make(dim_, dim_);
    cross_query_ = make(dim_, dim_);
    in_ = make(ffn_, dim_);
    out_ = make(dim_, ffn_);
    row_ = gpu.from_host(converted(random_tensor({dim_}, 0.1), DType::kF32));
    residual_ = gpu.from_host(converted(random_tensor({tokens_, dim_}, 1), DType::kF32));
    attended_ = gpu.from_host(random_tensor({tokens_, dim_}, 1));
    normed_ = gpu.empty(DType::kBF16, {tokens_, dim_});
    wide_ = gpu.empty(DType::kBF16, {tokens_, std::max(3 * dim_, ffn_)});
    small_ = rows_of_eight_bits(dim_);
    large_ = rows_of_eight_bits(ffn_);
  }

  /// Five products and what makes their inputs.
  void run_bf16() {
    Tensor qkv = view(3 * dim_), query = view(dim_), hidden = view(ffn_);
    norm();
    gpu_.linear(*qkv_.wide, normed_, qkv);
    gpu_.linear(*output_.wide, attended_, residual_, {.accumulate = true, .gate = &row_});
    norm();
    gpu_.linear(*cross_query_.wide, normed_, query);
    norm();
    gpu_.linear(*in_.wide, normed_, hidden, {.activation = Activation::kGeluTanh});
    gpu_.linear(*out_.wide, hidden, residual_, {.accumulate = true, .gate = &row_});
  }
  void run_eight_bits() {
    Tensor qkv = view(3 * dim_), query = view(dim_), hidden = view(ffn_);
    const LayerNorm modulation{&row_, &row_, true, kEps};
    eight_bits_.layer_norm(residual_, modulation, small_);
    eight_bits_.linear(*qkv_.eight_bit, small_, qkv);
    eight_bits_.quantise(attended_, Activation::kNone, small_);
    eight_bits_.linear(*output_.eight_bit, small_, residual_, {.accumulate = true, .gate = &row_});
    eight_bits_.layer_norm(residual_, modulation, small_);
    eight_bits_.linear(*cross_query_.eight_bit, small_, query);
    eight_bits_.layer_norm(residual_, modulation, small_);
    eight_bits_.linear(*in_.eight_bit, small_, hidden);
    eight_bits_.quantise(hidden, Activation::kGeluTanh, large_);
    eight_bits_.linear(*out_.eight_bit, large_, residual_, {.accumulate = true, .gate = &row_});
  }
  /// What bf16 has beside products: its three norms.
  void run_norms() {
    for (int i = 0; i < 3; ++i) norm();
  }

  /// Relative errors against the CPU's products of the same 8 bits. Throws Error(kNumeric) where one is too large.
  json check() {
    const auto cpu = cpu::make_cpu_backend();
    json errors;
    Tensor qkv = view(3 * dim_), hidden = view(ffn_);
    eight_bits_.quantise(attended_, Activation::kNone, small_);
    eight_bits_.linear(*qkv_.eight_bit, small_, qkv);
    errors["q, k and v"] = error_of(*cpu, qkv_, small_, qkv, nullptr, nullptr);
    const Tensor before = gpu_.to_host(first_rows(residual_, kChecked));
    eight_bits_.linear(*output_.eight_bit, small_, residual_, {.accumulate = true, .gate = &row_});
    errors["output, gated and added"] = error_of(*cpu, output_, small_, residual_, &before, &row_);
    eight_bits_.linear(*in_.eight_bit, small_, hidden);
    errors["feed-forward in"] = error_of(*cpu, in_, small_, hidden, nullptr, nullptr);
    eight_bits_.quantise(hidden, Activation::kGeluTanh, large_);
    const Tensor then = gpu_.to_host(first_rows(residual_, kChecked));
    eight_bits_.linear(*out_.eight_bit, large_, residual_, {.accumulate = true, .gate = &row_});
    errors["feed-forward out, gated and added"] = error_of(*cpu, out_, large_, residual_, &then, &row_);
    return errors;
  }

  /// Parts of the 8-bit way one by one: median milliseconds.
  json parts(Bench& bench) {
    Tensor qkv = view(3 * dim_), query = view(dim_), hidden = view(ffn_);
    const LayerNorm modulation{&row_, &row_, true, kEps};
    const LinearEpilogue add{.accumulate = true, .gate = &row_};
    const auto rows = static_cast<double>(tokens_), dim = static_cast<double>(dim_), ffn = static_cast<double>(ffn_);
    json results = json::array();
    const auto measure = [&](const std::string& name, double bytes, double operations, const auto& work) {
      results.push_back(bench.measure(name, bytes, operations, work));
    };
    measure("norm, to bf16", 6 * rows * dim, 0, [&] { norm(); });
    measure("norm, to 8 bits", 5 * rows * dim, 0, [&] { eight_bits_.layer_norm(residual_, modulation, small_); });
    measure("quantise what is attended", 3 * rows * dim, 0,
            [&] { eight_bits_.quantise(attended_, Activation::kNone, small_); });
    measure("GELU and quantise", 3 * rows * ffn, 0,
            [&] { eight_bits_.quantise(hidden, Activation::kGeluTanh, large_); });
    measure("q, k and v, bf16", 0, 6 * rows * dim * dim, [&] { gpu_.linear(*qkv_.wide, normed_, qkv); });
    measure("q, k and v, 8 bits", 0, 6 * rows * dim * dim, [&] { eight_bits_.linear(*qkv_.eight_bit, small_, qkv); });
    measure("output, gated and added, bf16", 0, 2 * rows * dim * dim,
            [&] { gpu_.linear(*output_.wide, attended_, residual_, add); });
    measure("output, gated and added, 8 bits", 0, 2 * rows * dim * dim,
            [&] { eight_bits_.linear(*output_.eight_bit, small_, residual_, add); });
    measure("feed-forward in, GELU, bf16", 0, 2 * rows * dim * ffn,
            [&] { gpu_.linear(*in_.wide, normed_, hidden, {.activation = Activation::kGeluTanh}); });
    measure("feed-forward in, 8 bits", 0, 2 * rows * dim * ffn,
            [&] { eight_bits_.linear(*in_.eight_bit, small_, hidden); });
    measure("feed-forward out, gated and added, bf16", 0, 2 * rows * dim * ffn,
            [&] { gpu_.linear(*out_.wide, hidden, residual_, add); });
    measure("feed-forward out, gated and added, 8 bits", 0, 2 * rows * dim * ffn,
            [&] { eight_bits_.linear(*out_.eight_bit, large_, residual_, add); });
    attention_to_a_prompt(measure);
    return results;
  }

 private:
  /// In two products (Backend::project_values), with an output projection of either format. `small_` has room for the
  /// weights: a head's keys are fewer than its channels.
  template <class Measure>
  void attention_to_a_prompt(const Measure& measure) {
    const int head_dim = 128, heads = static_cast<int>(dim_) / head_dim;
    const Tensor keys_values = gpu_.from_host(random_tensor({kTextKeys, 2 * dim_}, 1));
    const Tensor query = view(dim_);
    AttentionCall call;
    call.num_heads = heads;
    call.head_dim = head_dim;
    call.scale = 1 / std::sqrt(static_cast<float>(head_dim));
    call.q = {query.raw(), DType::kBF16, tokens_, dim_, head_dim};
    call.k = {keys_values.raw(), DType::kBF16, kTextKeys, 2 * dim_, head_dim};
    const ConstHeadsView values{keys_values.data<bfloat16>() + dim_, DType::kBF16, kTextKeys, 2 * dim_, head_dim};
    const auto wide = gpu_.project_values(*output_.wide, values, heads, head_dim),
               eight_bit = gpu_.project_values(*output_.eight_bit, values, heads, head_dim);
    const int64_t width = wide->in_features();
    Tensor weights(DType::kBF16, {tokens_, width}, normed_.storage());
    EightBitRows rows{{DType::kE4M3, {tokens_, width}, small_.elements.storage()}, small_.scales};
    const double all = static_cast<double>(tokens_) * static_cast<double>(dim_),
                 cells = static_cast<double>(tokens_) * static_cast<double>(width);
    const double operations = 2 * cells * static_cast<double>(dim_);
    measure("weights of a prompt's keys, bf16", 2 * all + 2 * cells, 0, [&] { gpu_.attention_weights(call, weights); });
    measure("a prompt's projected values, added, bf16", 0, operations,
            [&] { gpu_.linear(*wide, weights, residual_, {.accumulate = true}); });
    if (type_ == DType::kI8) return;  // these stay in bf16
    measure("weights of a prompt's keys, 8 bits", 2 * all + cells, 0,
            [&] { eight_bits_.attention_weights(call, rows); });
    measure("a prompt's projected values, added, 8 bits", 0, operations,
            [&] { eight_bits_.linear(*eight_bit, rows, residual_, {.accumulate = true}); });
  }

  Layer make(int64_t out, int64_t in) {
    Layer layer{random_tensor({out, in}, 1 / std::sqrt(static_cast<double>(in))),
                converted(random_tensor({out}, 0.02), DType::kF32),
                {},
                {}};
    layer.wide = gpu_.make_linear(layer.weight, layer.bias, DType::kBF16);
    layer.eight_bit = gpu_.make_linear(layer.weight, layer.bias, LinearFormat::eight_bits(type_));
    return layer;
  }
  EightBitRows rows_of_eight_bits(int64_t channels) {
    return {gpu_.empty(type_, {tokens_, channels}), gpu_.empty(DType::kF32, {tokens_})};
  }
  Tensor view(int64_t channels) const { return {DType::kBF16, {tokens_, channels}, wide_.storage()}; }
  void norm() { gpu_.layer_norm(residual_, &row_, &row_, true, kEps, normed_); }

  double error_of(Backend& cpu, const Layer& layer, const EightBitRows& input, const Tensor& found,
                  const Tensor* before, const Tensor* gate) {
    const EightBitRows rows{gpu_.to_host(first_rows(input.elements, kChecked)),
                            gpu_.to_host(Tensor(DType::kF32, {kChecked}, input.scales.storage()))};
    Tensor change = converted(gpu_.to_host(first_rows(found, kChecked)), DType::kF32).clone();
    for (int64_t i = 0; before != nullptr && i < change.size(); ++i) change.f32()[i] -= before->f32()[i];
    Tensor expected = Tensor::zeros(DType::kF32, change.shape());
    const Tensor gate_row = gate != nullptr ? gpu_.to_host(*gate) : Tensor();
    cpu.eight_bit_ops().linear(*cpu.make_linear(layer.weight, layer.bias, LinearFormat::eight_bits(type_)), rows,
                               expected,
                               {.accumulate = gate != nullptr, .gate = gate != nullptr ? &gate_row : nullptr});
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < expected.size(); ++i) {
      difference += std::pow(double{change.f32()[i]} - expected.f32()[i], 2);
      norm += std::pow(double{expected.f32()[i]}, 2);
    }
    const double error = std::sqrt(difference / norm);
    if (!(error <= kTolerance)) {
      throw Error(ErrorKind::kNumeric, "a product in 8 bits differs from the CPU's by " + std::to_string(error) +
                                           " of itself; run the tests");
    }
    return error;
  }

  Backend& gpu_;
  const DType type_;
  EightBitOps& eight_bits_;
  int64_t tokens_, dim_, ffn_;
  Layer qkv_, output_, cross_query_, in_, out_;
  Tensor row_, residual_, attended_, normed_, wide_;
  EightBitRows small_, large_;
};

/// Seconds of each way in each round, in random order.
json compare(Backend& gpu, Block& block, int rounds) {
  enum Way { kBf16, kEightBits, kNorms, kCount };
  std::vector<double> seconds[kCount];
  std::mt19937 random(7);
  constexpr int kWarmUps = 2;
  for (int round = 0; round < rounds + kWarmUps; ++round) {
    std::vector<Way> order{kBf16, kEightBits, kNorms};
    std::shuffle(order.begin(), order.end(), random);
    for (const Way way : order) {
      const auto timer = gpu.make_timer();
      timer->start();
      if (way == kBf16) block.run_bf16();
      if (way == kEightBits) block.run_eight_bits();
      if (way == kNorms) block.run_norms();
      timer->stop();
      const double took = timer->seconds();
      if (round >= kWarmUps) seconds[way].push_back(took);
    }
  }
  std::vector<double> ratios, with_norms;
  for (size_t i = 0; i < seconds[kBf16].size(); ++i) {
    const double norms = seconds[kNorms][i];
    ratios.push_back((seconds[kBf16][i] - norms) / (seconds[kEightBits][i] - norms));
    with_norms.push_back(seconds[kBf16][i] / seconds[kEightBits][i]);
  }
  const auto summary = [](const std::vector<double>& values, double unit) {
    return json{{"median", median(values) * unit},
                {"least", *std::ranges::min_element(values) * unit},
                {"most", *std::ranges::max_element(values) * unit}};
  };
  return {{"bf16_ms", summary(seconds[kBf16], 1e3)},
          {"eight_bits_ms", summary(seconds[kEightBits], 1e3)},
          {"norms_to_bf16_ms", summary(seconds[kNorms], 1e3)},
          {"ratio_of_products_with_quantisation", summary(ratios, 1)},
          {"ratio_with_norms_on_both_sides", summary(with_norms, 1)}};
}

void run(const std::string& model_id, DType eight_bits, int rounds) {
  const auto gpu = cuda::make_cuda_backend();
  Bench bench(*gpu);
  json models = json::array();
  for (const Operations& model : kModels) {
    if (model_id != model.id) continue;
    Block block(*gpu, model, eight_bits);
    const json errors = block.check();
    json result = compare(*gpu, block, rounds);
    result["model"] = model.name;
    result["eight_bits"] = dtype_name(eight_bits);
    result["tokens"] = model.tokens;
    result["relative_errors_to_cpu"] = errors;
    result["parts"] = block.parts(bench);
    models.push_back(result);
  }
  const json report = {{"device", gpu->device_name()},
                       {"copy_GB_per_s", bench.copy_bandwidth() * 1e-9},
                       {"rounds", rounds},
                       {"peak_device_bytes", gpu->peak_memory_bytes()},
                       {"models", models}};
  std::printf("%s\n", report.dump(2).c_str());
}

}  // namespace
}  // namespace calibatt::bench

int main(int argc, char** argv) {
  CLI::App app("A block's linear layers, in bf16 and in 8 bits.");
  std::string model = "14B-720p", weights_dtype = "fp8";
  int rounds = 15;
  app.add_option("--model", model)->check(CLI::IsMember({"14B-720p", "14B-480p", "1.3B-480p"}));
  app.add_option("--weights-dtype", weights_dtype)->check(CLI::IsMember({"fp8", "int8"}));
  app.add_option("--rounds", rounds)->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  try {
    using calibatt::DType;
    calibatt::bench::run(model, weights_dtype == "int8" ? DType::kI8 : DType::kE4M3, rounds);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "calibatt_linear_bench: %s\n", error.what());
    return 1;
  }
}
