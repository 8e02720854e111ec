#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model_settings/load_options.h"
#include "models/transformer_fingerprint.h"
#include "models/wan/folder.h"
#include "models/wan/transformer.h"

namespace calibatt {

/// The transformers of a Wan model: one, or those of Wan 2.2 A14B, of which each denoises some of the steps. Where all
/// of them fit (host memory, offloaded blocks, or shards) they are loaded once and stay. On a GPU that holds all of a
/// transformer there is room for one: it is loaded when its steps begin, and the other is dropped before.
class WanExperts {
 public:
  /// Merges the options' LoRAs, looks at every transformer's settings, and loads those that stay, or else the first.
  WanExperts(const WanFolder& folder, Backend& backend, DType dtype, const ModelLoadOptions& options);

  int size() const { return static_cast<int>(parts_.size()); }
  bool is_loaded(int expert) const { return part(expert).loaded != nullptr; }
  /// Loads it if need be; `progress` hears that something is done, and may end it. What was made with another one that
  /// had to go (prompts) is worthless then.
  WanTransformer& use(int expert, const WorkProgress& progress);
  /// As VideoModel::fingerprint.
  std::string fingerprint(int expert, const std::string& like, const WorkProgress& progress);
  void release_buffers();

 private:
  struct Part {
    std::string path;
    ModelLoadOptions options;  ///< of a loading during a run: with its own LoRAs
    std::unique_ptr<WanTransformer> loaded;
    TransformerFingerprint fingerprint;
  };
  const Part& part(int expert) const { return parts_.at(static_cast<size_t>(expert)); }
  void load(Part& part, const WorkProgress& progress);

  Backend& backend_;
  DType dtype_;
  bool all_stay_;
  std::vector<Part> parts_;
};

}  // namespace calibatt
