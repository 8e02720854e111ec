#include "calibatt/fit.h"

#include "attention/plan_fit.h"
#include "backend/cpu/make_backend.h"
#include "models/registry.h"
#include "pipeline/device_backends.h"
#include "pipeline/options.h"
#include "pipeline/precision.h"
#include "pipeline/rank_layout.h"

namespace calibatt {

void check_attention_kernel(const LoadOptions& load, const GenerateOptions& options) {
  if (options.attention_dtype != AttentionDtype::kFP8) return;
  add_device_backends();
  const int head_dim = open_model(load.model_dir, parts_of(load))->description().head_dim;
  for (const int device : load.devices) {
    const std::unique_ptr<Backend> backend = make_backend(load.backend, device, devices_flag(load));
    static_cast<void>(backend->attention_kernel(dtype_of(load.precision).value_or(DType::kBF16), head_dim, true));
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

}  // namespace calibatt
