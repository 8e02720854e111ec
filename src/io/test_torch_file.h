#pragma once

#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/tensor.h"

/// A writer of torch.save's file format for tests, part by part, so that each part can be wrong.
namespace calibatt::test {

template <class T>
std::string number(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}
inline std::string u16(uint64_t value) {
  return number(static_cast<uint16_t>(value));
}
inline std::string u32(uint64_t value) {
  return number(static_cast<uint32_t>(value));
}

struct ZipPart {
  std::string name, bytes;
  uint16_t method = 0;
};

/// zip64: all sizes and places are in ZIP64 fields, as in archives of more than 4 GB.
inline std::string zip_of(const std::vector<ZipPart>& parts, bool zip64 = false) {
  constexpr uint64_t kAlignment = 64, kIn64 = 0xffffffff;
  std::string file, directory;
  for (const ZipPart& part : parts) {
    const uint64_t header = file.size(), size = part.bytes.size();
    // torch pads the local extra field, and leaves the local sizes to the directory.
    const uint64_t padding = (kAlignment - (header + 30 + part.name.size() + 4) % kAlignment) % kAlignment;
    const std::string extra = "FB" + u16(padding) + std::string(padding, 'Z');
    file += "PK\x03\x04" + u16(0) + u16(0x0808) + u16(part.method) + u32(0) + u32(0) + u32(0) + u32(0) +
            u16(part.name.size()) + u16(extra.size()) + part.name + extra + part.bytes;
    std::string wide;
    if (zip64) wide = u16(1) + u16(24) + number(size) + number(size) + number(header);
    directory += "PK\x01\x02" + u16(0) + u16(0) + u16(0x0808) + u16(part.method) + u32(0) + u32(0) +
                 u32(zip64 ? kIn64 : size) + u32(zip64 ? kIn64 : size) + u16(part.name.size()) + u16(wide.size()) +
                 u16(0) + u16(0) + u16(0) + u32(0) + u32(zip64 ? kIn64 : header) + part.name + wide;
  }
  const uint64_t begin = file.size(), count = parts.size(), size = directory.size();
  file += directory;
  if (zip64) {
    const uint64_t end = file.size();
    file += "PK\x06\x06" + number(uint64_t{44}) + u16(45) + u16(45) + u32(0) + u32(0) + number(count) + number(count) +
            number(size) + number(begin);
    file += "PK\x06\x07" + u32(0) + number(end) + u32(1);
  }
  return file + "PK\x05\x06" + u16(0) + u16(0) + u16(zip64 ? 0xffff : count) + u16(zip64 ? 0xffff : count) +
         u32(zip64 ? kIn64 : size) + u32(zip64 ? kIn64 : begin) + u16(0);
}

inline std::string pickled(const std::string& text) {
  return "X" + u32(text.size()) + text;
}
inline std::string pickled(int64_t value) {
  return "\x8a\x08" + number(value);
}
inline std::string pickled(const std::vector<int64_t>& values) {
  std::string tuple = "(";
  for (const int64_t value : values) tuple += pickled(value);
  return tuple + "t";
}
inline std::string pickled_global(const std::string& module, const std::string& name) {
  return "c" + module + "\n" + name + "\n";
}

inline std::vector<int64_t> row_major(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t axis = shape.size(); axis-- > 1;) strides[axis - 1] = strides[axis] * shape[axis];
  return strides;
}

/// One tensor of a state_dict.
struct TorchTensor {
  std::string storage = "FloatStorage", key = "0";
  int64_t capacity = 0, offset = 0;
  std::vector<int64_t> shape, strides;

  std::string pickle() const {
    return pickled_global("torch._utils", "_rebuild_tensor_v2") + "((" + pickled("storage") +
           pickled_global("torch", storage) + pickled(key) + pickled("cpu") + pickled(capacity) + "tQ" +
           pickled(offset) + pickled(shape) + pickled(strides) + "\x89" + pickled_global("collections", "OrderedDict") +
           ")RtR";
  }
};

/// A pickle of an OrderedDict; `items`: keys and values, pickled.
inline std::string pickled_dict(const std::string& items) {
  return "\x80\x02" + pickled_global("collections", "OrderedDict") + ")R(" + items + "u.";
}

inline std::string torch_storage(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "FloatStorage";
    case DType::kBF16:
      return "BFloat16Storage";
    case DType::kF16:
      return "HalfStorage";
    default:
      CALIBATT_ASSERT(false);
      return {};
  }
}

/// What torch.save writes for a state_dict.
inline std::string torch_file_of(const std::map<std::string, Tensor>& tensors, bool zip64 = false) {
  std::string items;
  std::vector<ZipPart> parts(1);
  parts.push_back({"archive/byteorder", "little"});
  for (const auto& [name, tensor] : tensors) {
    const std::string key = std::to_string(parts.size() - 2);
    items += pickled(name) + TorchTensor{torch_storage(tensor.dtype()), key, tensor.size(), 0, tensor.shape(),
                                         row_major(tensor.shape())}
                                 .pickle();
    parts.push_back({"archive/data/" + key, {static_cast<const char*>(tensor.raw()), tensor.size_bytes()}});
  }
  parts[0] = {"archive/data.pkl", pickled_dict(items)};
  return zip_of(parts, zip64);
}

inline void write_bytes(const std::string& path, const std::string& bytes) {
  std::remove(path.c_str());  // file systems may sync a file that is cut short and written again
  std::ofstream(path, std::ios::binary) << bytes;
}

}  // namespace calibatt::test
