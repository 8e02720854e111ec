// How much one forward of a Wan transformer errs, by what of it is in 8 bits, on inputs and outputs of a run in float32
// that bench/python/forward_errors.py recorded: a line of JSON for each case and each way.
//
//   calibatt_forward_error_bench --transformer models/tiny-wan/transformer --inputs FILE [--backend cpu]
//
// On a CPU linear layers are the backend's, the reference (attention to the prompt stays in 16 bits there), and
// self-attention in 8 bits, which it refuses, is played by the rule of docs/decisions/0008 with sums in float32.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "attention/run_attention.h"
#include "backend/cpu/make_backend.h"
#include "base/eight_bits.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "io/safetensors.h"
#include "models/wan/transformer.h"
#include "pipeline/device_backends.h"

namespace calibatt {
namespace {

constexpr int64_t kChunk = 64;  // keys with one scale

/// [tokens, dim] of one head.
struct Rows {
  int64_t tokens, dim;
  std::vector<float> values;

  Rows(const ConstHeadsView& view, int head, int head_dim) : tokens(view.num_tokens), dim(head_dim) {
    CALIBATT_ASSERT(view.dtype == DType::kBF16);
    values.reserve(static_cast<size_t>(tokens * dim));
    for (int64_t t = 0; t < tokens; ++t) {
      const auto* from = static_cast<const bfloat16*>(view.data) + t * view.token_stride + head * view.head_stride;
      for (int64_t d = 0; d < dim; ++d) values.push_back(static_cast<float>(from[d]));
    }
  }
  float* row(int64_t token) { return values.data() + token * dim; }
  const float* row(int64_t token) const { return values.data() + token * dim; }

  std::vector<float> mean() const {
    std::vector<double> sums(static_cast<size_t>(dim));
    for (size_t i = 0; i < values.size(); ++i) sums[i % sums.size()] += values[i];
    std::vector<float> means;
    for (const double sum : sums) means.push_back(static_cast<float>(sum / static_cast<double>(tokens)));
    return means;
  }
  void subtract(const std::vector<float>& mean) {
    for (size_t i = 0; i < values.size(); ++i) values[i] -= mean[i % mean.size()];
  }
};

/// To 8 bits with one scale, and back.
template <class Element>
void round_all(float* values, int64_t count) {
  std::vector<Element> elements(static_cast<size_t>(count));
  const float scale = quantise_row(values, elements.data(), count);
  dequantise_row(elements.data(), scale, values, count);
}

/// Calls in 8 bits are played here; all others are the backend's.
class PlayedEngine final : public AttentionEngine {
 public:
  explicit PlayedEngine(AttentionEngine& engine) : engine_(engine) {}

  std::string_view attention(const AttentionCall& call) override {
    if (!call.eight_bits) return engine_.attention(call);
    for (int head = 0; head < call.num_heads; ++head) attend(call, head);
    return "played";
  }

 private:
  static void attend(const AttentionCall& call, int head) {
    Rows q(call.q, head, call.head_dim), k(call.k, head, call.head_dim), v(call.v, head, call.head_dim);
    for (int64_t t = 0; t < q.tokens; ++t) round_all<int8_t>(q.row(t), q.dim);
    k.subtract(k.mean());
    for (int64_t t = 0; t < k.tokens; t += kChunk) {
      round_all<int8_t>(k.row(t), std::min(kChunk, k.tokens - t) * k.dim);
    }
    std::vector<float> mean = v.mean();
    v.subtract(mean);
    std::vector<float> channel(static_cast<size_t>(v.tokens));
    for (int64_t d = 0; d < v.dim; ++d) {
      for (int64_t t = 0; t < v.tokens; ++t) channel[static_cast<size_t>(t)] = v.row(t)[d];
      round_all<e4m3>(channel.data(), v.tokens);
      for (int64_t t = 0; t < v.tokens; ++t) v.row(t)[d] = channel[static_cast<size_t>(t)];
    }
    const std::vector<float> rounding = v.mean();
    for (size_t d = 0; d < mean.size(); ++d) mean[d] -= rounding[d];

    parallel_for(q.tokens, 16, [&](int64_t begin, int64_t end, int) {
      std::vector<float> weights(static_cast<size_t>(k.tokens)), sums(static_cast<size_t>(v.dim));
      for (int64_t t = begin; t < end; ++t) {
        const float total = weigh(call.scale, q.row(t), k, weights);
        std::ranges::fill(sums, 0.0f);
        for (int64_t s = 0; s < v.tokens; ++s) {
          const float weight = weights[static_cast<size_t>(s)];
          for (int64_t d = 0; d < v.dim; ++d) sums[static_cast<size_t>(d)] += weight * v.row(s)[d];
        }
        auto* to = static_cast<bfloat16*>(call.out.data) + t * call.out.token_stride + head * call.out.head_stride;
        for (size_t d = 0; d < sums.size(); ++d) to[d] = bfloat16(sums[d] / total + mean[d]);
      }
    });
  }

  /// Weights in e4m3, whose largest is at most 2^8 and which sum to about 448. Returns the sum before rounding.
  static float weigh(float scale, const float* query, const Rows& keys, std::vector<float>& weights) {
    float most = -INFINITY;
    for (int64_t s = 0; s < keys.tokens; ++s) {
      float product = 0;
      for (int64_t d = 0; d < keys.dim; ++d) product += query[d] * keys.row(s)[d];
      weights[static_cast<size_t>(s)] = product * scale;
      most = std::max(most, product * scale);
    }
    double sum = 0;
    for (float& weight : weights) sum += weight = std::exp(weight - most);
    const float factor = std::min(static_cast<float>(kE4M3Max / sum), 256.0f);
    for (float& weight : weights) weight = static_cast<float>(e4m3(weight * factor));
    return static_cast<float>(sum) * factor;
  }

  AttentionEngine& engine_;
};

double relative_error(const Tensor& found, const Tensor& expected) {
  CALIBATT_ASSERT(found.size() == expected.size());
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < expected.size(); ++i) {
    const double wanted = expected.f32()[i], by = found.f32()[i] - wanted;
    difference += by * by;
    norm += wanted * wanted;
  }
  return std::sqrt(difference / norm);
}

struct Way {
  const char* name;
  ModelLoadOptions layers;
};

void run(const std::string& folder, const std::string& inputs, const std::string& device) {
  const Safetensors recorded = Safetensors::open(inputs);
  std::set<std::string> cases;
  for (const auto& [name, entry] : recorded.entries()) cases.insert(name.substr(0, name.rfind('.')));
  const std::unique_ptr<Backend> backend = make_backend(device);
  PlayedEngine played(*backend);
  AttentionEngine& engine = backend->in_host_memory() ? static_cast<AttentionEngine&>(played) : *backend;
  const Way ways[] = {{"bf16", {}},
                      {"e4m3", {.eight_bit_layers = true}},
                      {"int8", {.eight_bit_layers = true, .eight_bit_type = DType::kI8}}};
  for (const Way& way : ways) {
    WanTransformer model = WanTransformer::load(*backend, folder, DType::kBF16, way.layers);
    for (const std::string& name : cases) {
      const auto tensor = [&](const char* what) { return recorded.get(name + "." + what); };
      const WanPrompt prompt = model.prepare_prompt(tensor("text"));
      for (const bool eight_bits : {false, true}) {
        DenseAttention attention(engine, 1, model.config().num_layers);
        attention.use_eight_bits({eight_bits});
        attention.begin_forward(0, GuidanceBranch::kConditional);
        const Tensor found = model.forward(tensor("latents"), tensor("timestep").f32()[0], prompt, attention);
        std::cout << nlohmann::json{{"case", name},
                                    {"layers", way.name},
                                    {"attention_in_8_bits", eight_bits},
                                    {"kernels", attention.report().kernel_calls},
                                    {"error", relative_error(found, tensor("output"))}}
                  << std::endl;
      }
    }
  }
}

}  // namespace
}  // namespace calibatt

int main(int argc, char** argv) {
  std::string transformer, inputs, backend = "cpu";
  CLI::App app{"How much one forward errs, by what of it is in 8 bits"};
  app.add_option("--transformer", transformer)->required();
  app.add_option("--inputs", inputs)->required();
  app.add_option("--backend", backend)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    calibatt::add_device_backends();
    calibatt::run(transformer, inputs, backend);
  } catch (const calibatt::Error& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
