#include "model_settings/component.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "io/gguf.h"
#include "io/recognise.h"
#include "io/safetensors.h"
#include "io/torch_checkpoint.h"

namespace calibatt {

Component open_component_folder(const std::string& folder, const ModelLoadOptions& options) {
  JsonConfig config = JsonConfig::load(folder + "/config.json");
  if (config.has("quantization_config")) {
    config.fail("quantization_config",
                "the weights are quantized, which this version does not read; give the model as it was published in "
                "BF16 or F32");
  }
  return {std::move(config), Safetensors::open_folder(folder, options.warn)};
}

void warn_of_unread_settings(const JsonConfig& config, const std::vector<std::string_view>& harmless,
                             const ModelLoadOptions& options) {
  if (!options.warn) return;
  std::string names;
  for (const std::string& key : config.unread()) {
    if (std::ranges::find(harmless, key) == harmless.end()) names += (names.empty() ? "" : ", ") + quoted_name(key);
  }
  if (names.empty()) return;
  options.warn(config.where() + ": settings that this version does not know are passed over: " + names +
               "; if they change what the model computes, its videos will differ");
}

void add_weight_files(const Component& component, std::vector<std::string>& files) {
  for (std::string& path : component.tensors.file_paths()) files.push_back(std::move(path));
}

void add_settings(const JsonConfig& config, std::string& settings) {
  nlohmann::json said = nlohmann::json::object();
  for (const auto& [key, value] : config.json().items()) {
    if (!key.starts_with('_')) said[key] = value;
  }
  settings += said.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

uint64_t num_elements(const MappedTensors& tensors) {
  uint64_t count = 0;
  for (const auto& [name, entry] : tensors.entries()) {
    uint64_t elements = 1;
    for (const int64_t extent : entry.shape) elements *= static_cast<uint64_t>(extent);
    count += elements;
  }
  return count;
}

DType dtype_beside(DType transformer) {
  return transformer == DType::kF16 ? DType::kBF16 : transformer;
}

void require_one_model(const std::string& folder, const std::string& found_what, int found,
                       const std::string& expected_what, int expected) {
  if (found == expected) return;
  throw Error(ErrorKind::kMismatch, folder + ": " + found_what + " " + std::to_string(found) + " and " + expected_what +
                                        " " + std::to_string(expected) + "; they are not of one model");
}

void require_part(const MappedTensors& tensors, const std::string& flag, const std::string& missing) {
  std::vector<std::string> names;
  for (const auto& [name, entry] : tensors.entries()) names.push_back(entry.stored_name);
  const std::string part = recognise_part(names);
  if (part.empty() || part.ends_with(flag)) return;
  throw Error(ErrorKind::kFormat,
              tensors.path() + ": was given as " + flag + ", which holds " + quoted_name(missing) + ", but is " + part);
}

MappedTensors open_tensor_file(const std::string& path) {
  if (path.ends_with(".gguf")) return open_gguf(path);
  if (path.ends_with(".safetensors")) return Safetensors::open(path);
  return open_torch_checkpoint(path);
}

}  // namespace calibatt
