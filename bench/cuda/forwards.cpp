#include "forwards.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>
#include <vector>

#include "attention/run_attention.h"
#include "base/error.h"
#include "io/safetensors.h"
#include "models/mochi/transformer.h"
#include "models/wan/transformer.h"
#include "plan/plan.h"
#include "plan/plan_writer.h"
#include "plan/synthetic_masks.h"
#include "random_tensor.h"

namespace calibatt::bench {
namespace {

using nlohmann::json;
constexpr int kTextTokens = 60, kPlanSteps = 2, kBlock = 128;

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// In what the models differ here: the prompts of a run, and the hook behind each layer.
std::vector<int> text_tokens_of_run(const WanTransformer&) {
  return {kTextTokens};
}
std::vector<int> text_tokens_of_run(const MochiTransformer&) {
  return {kTextTokens, 0};  // an empty negative prompt has no tokens
}
int text_dim(const WanTransformer& transformer) {
  return transformer.config().text_dim;
}
int text_dim(const MochiTransformer& transformer) {
  return transformer.config().text_embed_dim;
}
using AfterLayer = std::function<void()>;
Tensor forward(WanTransformer& transformer, const Tensor& latents, double timestep, const WanPrompt& prompt,
               SelfAttention& attention, TransformerTimes* times, const AfterLayer& after_layer) {
  return transformer.forward(latents, timestep, prompt, attention, times, [&](int, const Tensor&) { after_layer(); });
}
Tensor forward(MochiTransformer& transformer, const Tensor& latents, double timestep, const MochiPrompt& prompt,
               SelfAttention& attention, TransformerTimes* times, const AfterLayer& after_layer) {
  return transformer.forward(latents, timestep, prompt, attention, times,
                             [&](int, const Tensor&, const Tensor&) { after_layer(); });
}

/// A plan of blocks of kBlock × kBlock, through its file, as generation has it.
std::shared_ptr<const Plan> make_plan(const RunDescription& run, const std::string& path, bool keep,
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
  if (!keep) std::filesystem::remove(path);  // it stays mapped
  return plan;
}

PlanLayer read_layer(const Tensor& masks, const RunDescription& run, int layer) {
  const int heads = run.geometry.heads, rows = run.geometry.num_query_blocks(), columns = run.geometry.num_key_blocks();
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

template <class Transformer>
class ForwardsOf final : public Forwards {
 public:
  ForwardsOf(Backend& backend, const ForwardModel& model, const ForwardsOptions& options)
      : backend_(backend), eight_bit_attention_(options.eight_bit_attention), transformer_(load(options)) {
    const int64_t channels = transformer_.config().in_channels;
    latents_ = converted(random_tensor({channels, model.frames, model.height, model.width}, 1), DType::kF32);
    for (const int tokens : text_tokens_of_run(transformer_)) {
      Tensor text;
      if (tokens > 0) text = converted(random_tensor({tokens, text_dim(transformer_)}, 1), DType::kF32);
      prompts_.push_back(transformer_.prepare_prompt(text));
    }
    const RunDescription run = describe(latents_, {1.0, 0.5});
    static_assert(kPlanSteps == 2);
    AttentionGeometry blocks = run.geometry;
    blocks.block_q = blocks.block_k = kBlock;
    const SyntheticLayers layers({MaskKind::kBand, MaskKind::kStripe, MaskKind::kRandom}, blocks,
                                 {.density = model.density});
    plan_ = make_plan(run, options.plan_path, options.keep_plan,
                      [&](int step, int layer) { return layers.layer(step, layer); });
    dense_ = std::make_unique<DenseAttention>(backend, kPlanSteps, num_layers());
    planned_ = std::make_unique<PlannedAttention>(backend, plan_, run);
    if (eight_bit_attention_) {
      dense_->use_eight_bits(std::vector<bool>(kPlanSteps, true));
      planned_->use_eight_bits(std::vector<bool>(kPlanSteps, true));
    }
  }

  json run(bool planned) override {
    SelfAttention& attention = planned ? static_cast<SelfAttention&>(*planned_) : *dense_;
    int& count = planned ? num_planned_ : num_dense_;
    TransformerTimes times;
    std::vector<double> enqueued;  // the host's time for each layer; on a device it has run long after
    double enqueue_seconds = 0;
    std::vector<Tensor> results;
    const double start = now_seconds();
    for (const auto& prompt : prompts_) {
      attention.begin_forward(count / 2 % kPlanSteps,
                              count % 2 == 0 ? GuidanceBranch::kConditional : GuidanceBranch::kUnconditional);
      ++count;
      const double begin = now_seconds();
      double last = begin;
      const Tensor result = forward(transformer_, latents_, 500, prompt, attention, &times, [&] {
        enqueued.push_back(now_seconds() - last);
        last += enqueued.back();
      });
      enqueue_seconds += last - begin;
      results.push_back(result);
    }
    const double seconds = now_seconds() - start;
    for (const Tensor& result : results) {  // no part of a forward
      for (int64_t i = 0; i < result.size(); ++i) {
        if (!std::isfinite(result.f32()[i])) throw Error(ErrorKind::kNumeric, "the prediction is not finite");
      }
    }
    return {{"seconds", seconds},
            {"attention_seconds", times.self_attention},
            {"enqueue_seconds", enqueue_seconds},
            {"layer_enqueue_seconds", median(enqueued)},
            {"density", planned ? plan_->density() : 1.0},
            {"peak_device_bytes", backend_.peak_memory_bytes()}};
  }

  void predict(const std::string& in, const std::string& out) override {
    const Safetensors file = Safetensors::open(in);
    const Tensor latents = converted(file.get("latents"), DType::kF32);
    Tensor text;
    if (text_tokens_of_run(transformer_).back() > 0 || file.contains("text")) {
      text = converted(file.get("text"), DType::kF32);
    }
    const auto prompt = transformer_.prepare_prompt(text);
    const double timestep = converted(file.get("timestep"), DType::kF32).f32()[0];
    RunDescription run = describe(latents, {1.0});
    std::unique_ptr<RunAttention> attention;
    if (file.contains("masks")) {
      const Tensor masks = file.get("masks");
      run.geometry.block_q = run.geometry.block_k = kBlock;
      const auto plan =
          make_plan(run, out + ".plan", false, [&](int, int layer) { return read_layer(masks, run, layer); });
      attention = std::make_unique<PlannedAttention>(backend_, plan, run);
    } else {
      attention = std::make_unique<DenseAttention>(backend_, 1, run.num_layers);
    }
    if (eight_bit_attention_) attention->use_eight_bits({true});
    attention->begin_forward(0, GuidanceBranch::kConditional);
    write_safetensors(out,
                      {{"prediction", forward(transformer_, latents, timestep, prompt, *attention, nullptr, [] {})}});
  }

  json schedules() const override {
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
  double load_seconds() const override { return load_seconds_; }
  int num_layers() const override { return transformer_.config().num_layers; }

 private:
  Transformer load(const ForwardsOptions& options) {
    const double start = now_seconds();
    Transformer transformer = Transformer::load(backend_, options.weights, options.dtype,
                                                {.offload = options.offload,
                                                 .eight_bit_layers = options.eight_bit_layers,
                                                 .eight_bit_type = options.eight_bit_type});
    backend_.synchronize();
    backend_.trim_memory();
    load_seconds_ = now_seconds() - start;
    return transformer;
  }

  RunDescription describe(const Tensor& latents, std::vector<double> sigmas) const {
    RunDescription run;
    run.geometry = transformer_.geometry(static_cast<int>(latents.dim(1)), static_cast<int>(latents.dim(2)),
                                         static_cast<int>(latents.dim(3)));
    run.num_layers = num_layers();
    run.sigmas = std::move(sigmas);
    return run;
  }

  using Prompt = decltype(std::declval<const Transformer&>().prepare_prompt(std::declval<const Tensor&>()));

  Backend& backend_;
  bool eight_bit_attention_;
  double load_seconds_ = 0;
  Transformer transformer_;
  Tensor latents_;
  std::vector<Prompt> prompts_;  // of the forwards of a run
  std::shared_ptr<const Plan> plan_;
  std::unique_ptr<DenseAttention> dense_;
  std::unique_ptr<PlannedAttention> planned_;
  int num_dense_ = 0, num_planned_ = 0;
};

}  // namespace

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::unique_ptr<Forwards> make_forwards(Backend& backend, const ForwardModel& model, const ForwardsOptions& options) {
  if (model.family == ForwardModel::Family::kMochi) {
    return std::make_unique<ForwardsOf<MochiTransformer>>(backend, model, options);
  }
  return std::make_unique<ForwardsOf<WanTransformer>>(backend, model, options);
}

}  // namespace calibatt::bench
