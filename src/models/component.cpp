#include "models/component.h"

#include "io/safetensors.h"
#include "io/torch_checkpoint.h"

namespace calibatt {

Component open_component_folder(const std::string& folder) {
  return {JsonConfig::load(folder + "/config.json"), Safetensors::open_folder(folder)};
}

MappedTensors open_tensor_file(const std::string& path) {
  if (path.ends_with(".safetensors")) return Safetensors::open(path);
  return open_torch_checkpoint(path);
}

}  // namespace calibatt
