#include "io/torch_checkpoint.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/mapped_ranges.h"
#include "calibatt/counted.h"
#include "io/pickle.h"
#include "io/recognise.h"
#include "io/zip_directory.h"

namespace calibatt {
namespace {

using Kind = PickleValue::Kind;

constexpr const char* kRebuildTensor = "torch._utils _rebuild_tensor_v2";
constexpr const char* kRebuildParameter = "torch._utils _rebuild_parameter";
/// Each tensor takes about 200 bytes there; this bounds the memory that a hostile file can ask for.
constexpr size_t kMaxPickleBytes = size_t{8} << 20;

constexpr std::pair<std::string_view, DType> kStorages[] = {
    {"torch FloatStorage", DType::kF32},  {"torch BFloat16Storage", DType::kBF16}, {"torch HalfStorage", DType::kF16},
    {"torch DoubleStorage", DType::kF64}, {"torch LongStorage", DType::kI64},      {"torch IntStorage", DType::kI32},
    {"torch ShortStorage", DType::kI16},  {"torch CharStorage", DType::kI8},       {"torch ByteStorage", DType::kU8},
    {"torch BoolStorage", DType::kBool},
};

std::optional<DType> dtype_of_storage(std::string_view storage) {
  for (const auto& [name, dtype] : kStorages) {
    if (name == storage) return dtype;
  }
  return std::nullopt;
}

bool is_old_format(std::span<const unsigned char> bytes) {
  // A pickle of protocol 2 that begins with torch's magic number, 0x1950a86a20f9469cfc6c.
  constexpr std::string_view kMagic("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 14);
  return bytes.size() >= kMagic.size() && std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) == 0;
}

class TorchCheckpoint : public MappedTensors {
 public:
  explicit TorchCheckpoint(const std::string& path) : MappedTensors(path) {
    files_.push_back(MappedFile::open(path));
    const std::span<const unsigned char> bytes = files_[0]->bytes();
    if (is_old_format(bytes)) refuse("is in PyTorch's format of before 1.6", "; load it in PyTorch and save it again");
    const std::string_view head(reinterpret_cast<const char*>(bytes.data()), std::min<size_t>(bytes.size(), 2));
    if (const std::string found = head == "PK" ? "" : recognise_bytes(bytes); !found.empty()) {
      throw Error(ErrorKind::kFormat, path + ": " + found);
    }
    records_ = read_zip_directory(bytes, path);
    find_root();
    require_little_endian();

    const ZipRecord& pickle_record = records_.at(root_ + "data.pkl");
    if (pickle_record.size_bytes > kMaxPickleBytes) {
      refuse("describes its tensors in " + counted(pickle_record.size_bytes, "bytes") + ", more than the " +
                 std::to_string(kMaxPickleBytes) + " that are read",
             kConvertPickle);
    }
    const Pickle pickle(bytes.subspan(pickle_record.begin, pickle_record.size_bytes), path,
                        {kRebuildTensor, kRebuildParameter});
    const PickleValue& state = pickle.root();
    if (state.kind != Kind::kDict) refuse("holds no dictionary of tensors", kConvertPickle);
    for (const auto& [key, value] : state.entries) {
      if (key->kind != Kind::kText) refuse("has a key that is not a name", kConvertPickle);
      const bool inserted = entries_.emplace(key->text, read_tensor(key->text, *value)).second;
      if (!inserted) refuse_tensor(key->text, "is there twice", kConvertPickle);
    }
  }

 private:
  [[noreturn]] void refuse(const std::string& reason, const char* advice) const {
    require_mapped_files();  // else what is wrong may be that zeros were read
    throw Error(ErrorKind::kFormat, path() + ": " + reason + advice);
  }
  [[noreturn]] void refuse_tensor(const std::string& name, const std::string& reason, const char* advice) const {
    refuse("tensor " + quoted_name(name) + ": " + reason, advice);
  }
  [[noreturn]] void refuse_damaged(const std::string& name, const std::string& reason) const {
    refuse_tensor(name, reason, "; this is not a complete, unaltered PyTorch checkpoint (copy it anew)");
  }

  /// All records lie in one folder of the archive, whose name is of the writer's choice.
  void find_root() {
    constexpr std::string_view kPickle = "/data.pkl";
    for (const auto& [name, record] : records_) {
      if (!name.ends_with(kPickle) || name.find('/') != name.size() - kPickle.size()) continue;
      if (!root_.empty()) refuse("holds more than one data.pkl", kConvertPickle);
      root_ = name.substr(0, name.size() - kPickle.size() + 1);
    }
    if (root_.empty()) refuse("is a zip archive without data.pkl, not what torch.save writes", kConvertPickle);
  }

  void require_little_endian() const {
    const auto found = records_.find(root_ + "byteorder");  // older writers leave it out, and wrote little-endian
    if (found == records_.end()) return;
    const auto bytes = files_[0]->bytes().subspan(found->second.begin, found->second.size_bytes);
    const std::string order(bytes.begin(), bytes.end());
    if (order != "little") {
      refuse("its byte order is " + quoted_name(order) + ", and only \"little\" is read", kConvertPickle);
    }
  }

  std::vector<int64_t> sizes(const std::string& name, const PickleValue& tuple) const {
    std::vector<int64_t> values;
    if (tuple.kind != Kind::kTuple) refuse_damaged(name, "its shape is not a list of sizes");
    for (const PickleValue* item : tuple.items) {
      if (item->kind != Kind::kInteger || item->integer < 0) refuse_damaged(name, "a dimension is not a size");
      values.push_back(item->integer);
    }
    return values;
  }

  /// _rebuild_parameter(tensor, requires_grad, hooks) or _rebuild_tensor_v2(storage, offset, shape, strides, …).
  Entry read_tensor(const std::string& name, const PickleValue& value) const {
    const PickleValue* call = &value;
    if (call->kind == Kind::kCall && call->items[0]->text == kRebuildParameter && call->items.size() > 1) {
      call = call->items[1];
    }
    if (call->kind != Kind::kCall || call->items[0]->text != kRebuildTensor) {
      refuse_tensor(name, "is not a tensor", kConvertPickle);
    }
    if (call->items.size() < 5) refuse_damaged(name, "lacks its shape");
    const auto& items = call->items;  // function, storage, offset, shape, strides, …
    Entry entry;
    entry.stored_name = name;
    entry.shape = sizes(name, *items[3]);
    const uint64_t count = require_contiguous(name, entry.shape, sizes(name, *items[4]));

    if (items[1]->kind != Kind::kPersistent || items[1]->items[0]->kind != Kind::kTuple) {
      refuse_damaged(name, "has no storage");
    }
    const auto& id = items[1]->items[0]->items;  // "storage", type, key, device, elements
    if (id.size() != 5 || id[0]->text != "storage" || id[1]->kind != Kind::kGlobal || id[2]->kind != Kind::kText ||
        id[4]->kind != Kind::kInteger || id[4]->integer < 0) {
      refuse_damaged(name, "its storage is not described as PyTorch does");
    }
    const auto dtype = dtype_of_storage(id[1]->text);
    if (!dtype) refuse_tensor(name, "its storage " + quoted_name(id[1]->text) + " is not supported", kConvertPickle);
    entry.dtype = *dtype;

    const auto found = records_.find(root_ + "data/" + id[2]->text);
    if (found == records_.end()) refuse_damaged(name, "its data " + quoted_name(id[2]->text) + " is not in the file");
    const ZipRecord& record = found->second;
    const uint64_t element = dtype_size(*dtype), capacity = record.size_bytes / element;
    if (record.size_bytes % element != 0 || capacity != static_cast<uint64_t>(id[4]->integer)) {
      refuse_damaged(name, "its storage is said to have " + std::to_string(id[4]->integer) + " elements, and has " +
                               counted(record.size_bytes, "bytes"));
    }
    const PickleValue& offset = *items[2];
    if (offset.kind != Kind::kInteger || offset.integer < 0 || static_cast<uint64_t>(offset.integer) > capacity ||
        count > capacity - static_cast<uint64_t>(offset.integer)) {
      refuse_damaged(name, "its " + std::to_string(count) + " elements from " + std::to_string(offset.integer) +
                               " on are outside of its storage of " + std::to_string(capacity));
    }
    entry.begin = record.begin + static_cast<uint64_t>(offset.integer) * element;
    entry.size_bytes = count * element;
    return entry;
  }

  /// The number of elements. They must lie in row-major order: loaders use them in place.
  uint64_t require_contiguous(const std::string& name, const std::vector<int64_t>& shape,
                              const std::vector<int64_t>& strides) const {
    if (strides.size() != shape.size()) refuse_damaged(name, "has not one stride for each dimension");
    uint64_t count = 1;
    bool has_zero = false;
    for (const int64_t extent : shape) {
      has_zero |= extent == 0;
      // Zeros must not hide a product that overflows.
      if (extent != 0 && count > uint64_t{INT64_MAX} / 8 / static_cast<uint64_t>(extent)) {
        refuse_damaged(name, "its shape is impossibly large");
      }
      if (extent != 0) count *= static_cast<uint64_t>(extent);
    }
    if (has_zero) return 0;
    uint64_t expected = 1;
    for (size_t axis = shape.size(); axis-- > 0;) {
      if (shape[axis] != 1 && static_cast<uint64_t>(strides[axis]) != expected) {
        refuse_tensor(name,
                      "is not contiguous (stride " + std::to_string(strides[axis]) + " along axis " +
                          std::to_string(axis) + ", expected " + std::to_string(expected) + ")",
                      "; load it in PyTorch, call .contiguous() on it and save it again");
      }
      expected *= static_cast<uint64_t>(shape[axis]);
    }
    return count;
  }

  std::map<std::string, ZipRecord> records_;
  std::string root_;  ///< with its "/"
};

}  // namespace

MappedTensors open_torch_checkpoint(const std::string& path) {
  return TorchCheckpoint(path);
}

}  // namespace calibatt
