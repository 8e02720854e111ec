#include "calibatt/fit.h"

#include "attention/plan_fit.h"
#include "backend/cpu/make_backend.h"
#include "models/registry.h"
#include "pipeline/device_backends.h"
#include "pipeline/options.h"
#include "pipeline/precision.h"
#include "pipeline/rank_layout.h"

namespace calibatt {

void check_arithmetic(const LoadOptions& load, const GenerateOptions& options) {
  const bool usual = load.precision != Precision::kF16 && load.weights == WeightsPrecision::kAuto &&
                     options.attention_dtype == AttentionDtype::kModel;
  if (usual) return;  // every machine has it, and none need be looked at
  add_device_backends();
  const std::unique_ptr<ModelFiles> files = open_model(load.model_dir, parts_of(load));
  for (const int device : load.devices) {
    const std::unique_ptr<Backend> backend = make_backend(load.backend, device, devices_flag(load));
    const DType dtype = choose_dtype(load.precision, *backend);
    check_weights_dtype(load.weights, dtype);
    if (has_eight_bit_layers(load, *files)) eight_bit_type(load.weights, backend->eight_bit_ops());
    check_attention_dtype(options.attention_dtype, dtype);
    if (options.attention_dtype == AttentionDtype::kFP8) {
      static_cast<void>(backend->attention_kernel(dtype, files->description().head_dim, true));
    }
  }
}

std::string plan_mismatch(const LoadOptions& load, const std::string& plan_path, const GenerateOptions* resolved) {
  const std::shared_ptr<const Plan> plan = load_plan(plan_path);
  const std::unique_ptr<ModelFiles> files = open_model(load.model_dir, parts_of(load));
  const ModelDescription& model = files->description();
  RunDescription run;
  run.transformers.resize(model.experts.size());  // of unknown weights
  run.num_layers = model.num_layers;
  run.geometry = plan->geometry();
  run.geometry.heads = model.num_heads;
  run.geometry.head_dim = model.head_dim;
  if (resolved != nullptr) {
    const AttentionGeometry video = model.geometry(video_size(*resolved));
    run.geometry.frames = video.frames;
    run.geometry.height = video.height;
    run.geometry.width = video.width;
    run.video_frames = *resolved->video_frames;
    run.video_height = *resolved->height;
    run.video_width = *resolved->width;
  }
  return fit_plan(*plan, run).mismatch;
}

void check_plan(const LoadOptions& load, const GenerateOptions& resolved) {
  if (resolved.plan_path.empty() || resolved.on_mismatch == OnMismatch::kDense) return;
  const std::string mismatch = plan_mismatch(load, resolved.plan_path, &resolved);
  if (!mismatch.empty()) throw plan_refusal(mismatch);
}

}  // namespace calibatt
