#include "model_settings/folder_fingerprint.h"

#include "io/fingerprint.h"
#include "model_settings/component.h"
#include "model_settings/mochi_config.h"
#include "model_settings/wan_config.h"

namespace calibatt {
namespace {

std::string settings_of(const JsonConfig& config) {
  const std::string name = config.string("_class_name");
  if (name == "WanTransformer3DModel") return WanTransformerConfig::from(config).fingerprint_settings();
  if (name == "MochiTransformer3DModel") return MochiTransformerConfig::from(config).fingerprint_settings();
  config.fail("_class_name", "expected \"WanTransformer3DModel\" or \"MochiTransformer3DModel\", found \"" + name +
                                 "\"; give the folder of a transformer");
}

}  // namespace

std::string folder_fingerprint(const std::string& folder, const std::string& like) {
  settings_of(JsonConfig::load(folder + "/config.json"));  // refused before the weights are looked for
  const Component transformer = open_component_folder(folder);
  if (fingerprint_scheme(like) == FingerprintScheme::kStored) {
    return stored_fingerprint(transformer.config, transformer.tensors);
  }
  const std::string own = values_fingerprint(settings_of(transformer.config), transformer.tensors);
  return !like.empty() && own == parts_of_fingerprint(like).values ? like : own;
}

}  // namespace calibatt
