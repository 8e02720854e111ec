#include "models/weights.h"

#include <algorithm>

namespace calibatt {
namespace {

constexpr size_t kNamed = 3;  // tensors in a message

}  // namespace

StoredTensor Weights::checked(const std::string& name, const std::vector<int64_t>& shape) const {
  require(name, shape);
  // Biases and norms may well be constant: vectors, whatever their rank.
  const auto extents = std::ranges::count_if(shape, [](int64_t extent) { return extent > 1; });
  StoredTensor found{file_.get(name), file_.describe(name)};
  if (extents > 1 && name.ends_with(".weight")) {
    constants_->matrices.insert(name);
    found.found_constant = [constants = constants_, name] {
      if (constants->all.insert(name).second) constants->found.push_back(name);
    };
  }
  return found;
}

void Weights::require(const std::string& name, const std::vector<int64_t>& shape) const {
  file_.require(name, shape);
  const DType dtype = file_.entries().at(name).dtype;
  if (dtype != DType::kF32 && dtype != DType::kBF16 && dtype != DType::kF16) {
    throw Error(ErrorKind::kFormat,
                file_.describe(name) + ": expected F32, BF16 or F16, found " + std::string(dtype_name(dtype)));
  }
  used_.insert(name);
}

StoredTensor Weights::stored(const std::string& name, const std::vector<int64_t>& shape) const {
  file_.read_ahead(name);
  return checked(name, shape);
}

std::vector<StoredTensor> Weights::stored_all(const std::vector<std::string>& names,
                                              const std::vector<int64_t>& shape_of_each) const {
  std::vector<StoredTensor> result;
  result.reserve(names.size());
  for (const std::string& name : names) result.push_back(stored(name, shape_of_each));
  return result;
}

Tensor Weights::get(const std::string& name, const std::vector<int64_t>& shape) const {
  StoredTensor found = stored(name, shape);
  accept_values(found, check_values(found.tensor));
  return std::move(found.tensor);
}

Tensor Weights::get_f32(const std::string& name, const std::vector<int64_t>& shape) const {
  return stack_rows({stored(name, shape)}, DType::kF32);
}

std::string Weights::list(const std::vector<std::string>& names) const {
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kNamed); ++i) {
    text += (i > 0 ? ", " : "") + quoted_name(file_.entries().at(names[i]).stored_name);
  }
  if (names.size() > kNamed) text += " and " + std::to_string(names.size() - kNamed) + " more";
  return text;
}

std::string Weights::constant_matrices() const {
  const std::vector<std::string> found = std::exchange(constants_->found, {});
  if (found.empty()) return {};
  if (constants_->all.size() == constants_->matrices.size()) {
    throw Error(ErrorKind::kFormat,
                file_.path() +
                    ": holds no weights: every matrix is all zero or one value throughout, as in a file whose "
                    "copying began and did not end; fetch the file again");
  }
  return file_.path() + ": " + std::to_string(found.size()) + (found.size() == 1 ? " matrix is" : " matrices are") +
         " all zero or one value throughout: " + list(found) + "; such weights are damaged: fetch the file again";
}

std::string Weights::check_unused(const std::string& essential) const {
  std::vector<std::string> unused;
  for (const auto& [name, entry] : file_.entries()) {
    if (!used_.contains(name)) unused.push_back(name);
  }
  std::vector<std::string> missed;
  std::ranges::copy_if(unused, std::back_inserter(missed),
                       [&](const std::string& name) { return name.starts_with(essential); });
  if (!missed.empty()) {
    throw Error(ErrorKind::kFormat,
                file_.path() + ": holds tensors of layers that the config.json does not describe: " + list(missed) +
                    "; config and weights are not of one model");
  }
  if (unused.empty()) return {};
  return file_.path() + ": " + std::to_string(unused.size()) + (unused.size() == 1 ? " tensor is" : " tensors are") +
         " not used: " + list(unused);
}

}  // namespace calibatt
