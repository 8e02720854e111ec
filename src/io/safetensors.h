#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/tensor.h"
#include "io/mapped_file.h"

namespace calibatt {

/// Named tensors in safetensors files, mapped into memory. Format: 8 bytes little-endian header length, a JSON object
/// (name → dtype, shape, byte range; "__metadata__" → strings), then the tensors' bytes, row-major, little-endian,
/// without gaps. The whole header is checked when a file is opened; tensor bytes are touched only when used. Errors:
/// kNotFound, kIo, and kFormat (`FILE: tensor "…": reason`) for anything that is not exactly this format.
class Safetensors {
 public:
  struct Entry {
    DType dtype = DType::kF32;
    std::vector<int64_t> shape;
    size_t begin = 0, size_bytes = 0;  ///< in the file
    size_t file = 0;
  };

  /// `path`: one `*.safetensors` file, or a `*.safetensors.index.json` that names its shards.
  static Safetensors open(const std::string& path);

  /// The weights of a model component's folder: `diffusion_pytorch_model` (diffusers) or `model` (transformers), in one
  /// file or sharded. Throws Error(kNotFound) naming what was looked for.
  static Safetensors open_folder(const std::string& folder);

  bool contains(const std::string& name) const { return entries_.contains(name); }
  /// By name, in sorted order.
  const std::map<std::string, Entry>& entries() const { return entries_; }
  /// "__metadata__"; of sharded files, all of them joined (the first file wins).
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::string& path() const { return path_; }  ///< as given to open(), for messages

  /// A view into the mapped file that keeps it mapped; read-only memory (writing to it is a fault: clone() first).
  /// Bytes that the file does not align to the element size are copied. Throws Error(kFormat) when there is no such
  /// tensor.
  Tensor get(const std::string& name) const;
  /// The same, checked to have this shape; for weights, whose expected shape the configuration gives.
  Tensor get(const std::string& name, const std::vector<int64_t>& shape) const;
  /// The file that holds a tensor: a shard, where there are several.
  const std::string& file_of(const std::string& name) const { return files_[entry(name).file]->path(); }
  /// Asks the system to begin reading a tensor from the disk; does not wait.
  void read_ahead(const std::string& name) const;
  /// The file's bytes of a tensor, unaligned as they may be.
  std::span<const unsigned char> raw_bytes(const std::string& name) const;

 private:
  void add_file(const std::string& path);
  const Entry& entry(const std::string& name) const;
  std::string path_;
  std::vector<std::shared_ptr<const MappedFile>> files_;
  std::map<std::string, Entry> entries_;
  std::map<std::string, std::string> metadata_;
};

/// Writes one file, atomically and deterministically (equal input gives equal bytes): tensors by descending element
/// size, then by name, so that all are aligned. Throws Error(kIo).
void write_safetensors(const std::string& path, const std::map<std::string, Tensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace calibatt
