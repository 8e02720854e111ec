#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/tensor.h"
#include "io/mapped_file.h"
#include "io/stored_form.h"

namespace calibatt {

/// Named tensors in files that are mapped into memory, whatever the files' format: safetensors.h and
/// torch_checkpoint.h open them. What describes the tensors is checked when a file is opened; their bytes are touched
/// only when used.
class MappedTensors {
 public:
  struct Entry {
    DType dtype = DType::kF32;  ///< of the values that get gives
    StoredForm form = StoredForm::kValues;
    std::vector<int64_t> shape;
    size_t begin = 0, size_bytes = 0;  ///< in the file
    size_t file = 0;
    std::shared_ptr<const std::function<Tensor(const Tensor& stored)>> change;  ///< null: none
    std::string stored_name;  ///< as the file has it; differs from the name here after renamed()
  };

  bool contains(const std::string& name) const { return entries_.contains(name); }
  /// By name, in sorted order.
  const std::map<std::string, Entry>& entries() const { return entries_; }
  const std::string& path() const { return path_; }  ///< as it was opened, for messages
  std::vector<std::string> file_paths() const;       ///< one, or the shards

  /// The one way to a tensor's values. A view into the mapped file that keeps it mapped; read-only memory (writing to
  /// it is a fault: clone() first). Bytes that the file does not align to the element size are copied. Throws
  /// Error(kFormat) when there is no such tensor.
  Tensor get(const std::string& name) const;
  /// The same, checked to have this shape; for weights, whose expected shape the configuration gives.
  Tensor get(const std::string& name, const std::vector<int64_t>& shape) const;
  /// Throws as that does, without making any values.
  void require(const std::string& name, const std::vector<int64_t>& shape) const;
  /// The shape alone. Throws like get.
  const std::vector<int64_t>& shape(const std::string& name) const { return entry(name).shape; }
  /// `FILE: tensor "…"`, for messages: the file that holds it (a shard, where there are several) and its name there.
  std::string describe(const std::string& name) const;
  /// Asks the system to begin reading a tensor from the disk; does not wait.
  void read_ahead(const std::string& name) const;

  /// The same tensors under other names; those whose new name is empty are left out. Throws Error(kFormat) when two of
  /// them get one name.
  MappedTensors renamed(const std::function<std::string(const std::string& stored)>& new_name) const;

  /// Makes a tensor's values from those that are stored, or that an earlier change made: of the same shape and dtype.
  using TensorChange = std::function<Tensor(const Tensor& stored)>;
  /// The same tensors, those named here with other values: from here on `get` gives these, and nothing gives the
  /// stored ones. Throws Error(kFormat) when there is no such tensor.
  MappedTensors changed(const std::map<std::string, TensorChange>& changes) const;

 protected:
  explicit MappedTensors(std::string path) : path_(std::move(path)) {}
  const Entry& entry(const std::string& name) const;
  Tensor stored(const Entry& entry) const;
  Tensor scales_of(const std::string& scale, const std::string& matrix) const;  ///< F32: one, or one of each row
  /// What lies in 8 bits with a scale beside it becomes its values, and what is only there for that is left out.
  /// Throws Error(kFormat) for a scale that is none, and for a matrix in fp8 that lacks the scale which others have.
  void apply_scales();

  std::string path_;
  std::vector<std::shared_ptr<const MappedFile>> files_;
  std::map<std::string, Entry> entries_;
};

std::string shape_text(const std::vector<int64_t>& shape);  ///< "[2, 3]", for messages

/// A name from outside, fit for a one-line message: in quotes, escaped, cut where it is long.
std::string quoted_name(const std::string& name);

}  // namespace calibatt
