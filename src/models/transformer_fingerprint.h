#pragma once

#include <functional>
#include <string>

#include "base/work_progress.h"
#include "models/component.h"

namespace calibatt {

/// The fingerprint of a transformer's weights and settings in each scheme (io/fingerprint.h), made when first asked for
/// and kept.
class TransformerFingerprint {
 public:
  /// open: with the overlay that the transformer runs with. settings: what of a configuration changes the arithmetic.
  TransformerFingerprint(std::function<Component()> open, std::function<std::string(const JsonConfig&)> settings);

  /// As VideoModel::fingerprint.
  const std::string& like(const std::string& recorded, const WorkProgress& progress);

 private:
  std::function<Component()> open_;
  std::function<std::string(const JsonConfig&)> settings_;
  std::string of_values_, as_stored_;
};

}  // namespace calibatt
