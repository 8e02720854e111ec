#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/work_progress.h"
#include "calibatt/lora.h"
#include "model_settings/component.h"

namespace calibatt {

/// The fingerprint of a transformer's weights and settings in each scheme (io/fingerprint.h), made when first asked for
/// and kept.
class TransformerFingerprint {
 public:
  struct Source {
    std::function<Component(const std::shared_ptr<const WeightOverlay>& overlay)> open;
    std::function<std::string(const JsonConfig&)> settings;  ///< what of a configuration changes the arithmetic
    std::shared_ptr<const WeightOverlay> overlay, without_loras;
    std::vector<Lora> loras;  ///< that change it
  };
  explicit TransformerFingerprint(Source source) : source_(std::move(source)) {}

  /// As VideoModel::fingerprint. Where `recorded` is of the same weights, it is what comes back: a plan that was made
  /// with a LoRA is for the same base and LoRA, though their sum has other last bits here, and for a model that was
  /// saved with the same sum.
  std::string like(const std::string& recorded, const WorkProgress& progress);

 private:
  const std::string& values(const WorkProgress& progress);
  const std::string& sources(const WorkProgress& progress);

  Source source_;
  std::string of_values_, of_sources_, as_stored_;
};

}  // namespace calibatt
