#include "io/gguf.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string_view>

#include "base/error.h"
#include "base/mapped_ranges.h"
#include "io/mapped_file.h"
#include "io/recognise.h"

namespace calibatt {
namespace {

constexpr uint64_t kMaxAlignment = uint64_t{1} << 20;
constexpr uint64_t kMaxAxes = 8;
constexpr int kMaxNesting = 4;  // of arrays
constexpr const char* kAlignment = "general.alignment";
constexpr std::string_view kShapeOf = "comfy.gguf.orig_shape.";

/// ggml's number of a tensor's form.
struct Form {
  uint32_t number;
  DType dtype;  ///< of the values that it becomes
  StoredForm stored;
};
constexpr Form kForms[] = {
    {0, DType::kF32, StoredForm::kValues},   {1, DType::kF16, StoredForm::kValues},
    {30, DType::kBF16, StoredForm::kValues}, {8, DType::kF32, StoredForm::kQ8_0},
    {12, DType::kF32, StoredForm::kQ4_K},    {13, DType::kF32, StoredForm::kQ5_K},
    {14, DType::kF32, StoredForm::kQ6_K},
};
/// Those that people meet and that are not read.
constexpr std::pair<uint32_t, const char*> kOtherForms[] = {{2, "Q4_0"},  {3, "Q4_1"},  {6, "Q5_0"},    {7, "Q5_1"},
                                                            {10, "Q2_K"}, {11, "Q3_K"}, {20, "IQ4_NL"}, {23, "IQ4_XS"}};

/// Numbers of the types of metadata.
enum ValueType : uint32_t { kU32 = 4, kI32 = 5, kString = 8, kArray = 9, kU64 = 10 };
/// Bytes of one, by that number; 0: it is a string or an array.
constexpr size_t kValueBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

class GgufFile : public MappedTensors {
 public:
  explicit GgufFile(const std::string& path) : MappedTensors(path) {
    files_.push_back(MappedFile::open(path));
    bytes_ = files_[0]->bytes();
    if (bytes_.size() < 4 || std::memcmp(bytes_.data(), "GGUF", 4) != 0) {
      const std::string found = recognise_bytes(bytes_);
      throw Error(ErrorKind::kFormat, path + ": " + (found.empty() ? "is no GGUF file, which its name says" : found));
    }
    at_ = 4;
    const auto version = read<uint32_t>();
    if (version != 2 && version != 3) refuse("is of GGUF version " + std::to_string(version) + "; 2 and 3 are read");
    const auto num_tensors = read<uint64_t>(), num_values = read<uint64_t>();
    for (uint64_t i = 0; i < num_values; ++i) read_metadata();
    for (uint64_t i = 0; i < num_tensors; ++i) read_tensor();
    place_tensors();
  }

 private:
  [[noreturn]] void refuse(const std::string& reason) const {
    require_mapped_files();
    throw Error(ErrorKind::kFormat, path_ + ": " + reason);
  }
  [[noreturn]] void refuse_tensor(const std::string& name, const std::string& reason) const {
    refuse("tensor " + quoted_name(name) + ": " + reason);
  }
  void require_bytes(uint64_t count) const {
    if (count <= bytes_.size() - at_) return;
    refuse("ends within its GGUF header; this is not a complete file (copy it anew)");
  }
  template <class T>
  T read() {
    require_bytes(sizeof(T));
    T value;
    std::memcpy(&value, bytes_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }
  std::string read_string() {
    const auto length = read<uint64_t>();
    require_bytes(length);
    std::string text(reinterpret_cast<const char*>(bytes_.data()) + at_, length);
    at_ += length;
    return text;
  }

  void skip_value(uint32_t type, int nesting = 0) {
    if (type == kString) {
      read_string();
    } else if (type == kArray) {
      if (nesting >= kMaxNesting) refuse("its metadata nests arrays too deeply");
      const auto element = read<uint32_t>();
      const auto count = read<uint64_t>();
      if (const size_t size = bytes_of(element); size > 0) {
        require_bytes(count);  // so that the product cannot overflow
        require_bytes(count * size);
        at_ += count * size;
      } else {
        for (uint64_t i = 0; i < count; ++i) skip_value(element, nesting + 1);
      }
    } else {
      const size_t size = bytes_of(type);
      require_bytes(size);
      at_ += size;
    }
  }
  size_t bytes_of(uint32_t type) const {
    if (type >= std::size(kValueBytes)) refuse("has metadata of a type that is not known: " + std::to_string(type));
    return kValueBytes[type];
  }

  void read_metadata() {
    const std::string key = read_string();
    const auto type = read<uint32_t>();
    if (key == kAlignment && type == kU32) {
      alignment_ = read<uint32_t>();
      if (alignment_ == 0 || alignment_ > kMaxAlignment) refuse("its tensors are aligned to an impossible number");
    } else if (key.starts_with(kShapeOf) && type == kArray) {
      const auto element = read<uint32_t>();
      const auto count = read<uint64_t>();
      if (element != kI32 || count > kMaxAxes) refuse("metadata " + quoted_name(key) + " is no shape");
      std::vector<int64_t>& shape = original_shapes_[key.substr(kShapeOf.size())];
      shape.clear();
      for (uint64_t axis = 0; axis < count; ++axis) shape.push_back(read<int32_t>());
    } else {
      skip_value(type);
    }
  }

  void read_tensor() {
    const std::string name = read_string();
    const auto axes = read<uint32_t>();
    if (axes > kMaxAxes) refuse_tensor(name, "has " + std::to_string(axes) + " axes");
    Entry entry;
    for (uint32_t axis = 0; axis < axes; ++axis) {
      const auto extent = read<uint64_t>();
      if (extent > uint64_t{INT64_MAX}) refuse_tensor(name, "a dimension is not a size");
      entry.shape.insert(entry.shape.begin(), static_cast<int64_t>(extent));
    }
    const auto number = read<uint32_t>();
    const auto* form = std::ranges::find(kForms, number, &Form::number);
    if (form == std::end(kForms)) {
      const auto* other = std::ranges::find(kOtherForms, number, &std::pair<uint32_t, const char*>::first);
      refuse_tensor(
          name, "is " + (other == std::end(kOtherForms) ? "of ggml's form " + std::to_string(number) : other->second) +
                    ", which is not read; take the file in Q8_0, Q6_K, Q5_K, Q4_K or BF16");
    }
    entry.dtype = form->dtype;
    entry.form = form->stored;
    entry.begin = read<uint64_t>();
    entry.size_bytes = size_of(name, entry);
    if (const auto original = original_shapes_.find(name); original != original_shapes_.end()) {
      take_original_shape(name, original->second, entry);
    }
    entry.stored_name = name;
    if (!entries_.emplace(name, std::move(entry)).second) refuse_tensor(name, "is there twice");
  }

  uint64_t size_of(const std::string& name, const Entry& entry) const {
    StoredBlock block = stored_block(entry.form);
    if (entry.form == StoredForm::kValues) block.bytes = static_cast<int64_t>(dtype_size(entry.dtype));
    uint64_t elements = 1;
    for (const int64_t extent : entry.shape) {
      if (extent != 0 && elements > bytes_.size() * 2 / static_cast<uint64_t>(extent)) {
        refuse_tensor(name, "its shape is larger than the file");
      }
      elements *= static_cast<uint64_t>(extent);
    }
    const auto width = entry.shape.empty() ? int64_t{1} : entry.shape.back();
    if (width % block.elements != 0) {
      refuse_tensor(
          name, "its rows of " + std::to_string(width) + " are no whole blocks of " + std::to_string(block.elements));
    }
    return elements / static_cast<uint64_t>(block.elements) * static_cast<uint64_t>(block.bytes);
  }

  void take_original_shape(const std::string& name, const std::vector<int64_t>& shape, Entry& entry) const {
    const auto product = [](const std::vector<int64_t>& extents) {
      double count = 1;
      for (const int64_t extent : extents) count *= static_cast<double>(extent);
      return count;
    };
    const bool sound = std::ranges::all_of(shape, [](int64_t extent) { return extent >= 0; });
    if (!sound || product(shape) != product(entry.shape)) {
      refuse_tensor(name, "its noted shape " + shape_text(shape) + " is not that of " + shape_text(entry.shape));
    }
    entry.shape = shape;
  }

  /// Offsets count from the end of the header, rounded up.
  void place_tensors() {
    const uint64_t data = (at_ + alignment_ - 1) / alignment_ * alignment_;
    for (auto& [name, entry] : entries_) {
      if (data > bytes_.size() || entry.begin > bytes_.size() - data ||
          entry.size_bytes > bytes_.size() - data - entry.begin) {
        refuse_tensor(name, "its data is outside of the file; this is not a complete file (copy it anew)");
      }
      entry.begin += data;
    }
  }

  std::span<const unsigned char> bytes_;
  size_t at_ = 0;
  uint64_t alignment_ = 32;
  std::map<std::string, std::vector<int64_t>> original_shapes_;
};

}  // namespace

MappedTensors open_gguf(const std::string& path) {
  return GgufFile(path);
}

}  // namespace calibatt
