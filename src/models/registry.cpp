#include "models/registry.h"

#include <array>
#include <filesystem>
#include <string_view>

#include "base/error.h"
#include "io/input_file.h"
#include "io/json_config.h"
#include "io/recognise.h"
#include "models/mochi/model.h"
#include "models/wan/model.h"

namespace calibatt {
namespace {

namespace fs = std::filesystem;

/// A model that this version runs.
struct ModelKind {
  std::string_view class_name;  ///< "_class_name" of its model_index.json
  std::string_view summary;     ///< for messages
  /// Whether a folder without model_index.json is the model in its authors' own layout; null: that is not read.
  bool (*is_original)(const std::string& folder);
  std::unique_ptr<ModelFiles> (*open)(const std::string& folder, const ModelParts& parts);
  bool takes_parts = false;  ///< else `open` is never given any
};

constexpr std::array kModels{
    ModelKind{"WanPipeline", "Wan text-to-video", is_original_wan_folder, open_wan, true},
    ModelKind{"WanImageToVideoPipeline", "Wan image-to-video", nullptr, open_wan, true},
    ModelKind{"MochiPipeline", "Mochi 1", nullptr, open_mochi},
};

std::unique_ptr<ModelFiles> opened(const ModelKind& kind, const std::string& folder, const ModelParts& parts) {
  if (!parts.empty() && !kind.takes_parts) {
    throw Error(ErrorKind::kUsage, folder + ": is a " + std::string(kind.class_name) +
                                       ", of which no part is taken from elsewhere; leave out --transformer, "
                                       "--text-encoder and --vae");
  }
  return kind.open(folder, parts);
}

std::string known_kinds() {
  std::string text;
  for (const ModelKind& kind : kModels) {
    text += (text.empty() ? "" : ", ") + std::string(kind.class_name) + " (" + std::string(kind.summary) + ")";
  }
  return text;
}

}  // namespace

std::unique_ptr<ModelFiles> open_model(const std::string& folder, const ModelParts& parts) {
  if (!is_folder(folder)) {
    const std::string found = recognise_model_path(folder);
    throw Error(ErrorKind::kNotFound,
                folder + ": " +
                    (found.empty() ? "no such folder; give a model in the diffusers layout (a folder with "
                                     "model_index.json)"
                                   : found));
  }
  const std::string index_path = (fs::path(folder) / "model_index.json").string();
  if (!path_exists(index_path)) {
    for (const ModelKind& kind : kModels) {
      if (kind.is_original != nullptr && kind.is_original(folder)) return opened(kind, folder, parts);
    }
    if (const std::string found = recognise_model_path(folder); !found.empty()) {
      throw Error(ErrorKind::kNotFound, folder + ": " + found);
    }
    throw Error(ErrorKind::kNotFound, folder +
                                          ": holds no model_index.json; give a model in the diffusers layout, such as "
                                          "Wan2.1-T2V-1.3B-Diffusers, or Wan-AI's original Wan2.1-T2V-1.3B, which has "
                                          "a config.json");
  }
  const std::string class_name = JsonConfig::load(index_path).string("_class_name");
  for (const ModelKind& kind : kModels) {
    if (kind.class_name == class_name) return opened(kind, folder, parts);
  }
  throw Error(ErrorKind::kMismatch, index_path + ": is a " + class_name + "; this version runs " + known_kinds());
}

}  // namespace calibatt
