#include "io/mapped_tensors.h"

#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/recognise.h"

namespace calibatt {

static_assert(std::endian::native == std::endian::little, "tensor bytes are used in place");

std::string quoted_name(const std::string& name) {
  std::string text = nlohmann::json(name).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  return text.size() <= 120 ? text : text.substr(0, 120) + "…\"";
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t extent : shape) text += (text.empty() ? "" : ", ") + std::to_string(extent);
  return "[" + text + "]";
}

const MappedTensors::Entry& MappedTensors::entry(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) {
    std::vector<std::string> names;
    for (const auto& [other, entry] : entries_) names.push_back(entry.stored_name);
    if (const std::string odd = recognise_tensor_names(names); !odd.empty()) {
      throw Error(ErrorKind::kFormat, path_ + ": " + odd);
    }
    throw Error(ErrorKind::kFormat, path_ + ": tensor " + quoted_name(name) +
                                        " is missing; are these the weights of the model that the configuration "
                                        "describes, and is the file complete?");
  }
  return found->second;
}

std::string MappedTensors::describe(const std::string& name) const {
  const Entry& found = entry(name);
  return files_[found.file]->path() + ": tensor " + quoted_name(found.stored_name);
}

void MappedTensors::read_ahead(const std::string& name) const {
  const Entry& found = entry(name);
  files_[found.file]->read_ahead(found.begin, found.size_bytes);
}

Tensor MappedTensors::get(const std::string& name) const {
  const Entry& found = entry(name);
  Tensor tensor = stored(found);
  if (!found.change) return tensor;
  Tensor changed = (*found.change)(tensor);
  CALIBATT_ASSERT(changed.shape() == found.shape && changed.dtype() == found.dtype);
  return changed;
}

Tensor MappedTensors::stored(const Entry& found) const {
  const std::span<const unsigned char> bytes = files_[found.file]->bytes().subspan(found.begin, found.size_bytes);
  if (found.form != StoredForm::kValues) {
    Tensor values(found.dtype, found.shape);
    decode_elements(found.form, bytes.data(), values);
    files_[found.file]->require_readable();
    return values;
  }
  if (bytes.empty() || reinterpret_cast<uintptr_t>(bytes.data()) % dtype_size(found.dtype) != 0) {
    Tensor copy(found.dtype, found.shape);
    if (!bytes.empty()) std::memcpy(copy.raw(), bytes.data(), bytes.size());
    files_[found.file]->require_readable();
    return copy;
  }
  return {found.dtype, found.shape,
          std::shared_ptr<void>(files_[found.file], const_cast<unsigned char*>(bytes.data()))};
}

Tensor MappedTensors::get(const std::string& name, const std::vector<int64_t>& shape) const {
  require(name, shape);
  return get(name);
}

std::vector<std::string> MappedTensors::file_paths() const {
  std::vector<std::string> paths;
  paths.reserve(files_.size());
  for (const auto& file : files_) paths.push_back(file->path());
  return paths;
}

void MappedTensors::require(const std::string& name, const std::vector<int64_t>& shape) const {
  const Entry& found = entry(name);
  if (found.shape == shape) return;
  throw Error(ErrorKind::kFormat, describe(name) + " is " + std::string(dtype_name(found.dtype)) + " " +
                                      shape_text(found.shape) + ", but the configuration makes it " +
                                      shape_text(shape));
}

MappedTensors MappedTensors::changed(const std::map<std::string, TensorChange>& changes) const {
  MappedTensors result = *this;
  for (const auto& [name, added] : changes) {
    const auto earlier = entry(name).change;  // throws where there is none
    const TensorChange& change = added;       // a lambda of clang 14 cannot take a structured binding
    result.entries_.at(name).change = std::make_shared<const TensorChange>(
        earlier ? [earlier, change](const Tensor& stored) { return change((*earlier)(stored)); } : change);
  }
  return result;
}

MappedTensors MappedTensors::renamed(const std::function<std::string(const std::string& stored)>& new_name) const {
  MappedTensors result(path_);
  result.files_ = files_;
  for (const auto& [name, entry] : entries_) {
    const std::string renamed_to = new_name(name);
    if (renamed_to.empty()) continue;
    const auto [position, inserted] = result.entries_.emplace(renamed_to, entry);
    if (!inserted) {
      throw Error(ErrorKind::kFormat, describe(name) + " is the same layer's as " +
                                          quoted_name(position->second.stored_name) +
                                          "; the file mixes two layouts of one model");
    }
  }
  return result;
}

}  // namespace calibatt
