// Forwards of Wan 2.1 at the public models' sizes, dense and planned: with random weights, written to a temporary
// folder (time depends on shapes and masks alone), or with those of --weights. Prints JSON; with --serve it answers
// bench/cuda/forward.py instead.
//   calibatt_forward_bench [--backend cuda] [--model 14B-720p] [--dtype bf16] [--layers 8] [--runs 5]
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "attention/run_attention.h"
#include "backend/cpu/make_backend.h"
#include "backend/cuda/cuda_backend.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "io/safetensors.h"
#include "models/wan/transformer.h"
#include "plan/plan.h"
#include "plan/plan_writer.h"
#include "plan/synthetic_masks.h"

namespace calibatt {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

struct Model {
  std::string name;
  int heads, head_dim, ffn, layers, text_dim;
  int frames, height, width;  // of the latents
  double density;
};
const Model kModels[] = {
    {"14B-720p", 40, 128, 13824, 40, 4096, 21, 90, 160, .375},
    {"14B-480p", 40, 128, 13824, 40, 4096, 21, 60, 104, .32},
    {"1.3B-480p", 12, 128, 8960, 30, 4096, 21, 60, 104, .35},
    {"small", 2, 64, 512, 6, 64, 3, 16, 16, .5},
};
const std::map<std::string, DType> kDTypes = {{"bf16", DType::kBF16}, {"fp16", DType::kF16}, {"fp32", DType::kF32}};
constexpr int kTextTokens = 60, kPlanSteps = 2, kBlock = 128;

/// Uniform, of this standard deviation.
Tensor noise(std::vector<int64_t> shape, double deviation, double mean = 0) {
  static uint64_t seed = 0;
  Tensor tensor(DType::kBF16, std::move(shape));
  const double scale = deviation * std::sqrt(12.0);
  parallel_for(tensor.size(), int64_t{1} << 20, [&, start = ++seed](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      uint64_t x = (static_cast<uint64_t>(i) + start * 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
      x = (x ^ (x >> 31)) * 0x94d049bb133111ebu;
      const double unit = static_cast<double>(x >> 40) / static_cast<double>(1 << 24) - 0.5;
      tensor.data<bfloat16>()[i] = bfloat16(static_cast<float>(mean + scale * unit));
    }
  });
  return tensor;
}

void write_model(const Model& model, const std::string& folder) {
  const int64_t dim = int64_t{model.heads} * model.head_dim;
  std::map<std::string, Tensor> tensors;
  const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    tensors[name + ".weight"] = noise({out, in}, 1 / std::sqrt(static_cast<double>(in)));
    tensors[name + ".bias"] = noise({out}, 0.02);
  };
  tensors["patch_embedding.weight"] = noise({dim, 16, 1, 2, 2}, 0.125);
  tensors["patch_embedding.bias"] = noise({dim}, 0.02);
  linear("condition_embedder.time_embedder.linear_1", dim, 256);
  linear("condition_embedder.time_embedder.linear_2", dim, dim);
  linear("condition_embedder.time_proj", 6 * dim, dim);
  linear("condition_embedder.text_embedder.linear_1", dim, model.text_dim);
  linear("condition_embedder.text_embedder.linear_2", dim, dim);
  tensors["scale_shift_table"] = noise({1, 2, dim}, 0.02);
  linear("proj_out", 64, dim);
  for (int layer = 0; layer < model.layers; ++layer) {
    const std::string block = "blocks." + std::to_string(layer) + ".";
    tensors[block + "scale_shift_table"] = noise({1, 6, dim}, 0.02);
    for (const std::string attention : {"attn1.", "attn2."}) {
      for (const char* name : {"to_q", "to_k", "to_v", "to_out.0"}) linear(block + attention + name, dim, dim);
      for (const char* name : {"norm_q", "norm_k"}) {
        tensors[block + attention + name + ".weight"] = noise({dim}, 0.1, 1);
      }
    }
    tensors[block + "norm2.weight"] = noise({dim}, 0.1, 1);
    tensors[block + "norm2.bias"] = noise({dim}, 0.02);
    linear(block + "ffn.net.0.proj", model.ffn, dim);
    linear(block + "ffn.net.2", dim, model.ffn);
  }
  fs::create_directories(folder);
  write_safetensors(folder + "/diffusion_pytorch_model.safetensors", tensors);
  const json config = {{"num_attention_heads", model.heads},
                       {"attention_head_dim", model.head_dim},
                       {"ffn_dim", model.ffn},
                       {"num_layers", model.layers},
                       {"text_dim", model.text_dim},
                       {"qk_norm", "rms_norm_across_heads"}};
  std::ofstream(folder + "/config.json") << config.dump(2);
}

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// A model at one size, dense and planned.
class Forwards {
 public:
  Forwards(Backend& backend, const Model& model, DType dtype, const std::string& weights, bool offload,
           const std::string& plan_path)
      : backend_(backend), transformer_(load(weights, dtype, offload)) {
    latents_ = converted(noise({16, model.frames, model.height, model.width}, 1), DType::kF32);
    const WanTransformerConfig& config = transformer_.config();
    prompt_ = transformer_.prepare_prompt(converted(noise({kTextTokens, config.text_dim}, 1), DType::kF32));

    const RunDescription run = describe(latents_, {1.0, 0.5});
    static_assert(kPlanSteps == 2);
    AttentionGeometry blocks = run.geometry;
    blocks.block_q = blocks.block_k = kBlock;
    using bench::MaskKind;
    const bench::SyntheticLayers layers({MaskKind::kBand, MaskKind::kStripe, MaskKind::kRandom}, blocks,
                                        {.density = model.density});
    plan_ = make_plan(run, plan_path, [&](int step, int layer) { return layers.layer(step, layer); });
    dense_ = std::make_unique<DenseAttention>(backend, kPlanSteps, config.num_layers);
    planned_ = std::make_unique<PlannedAttention>(backend, plan_, run);
  }

  json run(bool planned) {
    SelfAttention& attention = planned ? static_cast<SelfAttention&>(*planned_) : *dense_;
    int& count = planned ? num_planned_ : num_dense_;
    attention.begin_forward(count / 2 % kPlanSteps,
                            count % 2 == 0 ? GuidanceBranch::kConditional : GuidanceBranch::kUnconditional);
    ++count;
    TransformerTimes times;
    std::vector<double> enqueued;  // when the host was done with each layer; on a device that is long before it has run
    const double start = now_seconds();
    const Tensor result = transformer_.forward(latents_, 500, prompt_, attention, &times,
                                               [&](int, const Tensor&) { enqueued.push_back(now_seconds() - start); });
    const double seconds = now_seconds() - start, enqueue_seconds = enqueued.back();
    std::adjacent_difference(enqueued.begin(), enqueued.end(), enqueued.begin());
    for (int64_t i = 0; i < result.size(); ++i) {
      if (!std::isfinite(result.f32()[i])) throw Error(ErrorKind::kNumeric, "the prediction is not finite");
    }
    return {{"seconds", seconds},
            {"attention_seconds", times.self_attention},
            {"enqueue_seconds", enqueue_seconds},
            {"layer_enqueue_seconds", median(enqueued)},
            {"density", planned ? plan_->density() : 1.0},
            {"peak_device_bytes", backend_.peak_memory_bytes()}};
  }

  /// A forward of the file's latents, text and timestep, of any size; the prediction goes to the other file. Planned
  /// when the file has masks: U8 [layers, heads, query blocks, key blocks], 1 where a block is computed.
  void predict(const std::string& in, const std::string& out) {
    const Safetensors file = Safetensors::open(in);
    const Tensor latents = converted(file.get("latents"), DType::kF32);
    const WanPrompt prompt = transformer_.prepare_prompt(converted(file.get("text"), DType::kF32));
    const double timestep = converted(file.get("timestep"), DType::kF32).f32()[0];
    RunDescription run = describe(latents, {1.0});
    std::unique_ptr<RunAttention> attention;
    if (file.contains("masks")) {
      const Tensor masks = file.get("masks");
      run.geometry.block_q = run.geometry.block_k = kBlock;
      const auto plan = make_plan(run, out + ".plan", [&](int, int layer) { return read_layer(masks, run, layer); });
      attention = std::make_unique<PlannedAttention>(backend_, plan, run);
    } else {
      attention = std::make_unique<DenseAttention>(backend_, 1, run.num_layers);
    }
    attention->begin_forward(0, GuidanceBranch::kConditional);
    write_safetensors(out, {{"prediction", transformer_.forward(latents, timestep, prompt, *attention)}});
  }

  json schedules() const {
    const MaskStreaming stats = backend_.mask_streaming();
    return {{"calls", stats.calls},
            {"ready", stats.ready},
            {"late", stats.late},
            {"unannounced", stats.unannounced},
            {"stall_seconds", stats.stall_seconds},
            {"work_seconds", stats.work_seconds},
            {"uploaded_bytes", stats.uploaded_bytes},
            {"peak_bytes", stats.peak_device_bytes}};
  }
  double load_seconds() const { return load_seconds_; }
  int num_layers() const { return transformer_.config().num_layers; }

 private:
  WanTransformer load(const std::string& weights, DType dtype, bool offload) {
    const double start = now_seconds();
    WanTransformer transformer = WanTransformer::load(backend_, weights, dtype, {.offload = offload});
    backend_.synchronize();
    backend_.trim_memory();
    load_seconds_ = now_seconds() - start;
    return transformer;
  }

  RunDescription describe(const Tensor& latents, std::vector<double> sigmas) const {
    RunDescription run;
    run.geometry = transformer_.geometry(static_cast<int>(latents.dim(1)), static_cast<int>(latents.dim(2)),
                                         static_cast<int>(latents.dim(3)));
    run.num_layers = transformer_.config().num_layers;
    run.sigmas = std::move(sigmas);
    return run;
  }

  /// A plan of blocks of kBlock × kBlock, through its file, as generation has it.
  static std::shared_ptr<const Plan> make_plan(const RunDescription& run, const std::string& path,
                                               const std::function<PlanLayer(int step, int layer)>& layer_of) {
    PlanInfo info;
    info.geometry = run.geometry;
    info.geometry.block_q = info.geometry.block_k = kBlock;
    info.num_layers = run.num_layers;
    info.sigmas = run.sigmas;
    info.step_entry.resize(run.sigmas.size());
    std::iota(info.step_entry.begin(), info.step_entry.end(), 0);
    info.energy_targets.assign(run.sigmas.size(), .9);
    info.provenance.transformers[0].name = "random weights";
    PlanWriter writer(info, path);
    for (int step = 0; step < info.num_entries(); ++step) {
      for (int layer = 0; layer < info.num_layers; ++layer) writer.add_layer(layer_of(step, layer));
    }
    writer.finish();
    std::shared_ptr<const Plan> plan = load_plan(path);
    fs::remove(path);  // it stays mapped
    return plan;
  }

  static PlanLayer read_layer(const Tensor& masks, const RunDescription& run, int layer) {
    const int heads = run.geometry.heads, rows = run.geometry.num_query_blocks(),
              columns = run.geometry.num_key_blocks();
    const std::vector<int64_t> expected{run.num_layers, heads, rows, columns};
    if (masks.dtype() != DType::kU8 || masks.shape() != expected) {
      throw Error(ErrorKind::kMismatch, "masks: expected U8 [" + std::to_string(run.num_layers) + ", " +
                                            std::to_string(heads) + ", " + std::to_string(rows) + ", " +
                                            std::to_string(columns) + "], for blocks of " + std::to_string(kBlock) +
                                            " tokens");
    }
    const uint8_t* kept = masks.data<uint8_t>() + int64_t{layer} * heads * rows * columns;
    PlanLayer result(static_cast<size_t>(heads));
    for (HeadPlan& head : result) {
      BlockMask mask(rows, columns);
      for (int row = 0; row < rows; ++row) {
        for (int column = 0; column < columns; ++column) mask.set(row, column, *kept++ != 0);
      }
      head.intervals = BlockIntervals::from_mask(mask);
    }
    return result;
  }

  Backend& backend_;
  double load_seconds_ = 0;
  WanTransformer transformer_;
  Tensor latents_;
  WanPrompt prompt_;
  std::shared_ptr<const Plan> plan_;
  std::unique_ptr<DenseAttention> dense_;
  std::unique_ptr<PlannedAttention> planned_;
  int num_dense_ = 0, num_planned_ = 0;
};

/// enqueue_seconds: of the host, from the start until it has asked for the last layer; what is left of a forward it
/// waits. layer_enqueue_seconds: the median layer's part. Once the driver's queue is full (some thousand kernels) the
/// host waits for the GPU in both, so a few layers (--layers) tell more of the host than the whole model.
json measure(Forwards& forwards, int runs) {
  json dense = json::array(), planned = json::array();
  for (int run = -1; run < runs; ++run) {  // one of each to warm up, and to choose algorithms
    const json a = forwards.run(false), b = forwards.run(true);
    if (run < 0) continue;
    dense.push_back(a);
    planned.push_back(b);
  }
  const auto median_of = [](const json& all, const char* key) {
    std::vector<double> values;
    for (const json& one : all) values.push_back(one.at(key).get<double>());
    return median(std::move(values));
  };
  const double dense_seconds = median_of(dense, "seconds"), planned_seconds = median_of(planned, "seconds");
  return {{"layers", forwards.num_layers()},
          {"load_seconds", forwards.load_seconds()},
          {"dense_seconds", dense_seconds},
          {"dense_attention_seconds", median_of(dense, "attention_seconds")},
          {"dense_enqueue_seconds", median_of(dense, "enqueue_seconds")},
          {"dense_layer_enqueue_seconds", median_of(dense, "layer_enqueue_seconds")},
          {"planned_seconds", planned_seconds},
          {"planned_attention_seconds", median_of(planned, "attention_seconds")},
          {"planned_enqueue_seconds", median_of(planned, "enqueue_seconds")},
          {"planned_layer_enqueue_seconds", median_of(planned, "layer_enqueue_seconds")},
          {"planned_speedup", dense_seconds / planned_seconds},
          {"density", planned.back().at("density")},
          {"peak_device_bytes", planned.back().at("peak_device_bytes")},
          {"schedules", forwards.schedules()},
          {"dense", dense},
          {"planned", planned}};
}

void serve(Forwards& forwards) {
  std::string line;
  while (std::getline(std::cin, line)) {
    json answer;
    try {
      std::istringstream words(line);
      std::string command, first, second;
      words >> command >> first >> second;
      if (command == "run" && (first == "dense" || first == "planned")) {
        answer = forwards.run(first == "planned");
      } else if (command == "predict" && !second.empty()) {
        forwards.predict(first, second);
        answer = {{"ok", true}};
      } else {
        answer = {{"error", "commands: run dense | run planned | predict IN OUT"}};
      }
    } catch (const std::exception& error) {
      answer = {{"error", error.what()}};
    }
    std::cout << answer.dump() << std::endl;
  }
}

Model find_model(const std::string& name) {
  for (const Model& model : kModels) {
    if (model.name == name) return model;
  }
  throw Error(ErrorKind::kUsage, "--model: is \"" + name + "\"; there are 14B-720p, 14B-480p, 1.3B-480p and small");
}

/// What may be asked for in the place of a model's own; 0: the model's.
struct Sizes {
  int layers = 0, frames = 0, height = 0, width = 0;
  double density = 0;
};

Model resized(Model model, const Sizes& sizes) {
  if (sizes.layers > 0) model.layers = sizes.layers;
  if (sizes.frames > 0) model.frames = sizes.frames;
  if (sizes.height > 0) model.height = sizes.height;
  if (sizes.width > 0) model.width = sizes.width;
  if (sizes.density > 0) model.density = sizes.density;
  return model;
}

}  // namespace
}  // namespace calibatt

int main(int argc, char** argv) {
  using namespace calibatt;
  CLI::App app("Forwards of Wan 2.1 with random weights, dense and planned.");
  std::string backend_name = "cuda", model_name = "14B-720p", dtype_flag = "bf16", weights;
  int runs = 5;
  Sizes sizes;
  bool serving = false, offload = false;
  app.add_option("--backend", backend_name);
  app.add_option("--model", model_name,
                 "14B-720p, 14B-480p, 1.3B-480p or small: sizes, and weights where none are given");
  app.add_option("--dtype", dtype_flag, "Arithmetic: bf16, fp16 (on a GPU) or fp32")->check(CLI::IsMember(kDTypes));
  app.add_option("--layers", sizes.layers, "of the model that is made; default: all")->check(CLI::PositiveNumber);
  app.add_option("--weights", weights, "A transformer folder, instead of making one");
  app.add_option("--frames", sizes.frames, "of the latents")->check(CLI::PositiveNumber);
  app.add_option("--height", sizes.height)->check(CLI::PositiveNumber);
  app.add_option("--width", sizes.width)->check(CLI::PositiveNumber);
  app.add_option("--density", sizes.density, "of the plan")->check(CLI::Range(0.01, 1.0));
  app.add_option("--runs", runs)->check(CLI::PositiveNumber);
  app.add_flag("--offload", offload, "Weights of the blocks stay in host memory");
  app.add_flag("--serve", serving, "Commands from the standard input");
  CLI11_PARSE(app, argc, argv);
  try {
    const Model model = resized(find_model(model_name), sizes);
    cuda::add_cuda_backend();
    const auto backend = make_backend(backend_name);
    const DType dtype = kDTypes.at(dtype_flag);
    if (dtype == DType::kF16 && !backend->has_fp16()) {
      throw Error(ErrorKind::kUsage,
                  "--dtype fp16: " + std::string(backend->name()) + " has no half precision; use --backend cuda");
    }
    const std::string temporary = fs::temp_directory_path() / ("calibatt_forward_bench_" + std::to_string(getpid()));
    const bool make = weights.empty();
    if (make) write_model(model, weights = temporary);
    Forwards forwards(*backend, model, dtype, weights, offload, temporary + ".plan");
    if (make) fs::remove_all(temporary);
    json about = {{"backend", backend->name()},
                  {"device", backend->device_name()},
                  {"dtype", dtype_flag},
                  {"attention_kernel", backend->attention_kernel(dtype, model.head_dim)},
                  {"model", model.name},
                  {"offload", offload},
                  {"load_seconds", forwards.load_seconds()}};
    if (serving) {
      about["ready"] = true;
      std::cout << about.dump() << std::endl;
      serve(forwards);
      return 0;
    }
    about.update(measure(forwards, runs));
    std::cout << about.dump(2) << std::endl;
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "calibatt_forward_bench: %s\n", error.what());
    return 1;
  }
}
