#include "backend/cpu/make_backend.h"
#include "calibatt/pipeline.h"
#include "calibatt/plan.h"
#include "models/registry.h"
#include "pipeline/device_backends.h"
#include "pipeline/first_frame.h"
#include "pipeline/options.h"
#include "pipeline/precision.h"
#include "pipeline/rank_layout.h"
#include "pipeline/run_memory.h"
#include "pipeline/weight_placement.h"

namespace calibatt {

struct ModelOnDisk::Impl {
  std::unique_ptr<ModelFiles> files;
  ModelInfo info;
  std::vector<Lora> loras;
  std::map<std::string, std::string> parts;
  std::optional<DType> dtype;  ///< where it is asked for by name
  std::vector<std::string> kept_layers;
  std::string weights_dtype;
  bool on_host = false;  ///< where all transformers of a model stay
  bool offload = false;  ///< of a device
  FileHashes hashes;     ///< empty until somebody asks
  int num_ranks = 1;
  int weight_ranks = 1;  ///< Arithmetic::weight_ranks, as far as it was asked for
  std::string devices_source;

  RankLayout layout_of(const GenerateOptions& resolved) const {
    return rank_layout(num_ranks, resolved, files->description(), devices_source);
  }
};

ModelOnDisk::ModelOnDisk(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ModelOnDisk::ModelOnDisk(ModelOnDisk&&) noexcept = default;
ModelOnDisk::~ModelOnDisk() = default;

ModelOnDisk ModelOnDisk::open(const std::string& model_dir) {
  LoadOptions options;
  options.model_dir = model_dir;
  return open(options);
}

ModelOnDisk ModelOnDisk::open(const LoadOptions& options) {
  check_devices(options);
  auto impl = std::make_unique<Impl>();
  impl->files = open_model(options.model_dir, parts_of(options));
  impl->loras = options.loras;
  impl->num_ranks = static_cast<int>(options.devices.size());
  impl->devices_source = options.devices_source;
  impl->parts = names_of_parts(options);
  check_precision(options, *impl->files);
  check_weight_placement(options, impl->files->description());
  if (options.shard_weights == ShardWeights::kOn) impl->weight_ranks = impl->num_ranks;
  impl->dtype = dtype_of(options.precision);
  impl->kept_layers = options.kept_layers;
  if (has_eight_bit_layers(options, *impl->files)) impl->weights_dtype = weights_dtype_name(options);
  add_device_backends();
  impl->on_host = computes_on_host(options.backend);
  impl->offload = options.offload && !impl->on_host;
  const ModelDescription& model = impl->files->description();
  ModelInfo& info = impl->info;
  info.name = model.name;
  info.kind = model.kind;
  info.defaults = with_defaults({}, model);
  info.width_multiple = model.pixels_per_latent * model.patch_size[2];
  info.height_multiple = model.pixels_per_latent * model.patch_size[1];
  info.frames_multiple = model.frames_per_latent;
  info.num_layers = model.num_layers;
  info.num_heads = model.num_heads;
  info.head_dim = model.head_dim;
  info.takes_image = model.takes_image;
  info.max_prompt_tokens = model.max_prompt_tokens;
  return ModelOnDisk(std::move(impl));
}

const ModelInfo& ModelOnDisk::info() const {
  return impl_->info;
}

GenerateOptions ModelOnDisk::resolved(const GenerateOptions& options) const {
  if (impl_->dtype) check_attention_dtype(options.attention_dtype, *impl_->dtype);
  GenerateOptions run =
      resolve_options(options, impl_->files->description(), allowed_eight_bits(options, !impl_->weights_dtype.empty()));
  impl_->layout_of(run);  // throws
  return run;
}

std::vector<std::string> ModelOnDisk::unread(const GenerateOptions& options) const {
  return unread_options(options, impl_->files->description());
}

void ModelOnDisk::check_image(const GenerateOptions& options) const {
  check_picture(options, impl_->files->description());
}

RunReport ModelOnDisk::expected_report(const GenerateOptions& options) const {
  const ModelDescription& model = impl_->files->description();
  RunReport report;
  report.options = resolved(options);
  report.model_name = model.name;
  report.loras = impl_->loras;
  report.parts = impl_->parts;
  report.weights_dtype = impl_->weights_dtype;
  if (impl_->hashes.files.empty()) impl_->hashes = hashes_of(model, impl_->loras);
  enter_hashes(impl_->hashes, report);
  report.image_hash = picture_hash(options.image);
  report.noise_levels = noise_levels(report.options, model);
  if (!options.plan_path.empty()) report.plan_checksum = plan_checksum_of(options.plan_path);
  return report;
}

bool ModelOnDisk::offloads() const {
  return impl_->offload;
}

MemoryEstimate ModelOnDisk::memory(const GenerateOptions& options, Precision precision,
                                   WeightsPrecision weights) const {
  const GenerateOptions run = resolved(options);
  Arithmetic loaded(dtype_of(precision).value_or(DType::kBF16));
  loaded.eight_bit_layers = is_eight_bits(weights) && !impl_->files->keeps_all_layers(impl_->kept_layers);
  loaded.weight_ranks = impl_->weight_ranks;
  loaded.on_host = impl_->on_host;
  loaded.offload = impl_->offload;
  if (loaded.eight_bit_layers) loaded.kept_layers = impl_->kept_layers;
  MemoryEstimate needed = run_memory(*impl_->files, run, impl_->layout_of(run), loaded);
  // Ranks that share weights share these too; else each has its own.
  if (!impl_->offload && impl_->weight_ranks == 1) needed.host_weights *= static_cast<uint64_t>(impl_->num_ranks);
  if (impl_->on_host && impl_->weight_ranks == 1) needed.weights *= impl_->files->description().experts.size();
  return needed;
}

}  // namespace calibatt
