#include "calibatt/fit.h"

#include <filesystem>

#include "attention/plan_fit.h"
#include "backend/cpu/make_backend.h"
#include "model_settings/folder_fingerprint.h"
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

namespace {

/// A run of this model with this plan, as far as both tell; of unknown weights.
RunDescription run_of(const ModelDescription& model, const Plan& plan) {
  RunDescription run;
  run.transformers.resize(model.experts.size());
  run.num_layers = model.num_layers;
  run.geometry = plan.geometry();
  run.geometry.heads = model.num_heads;
  run.geometry.head_dim = model.head_dim;
  return run;
}

}  // namespace

std::string plan_mismatch(const LoadOptions& load, const std::string& plan_path, const GenerateOptions* resolved) {
  const std::shared_ptr<const Plan> plan = load_plan(plan_path);
  const std::unique_ptr<ModelFiles> files = open_model(load.model_dir, parts_of(load));
  const ModelDescription& model = files->description();
  RunDescription run = run_of(model, *plan);
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

std::string plan_weights_mismatch(const LoadOptions& load, const std::string& plan_path) {
  if (!load.loras.empty() || !load.transformer.empty() || !load.transformer_2.empty()) return "";
  const std::shared_ptr<const Plan> plan = load_plan(plan_path);
  const std::unique_ptr<ModelFiles> files = open_model(load.model_dir, parts_of(load));
  RunDescription run = run_of(files->description(), *plan);
  for (size_t expert = 0; expert < run.transformers.size(); ++expert) {
    const std::string name = expert == 0 ? "transformer" : "transformer_" + std::to_string(expert + 1);
    const std::string folder = load.model_dir + "/" + name;
    if (!std::filesystem::is_regular_file(folder + "/config.json")) return "";
    run.transformers[expert] = {files->description().name + " " + name,
                                [folder](const std::string& like) { return folder_fingerprint(folder, like); }};
  }
  return fit_plan(*plan, run).other_weights;
}

}  // namespace calibatt
