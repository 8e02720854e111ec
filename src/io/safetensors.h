#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "base/tensor.h"
#include "io/mapped_tensors.h"

namespace calibatt {

/// Ends the message about a damaged file. For who knows a better remedy.
inline constexpr std::string_view kCopyAnew = " (copy it anew)";

/// Named tensors in safetensors files, mapped into memory. Format: 8 bytes little-endian header length, a JSON object
/// (name → dtype, shape, byte range; "__metadata__" → strings), then the tensors' bytes, row-major, little-endian,
/// without gaps. The whole header is checked when a file is opened; tensor bytes are touched only when used. Errors:
/// kNotFound, kUnreadable, and kFormat (`FILE: tensor "…": reason`) for anything that is not exactly this format.
class Safetensors : public MappedTensors {
 public:
  /// `path`: one `*.safetensors` file, or a `*.safetensors.index.json` that names its shards.
  static Safetensors open(const std::string& path);

  /// The weights of a model component's folder: `diffusion_pytorch_model` (diffusers) or `model` (transformers), in one
  /// file or sharded; where there are both, as diffusers and transformers choose, and with a warning. Throws
  /// Error(kNotFound) naming what was looked for, or what lies there instead.
  static Safetensors open_folder(const std::string& folder, const std::function<void(const std::string&)>& warn = {});

  /// "__metadata__"; of sharded files, all of them joined (the first file wins).
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  explicit Safetensors(std::string path) : MappedTensors(std::move(path)) {}
  void add_file(const std::string& path);
  std::map<std::string, std::string> metadata_;
};

/// Writes one file, atomically and deterministically (equal input gives equal bytes): tensors by descending element
/// size, then by name, so that all are aligned. Throws Error(kIo). `poll` is called some times a second; what it throws
/// leaves no file.
void write_safetensors(const std::string& path, const std::map<std::string, Tensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {}, const std::function<void()>& poll = {});

}  // namespace calibatt
