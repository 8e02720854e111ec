#include "models/transformer_fingerprint.h"

#include <utility>

#include "io/fingerprint.h"

namespace calibatt {

TransformerFingerprint::TransformerFingerprint(std::function<Component()> open,
                                               std::function<std::string(const JsonConfig&)> settings)
    : open_(std::move(open)), settings_(std::move(settings)) {}

const std::string& TransformerFingerprint::like(const std::string& recorded, const WorkProgress& progress) {
  const bool of_values = fingerprint_scheme(recorded) == FingerprintScheme::kValues;
  std::string& fingerprint = of_values ? of_values_ : as_stored_;
  if (fingerprint.empty()) {
    const Component transformer = open_();
    const auto tell = [&](int done, int total) {
      if (progress) progress(done, total, 0);
    };
    fingerprint = of_values ? values_fingerprint(settings_(transformer.config), transformer.tensors, tell)
                            : stored_fingerprint(transformer.config, transformer.tensors, tell);
  }
  return fingerprint;
}

}  // namespace calibatt
