#include "io/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "base/mapped_ranges.h"
#include "calibatt/counted.h"
#include "io/atomic_file.h"
#include "io/input_file.h"
#include "io/json_config.h"
#include "io/recognise.h"

namespace calibatt {
namespace {

using nlohmann::json;

constexpr size_t kPartBytes = size_t{64} << 20;  // written at a time: a moment on any disk
constexpr size_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = uint64_t{100} << 20;  // the limit of the reference implementation
constexpr size_t kHeaderAlignment = 64;                    // of the data that follows the header, in files written here

constexpr std::array kDTypes = {DType::kF64, DType::kF32, DType::kF16, DType::kBF16, DType::kI64, DType::kI32,
                                DType::kI16, DType::kI8,  DType::kU32, DType::kU16,  DType::kU8,  DType::kBool};

std::optional<DType> dtype_of(std::string_view name) {
  for (const DType dtype : kDTypes) {
    if (dtype_name(dtype) == name) return dtype;
  }
  return std::nullopt;
}

[[noreturn]] void refuse(const std::string& path, const std::string& reason) {
  require_mapped_files();  // else what is wrong may be that zeros were read
  throw Error(ErrorKind::kFormat,
              path + ": " + reason + "; this is not a complete, unaltered safetensors file" + std::string(kCopyAnew));
}

[[noreturn]] void refuse_tensor(const std::string& path, const std::string& name, const std::string& reason) {
  refuse(path, "tensor " + quoted_name(name) + ": " + reason);
}

/// What the header says of one tensor; `begin` relative to the data.
Safetensors::Entry parse_entry(const std::string& path, const json& header, const std::string& name,
                               uint64_t data_bytes) {
  const json& value = header[name];
  const auto fail = [&](const std::string& reason) { refuse_tensor(path, name, reason); };
  if (!value.is_object()) fail("its entry is not an object");
  for (const auto& [key, unused] : value.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") fail("unknown key " + quoted_name(key));
  }
  if (!value.contains("dtype") || !value["dtype"].is_string()) fail("no dtype");
  Safetensors::Entry entry;
  auto dtype = dtype_of(value["dtype"].get_ref<const std::string&>());
  if (const auto form = stored_form_of(value["dtype"].get_ref<const std::string&>())) {
    entry.form = *form;
    dtype = DType::kBF16;
  }
  if (!dtype) {
    const std::string found = value["dtype"].get<std::string>();
    std::vector<std::string> names;
    for (const auto& [other, unused] : header.items()) names.push_back(other);
    throw Error(ErrorKind::kFormat, path + ": tensor " + quoted_name(name) + ": dtype " + quoted_name(found) + " " +
                                        recognise_dtype(found, names));
  }
  entry.dtype = *dtype;

  if (!value.contains("shape") || !value["shape"].is_array()) fail("no shape");
  uint64_t size_bytes = entry.form == StoredForm::kValues ? dtype_size(*dtype) : 1;
  bool has_zero = false;
  for (const json& extent : value["shape"]) {
    if (!extent.is_number_unsigned() || extent.get<uint64_t>() > uint64_t{INT64_MAX}) fail("a dimension is not a size");
    const auto count = extent.get<uint64_t>();
    has_zero |= count == 0;
    // A product beyond the file's size is refused before it can overflow; zeros must not hide such a product.
    if (count != 0 && size_bytes > uint64_t{INT64_MAX} / 8 / count) fail("its shape is impossibly large");
    if (count != 0) size_bytes *= count;
    entry.shape.push_back(static_cast<int64_t>(count));
  }
  if (has_zero) size_bytes = 0;

  const json offsets = value.value("data_offsets", json());
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    fail("data_offsets are not two sizes");
  }
  const auto begin = offsets[0].get<uint64_t>(), end = offsets[1].get<uint64_t>();
  if (begin > end || end > data_bytes) {
    fail("data_offsets [" + std::to_string(begin) + ", " + std::to_string(end) + "] are outside of the " +
         counted(data_bytes, "bytes") + " of data");
  }
  if (end - begin != size_bytes) {
    fail("data_offsets span " + counted(end - begin, "bytes") + ", but dtype and shape need " +
         std::to_string(size_bytes));
  }
  entry.begin = begin;
  entry.size_bytes = size_bytes;
  return entry;
}

/// A torn file of the right kind is refused for what is wrong with it, another one for what it is.
[[noreturn]] void refuse_framing(const std::string& path, std::span<const unsigned char> bytes,
                                 const std::string& reason) {
  const bool begins_well = bytes.size() > kLengthBytes && bytes[kLengthBytes] == '{';
  const std::string found = begins_well ? "" : recognise_bytes(bytes);
  if (!found.empty()) throw Error(ErrorKind::kFormat, path + ": " + found);
  if (begins_well || bytes.size() < kLengthBytes) refuse(path, reason);
  require_mapped_files();
  throw Error(ErrorKind::kFormat, path + ": this is not a safetensors file (" + reason + ")");
}

}  // namespace

void Safetensors::add_file(const std::string& path) {
  auto mapped = MappedFile::open(path);
  const std::span<const unsigned char> bytes = mapped->bytes();
  if (bytes.size() < kLengthBytes) refuse_framing(path, bytes, "only " + counted(bytes.size(), "bytes"));
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), kLengthBytes);
  if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size() - kLengthBytes) {
    refuse_framing(path, bytes,
                   "the header is said to have " + counted(header_bytes, "bytes") + " in a file of " +
                       std::to_string(bytes.size()));
  }
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, header_bytes);
  if (!header.starts_with('{')) refuse_framing(path, bytes, "the header does not begin with \"{\"");
  const json root = parse_json(header, path);
  if (!root.is_object()) refuse(path, "the header is not a JSON object");

  const size_t data_begin = kLengthBytes + header_bytes;
  const size_t data_bytes = bytes.size() - data_begin;
  struct Range {
    size_t begin, end;
    const std::string* name;
  };
  std::vector<Range> ranges;
  for (const auto& [name, value] : root.items()) {
    if (name == "__metadata__") {
      if (!value.is_object()) refuse(path, "__metadata__ is not an object");
      for (const auto& [key, text] : value.items()) {
        if (!text.is_string()) refuse(path, "__metadata__ " + quoted_name(key) + " is not a string");
        metadata_.emplace(key, text.get<std::string>());
      }
      continue;
    }
    Entry entry = parse_entry(path, root, name, data_bytes);
    const size_t begin = entry.begin, end = begin + entry.size_bytes;
    entry.begin += data_begin;
    entry.file = files_.size();
    entry.stored_name = name;
    const auto [position, inserted] = entries_.emplace(name, std::move(entry));
    if (!inserted) refuse_tensor(path, name, "is in another shard, too");
    ranges.push_back({begin, end, &position->first});
  }

  // Tensors must tile the data: what overlaps or is left over was not written by an honest writer.
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
  size_t covered = 0;
  for (const Range& range : ranges) {
    if (range.begin < covered) refuse_tensor(path, *range.name, "its data overlaps another tensor's");
    if (range.begin > covered) refuse_tensor(path, *range.name, "there is a gap before its data");
    covered = range.end;
  }
  if (covered != data_bytes) {
    refuse(path, counted(data_bytes - covered, "bytes") + " of data belong to no tensor");
  }
  files_.push_back(std::move(mapped));
}

Safetensors Safetensors::open(const std::string& path) {
  Safetensors result(path);
  if (!path.ends_with(".json")) {
    result.add_file(path);
    result.apply_scales();
    return result;
  }

  const JsonConfig index = JsonConfig::load(path);
  const JsonConfig weight_map = index.object("weight_map");
  std::map<std::string, std::string> shard_of;
  std::vector<std::string> shards;
  for (const auto& [name, value] : weight_map.json().items()) {
    const std::string shard = weight_map.string(name);
    // Shards lie beside their index; a path that leads elsewhere is not a shard's name.
    if (shard.empty() || shard.find('/') != std::string::npos || shard.find('\0') != std::string::npos ||
        shard.starts_with('.')) {
      weight_map.fail(name, "expected the name of a file beside the index, found " + quoted_name(shard));
    }
    shard_of[name] = shard;
    shards.push_back(shard);
  }
  std::sort(shards.begin(), shards.end());
  shards.erase(std::unique(shards.begin(), shards.end()), shards.end());
  for (const std::string& shard : shards) {
    result.add_file((std::filesystem::path(path).parent_path() / shard).string());
  }
  for (const auto& [name, shard] : shard_of) {
    const auto found = result.entries_.find(name);
    if (found == result.entries_.end() || shards[found->second.file] != shard) {
      throw Error(ErrorKind::kFormat, path + ": tensor " + quoted_name(name) + " is not in " + quoted_name(shard) +
                                          " as the index says; copy all shards of one model together");
    }
  }
  result.apply_scales();
  return result;
}

Safetensors Safetensors::open_folder(const std::string& folder, const std::function<void(const std::string&)>& warn) {
  // Where there are both, each library takes what it saves by default: diffusers the index, transformers the one file.
  constexpr const char *kOne = ".safetensors", *kIndex = ".safetensors.index.json";
  constexpr std::array<std::array<const char*, 3>, 2> kPreferred{
      {{"diffusion_pytorch_model", kIndex, kOne}, {"model", kOne, kIndex}}};
  for (const auto& [stem, first, second] : kPreferred) {
    const std::string path = (std::filesystem::path(folder) / stem).string();
    if (path_exists(path + first)) {
      if (warn && path_exists(path + second)) {
        warn(folder + ": holds " + stem + first + " and " + stem + second + "; the first is used, as " +
             (first == kIndex ? "diffusers" : "transformers") + " does; remove the one that you do not mean");
      }
      return open(path + first);
    }
    if (path_exists(path + second)) return open(path + second);
  }
  const std::string found = recognise_weights(folder);
  throw Error(ErrorKind::kNotFound, folder + ": " +
                                        (found.empty() ? "no weights; expected diffusion_pytorch_model.safetensors or "
                                                         "model.safetensors (or their .index.json) in this folder"
                                                       : found));
}

void write_safetensors(const std::string& path, const std::map<std::string, Tensor>& tensors,
                       const std::map<std::string, std::string>& metadata, const std::function<void()>& poll) {
  std::vector<const std::pair<const std::string, Tensor>*> order;
  for (const auto& item : tensors) {
    CALIBATT_ASSERT(!item.second.empty() && item.first != "__metadata__");
    order.push_back(&item);
  }
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return dtype_size(a->second.dtype()) > dtype_size(b->second.dtype());
  });

  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  size_t offset = 0;
  for (const auto* item : order) {
    const Tensor& tensor = item->second;
    header[item->first] = {{"dtype", dtype_name(tensor.dtype())},
                           {"shape", tensor.shape()},
                           {"data_offsets", {offset, offset + tensor.size_bytes()}}};
    offset += tensor.size_bytes();
  }
  std::string text = header.dump();
  text.resize((text.size() + kLengthBytes + kHeaderAlignment - 1) / kHeaderAlignment * kHeaderAlignment - kLengthBytes,
              ' ');

  AtomicFile file(path);
  const uint64_t header_bytes = text.size();
  file.write(&header_bytes, kLengthBytes);
  file.write(text);
  for (const auto* item : order) {
    const auto* bytes = static_cast<const char*>(item->second.raw());
    const size_t size = item->second.size_bytes();
    for (size_t at = 0; at < size; at += kPartBytes) {
      if (poll) poll();
      file.write(bytes + at, std::min(kPartBytes, size - at));
      if (size > kPartBytes) file.sync();
    }
  }
  file.commit();
}

}  // namespace calibatt
