#include "calibrate/profile/growth_part.h"

#include <cmath>
#include <filesystem>
#include <map>
#include <vector>

#include "base/error.h"
#include "calibrate/profile/profile_header.h"
#include "io/fingerprint.h"
#include "io/input_file.h"
#include "io/safetensors.h"

namespace calibatt {
namespace {

using Factor = StepGrowth::Factor;
using MaskChange = StepGrowth::MaskChange;
using EightBitChange = StepGrowth::EightBitChange;

constexpr const char* kChanged = "changed";

std::string growth_part_path(const std::string& folder) {
  return (std::filesystem::path(folder) / "step_growth_part.safetensors").string();
}

std::string checksum_of(const std::map<std::string, Tensor>& tensors, const ProfileMetadata& metadata) {
  Hasher hasher;
  for (const auto& [name, tensor] : tensors) {
    hasher.update(name);
    hasher.update(std::string_view(static_cast<const char*>(tensor.raw()), tensor.size_bytes()));
  }
  for (const auto& [name, value] : metadata) {
    hasher.update(name);
    hasher.update(value);
  }
  return hasher.hex();
}

/// Rows of a step and its number.
template <class Each>
void add_rows(const std::vector<Each>& rows, double Each::*number, const char* name,
              std::map<std::string, Tensor>& tensors) {
  if (rows.empty()) return;
  Tensor tensor(DType::kF64, {static_cast<int64_t>(rows.size()), 2});
  double* to = tensor.data<double>();
  for (const Each& each : rows) {
    *to++ = each.step;
    *to++ = each.*number;
  }
  tensors[name] = std::move(tensor);
}

template <class Each>
std::vector<Each> rows_of(const std::map<std::string, Tensor>& tensors, const char* name, int num_steps,
                          const std::string& path) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) return {};
  const auto wrong = [&](const std::string& what) {
    return Error(ErrorKind::kFormat, path + ": tensor \"" + name + "\": " + what);
  };
  const Tensor& tensor = found->second;
  if (tensor.dtype() != DType::kF64 || tensor.rank() != 2 || tensor.dim(1) != 2) throw wrong("expected F64 [N, 2]");
  std::vector<Each> rows;
  for (const double* from = tensor.data<double>(); std::ssize(rows) < tensor.dim(0); from += 2) {
    const int after = rows.empty() ? -1 : rows.back().step;
    if (!(from[0] > after && from[0] < num_steps) || from[0] != std::floor(from[0])) throw wrong("a step is wrong");
    if (!(from[1] > 0) || !std::isfinite(from[1])) throw wrong("expected numbers above 0");
    rows.push_back({static_cast<int>(from[0]), from[1]});
  }
  return rows;
}

/// Takes what is said of 8 bits out of the metadata.
void read_eight_bits(ProfileMetadata& metadata, const std::string& path, StepGrowth& growth) {
  const ProfileFields fields(metadata, path);
  growth.layers = fields.text("layers");
  growth.layer_arithmetic = fields.integer("layer_arithmetic");
  growth.attention_arithmetic = fields.integer("attention_arithmetic");
  for (const char* name : {"layers", "layer_arithmetic", "attention_arithmetic"}) metadata.erase(name);
}

}  // namespace

void save_growth_part(const std::string& folder, const HeldOutKey& run, const GrowthPart& part) {
  const StepGrowth& growth = part.growth;
  std::map<std::string, Tensor> tensors;
  add_rows(growth.factors, &Factor::factor, "factors", tensors);
  add_rows(growth.mask_changes, &MaskChange::per_error, "mask_changes", tensors);
  add_rows(growth.layer_changes, &EightBitChange::change, "layer_changes", tensors);
  add_rows(growth.attention_changes, &EightBitChange::change, "attention_changes", tensors);
  if (!part.changed.empty()) tensors[kChanged] = part.changed;
  ProfileMetadata metadata = metadata_of(run);
  metadata["layers"] = growth.layers;
  metadata["layer_arithmetic"] = std::to_string(growth.layer_arithmetic);
  metadata["attention_arithmetic"] = std::to_string(growth.attention_arithmetic);
  metadata[kChecksum] = checksum_of(tensors, metadata);
  write_safetensors(growth_part_path(folder), tensors, metadata);
}

GrowthPart load_growth_part(const std::string& folder, const HeldOutKey& run) {
  const std::string path = growth_part_path(folder);
  if (!path_exists(path)) return {};
  return read_or_advise(kMeasureGrowthAnew, [&]() -> GrowthPart {
    const Safetensors file = Safetensors::open(path);
    std::map<std::string, Tensor> tensors;
    for (const char* name : {"factors", "mask_changes", "layer_changes", "attention_changes", kChanged}) {
      if (file.contains(name)) tensors[name] = file.get(name).clone();
    }
    ProfileMetadata metadata = file.metadata();
    const auto checksum = metadata.extract(kChecksum);
    if (checksum.empty() || checksum.mapped() != checksum_of(tensors, metadata)) {
      throw Error(ErrorKind::kFormat,
                  path + ": its content does not fit its checksum: the file was altered or damaged");
    }
    GrowthPart part;
    StepGrowth& growth = part.growth;
    read_eight_bits(metadata, path, growth);
    if (metadata != metadata_of(run)) return {};
    const int steps = run.header.num_steps();
    growth.factors = rows_of<Factor>(tensors, "factors", steps, path);
    growth.mask_changes = rows_of<MaskChange>(tensors, "mask_changes", steps, path);
    growth.layer_changes = rows_of<EightBitChange>(tensors, "layer_changes", steps, path);
    growth.attention_changes = rows_of<EightBitChange>(tensors, "attention_changes", steps, path);
    if (tensors.contains(kChanged)) part.changed = tensors[kChanged];
    return part;
  });
}

void remove_growth_part(const std::string& folder) {
  std::error_code ignored;
  std::filesystem::remove(growth_part_path(folder), ignored);
}

}  // namespace calibatt
