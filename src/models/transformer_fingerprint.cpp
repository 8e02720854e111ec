#include "models/transformer_fingerprint.h"

#include <algorithm>

#include "io/fingerprint.h"
#include "models/lora.h"

namespace calibatt {
namespace {

FingerprintProgress tensors_of(const WorkProgress& progress) {
  return [&progress](int done, int total) {
    if (progress) progress(done, total, 0);
  };
}

}  // namespace

std::string TransformerFingerprint::like(const std::string& recorded, const WorkProgress& progress) {
  if (fingerprint_scheme(recorded) == FingerprintScheme::kStored) {
    if (as_stored_.empty()) {
      const Component transformer = source_.open(source_.overlay);
      as_stored_ = stored_fingerprint(transformer.config, transformer.tensors, tensors_of(progress));
    }
    return as_stored_;
  }
  const FingerprintParts theirs = parts_of_fingerprint(recorded);
  const bool by_sources = !source_.loras.empty() && (recorded.empty() || !theirs.sources.empty());
  // The base alone is read faster than the LoRAs are merged into it.
  if (by_sources && theirs.sources == sources(progress)) return recorded;
  const std::string& own = values(progress);
  if (own == theirs.values) return recorded;
  return by_sources ? merged_fingerprint(own, sources(progress)) : own;
}

const std::string& TransformerFingerprint::values(const WorkProgress& progress) {
  if (of_values_.empty()) {
    const Component transformer = source_.open(source_.overlay);
    of_values_ = values_fingerprint(source_.settings(transformer.config), transformer.tensors, tensors_of(progress));
  }
  return of_values_;
}

const std::string& TransformerFingerprint::sources(const WorkProgress& progress) {
  if (of_sources_.empty()) {
    const Component base = source_.open(source_.without_loras);
    std::vector<std::string> loras;
    loras.reserve(source_.loras.size());
    for (const Lora& lora : source_.loras) loras.push_back(lora_fingerprint(lora));
    std::ranges::sort(loras);  // in another order the sum differs in its last bits at most
    Hasher hasher;
    hasher.update(values_fingerprint(source_.settings(base.config), base.tensors, tensors_of(progress)));
    for (const std::string& lora : loras) hasher.update(lora);
    of_sources_ = hasher.hex();
  }
  return of_sources_;
}

}  // namespace calibatt
