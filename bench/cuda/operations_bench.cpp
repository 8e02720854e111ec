// Every operation of a transformer block but self-attention, at the shapes of the public models, on the CUDA
// backend: time, share of the memory's copy bandwidth, products per second. Prints JSON. Random inputs; some rows of
// every result are compared with the CPU backend's before it is timed.
//   calibatt_operations_bench [--model 14B-720p] [--candidates REPEATS]
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "backend/cpu/cpu_backend.h"
#include "backend/cuda/cuda_backend.h"
#include "operations.h"

namespace calibatt::bench {
namespace {

using nlohmann::json;

constexpr int64_t kTextKeys = 61;  // a prompt of 60 tokens and its padding

constexpr Operations kModels[] = {
    {"14B-720p", "14B, 720p, 81 frames", 75600, 40, 128, 13824},
    {"14B-480p", "14B, 480p, 81 frames", 32760, 40, 128, 13824},
    {"1.3B-480p", "1.3B, 480p, 81 frames", 32760, 12, 128, 8960},
    {"mochi", "Mochi 1, 848x480, 163 frames", 44520, 24, 128, 8192, true},
};

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

void norm_and_rotate(ModelBench& of, const Tensor& row_host, const Tensor& row) {
  Backend& gpu = of.gpu;
  const Operations& model = of.model;
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
  const Operations& model = of.model;
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
  const Operations& model = of.model;
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

}  // namespace

void wan_operations(ModelBench& of, Products& products) {
  const int64_t tokens = of.model.tokens, dim = of.model.dim();
  const Tensor residual_host = noise(DType::kF32, {tokens, dim}, 1), row_host = noise(DType::kF32, {dim}, 2);
  Tensor residual = of.gpu.from_host(residual_host);
  const Tensor row = of.gpu.from_host(row_host);
  Tensor normed = of.gpu.empty(DType::kBF16, {tokens, dim});

  of.add("norm and modulate, F32 to BF16", 6 * of.cells(),
         [&] { of.gpu.layer_norm(residual, &row, &row, true, 1e-6f, normed); });
  Tensor expected(DType::kBF16, {kChecked, dim});
  of.cpu.layer_norm(first_rows(residual_host, kChecked), &row_host, &row_host, true, 1e-6f, expected);
  check_close(of.gpu.to_host(first_rows(normed, kChecked)), expected, "the layer norm");

  norm_and_rotate(of, row_host, row);
  attend_to_a_prompt(of);
  linear_layers(of, products, normed, residual, row);
}

namespace {

json run_model(Backend& gpu, Bench& bench, Products& products, const Operations& model) {
  const auto cpu = cpu::make_cpu_backend();
  ModelBench of{gpu, bench, model, *cpu};
  (model.joint ? mochi_operations : wan_operations)(of, products);
  return {{"model", model.name}, {"tokens", model.tokens}, {"operations", of.results}};
}

void run(const std::string& model_id, int trial_repeats) {
  const auto gpu = cuda::make_cuda_backend();
  Bench bench(*gpu);
  Products products(bench, trial_repeats);
  json models = json::array();
  for (const Operations& model : kModels) {
    if (model_id.empty() || model_id == model.id) models.push_back(run_model(*gpu, bench, products, model));
  }
  const json report = {{"device", gpu->device_name()},
                       {"copy_GB_per_s", bench.copy_bandwidth() * 1e-9},
                       {"runs", Bench::kRuns},
                       {"peak_device_bytes", gpu->peak_memory_bytes() + products.peak_bytes()},
                       {"models", models}};
  std::printf("%s\n", report.dump(2).c_str());
}

}  // namespace
}  // namespace calibatt::bench

int main(int argc, char** argv) {
  CLI::App app("The operations of a transformer block but self-attention.");
  std::string model;
  int trial_repeats = 0;
  app.add_option("--model", model, "only this one; default: all")
      ->check(CLI::IsMember({"14B-720p", "14B-480p", "1.3B-480p", "mochi"}));
  app.add_option("--candidates", trial_repeats,
                 "Also the time of every algorithm that cuBLASLt proposes for a product, each trial so many in a row")
      ->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  try {
    calibatt::bench::run(model, trial_repeats);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "calibatt_operations_bench: %s\n", error.what());
    return 1;
  }
}
