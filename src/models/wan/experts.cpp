#include "models/wan/experts.h"

#include <utility>

#include "models/lora.h"
#include "models/original_layout.h"

namespace calibatt {

WanExperts::WanExperts(const WanFolder& folder, Backend& backend, DType dtype, const ModelLoadOptions& options)
    : backend_(backend),
      dtype_(dtype),
      all_stay_(folder.transformers.size() == 1 || options.offload || options.shards || backend.in_host_memory()) {
  const int count = static_cast<int>(folder.transformers.size());
  for (int expert = 0; expert < count; ++expert) {
    const WanTransformerPath& path = folder.transformers[static_cast<size_t>(expert)];
    ModelLoadOptions own = options;
    own.settings = path.settings;
    own.shards.model = "transformer " + std::to_string(expert) + ", ";
    own.overlay =
        merged_overlay(options.loras, expert, count, open_transformer(path.path, {.settings = path.settings}).tensors,
                       options.overlay, options.warn);
    std::erase_if(own.loras, [&](const Lora& lora) { return !concerns(lora, expert, count); });
    TransformerFingerprint fingerprint({
        [path](const std::shared_ptr<const WeightOverlay>& overlay) {
          return open_transformer(path.path, {.settings = path.settings, .overlay = overlay});
        },
        [](const JsonConfig& config) { return WanTransformerConfig::from(config).fingerprint_settings(); },
        own.overlay,
        options.overlay,
        own.loras,
    });
    Part part{path.path, std::move(own), nullptr, std::move(fingerprint)};
    part.options.progress = nullptr;
    parts_.push_back(std::move(part));
  }
  const int loaded = all_stay_ ? count : 1;
  for (int expert = 0; expert < loaded; ++expert) {
    load(parts_[static_cast<size_t>(expert)], [&](int done, int total, double within) {
      if (options.progress) options.progress(expert * total + done, loaded * total, within);
    });
  }
}

void WanExperts::load(Part& part, const WorkProgress& progress) {
  ModelLoadOptions options = part.options;
  options.progress = progress;
  part.loaded = std::make_unique<WanTransformer>(WanTransformer::load(backend_, part.path, dtype_, options));
  part.options.warn = nullptr;  // what was odd in the files was said once
}

WanTransformer& WanExperts::use(int expert, const WorkProgress& progress) {
  Part& part = parts_.at(static_cast<size_t>(expert));
  if (part.loaded == nullptr) {
    for (Part& other : parts_) other.loaded.reset();
    backend_.trim_memory();
    load(part, [&](int, int total, double) {
      if (progress) progress(0, total, 0);
    });
  }
  return *part.loaded;
}

std::string WanExperts::fingerprint(int expert, const std::string& like, const WorkProgress& progress) {
  return parts_.at(static_cast<size_t>(expert)).fingerprint.like(like, progress);
}

void WanExperts::release_buffers() {
  for (Part& part : parts_) {
    if (part.loaded) part.loaded->release_buffers();
  }
}

}  // namespace calibatt
