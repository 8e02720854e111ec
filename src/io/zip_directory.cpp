#include "io/zip_directory.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/mapped_ranges.h"
#include "calibatt/counted.h"
#include "io/mapped_tensors.h"

namespace calibatt {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are read as they lie");

constexpr uint32_t kLocalHeader = 0x04034b50, kCentralHeader = 0x02014b50, kEnd = 0x06054b50, kEnd64 = 0x06064b50,
                   kEnd64Locator = 0x07064b50;
constexpr size_t kLocalBytes = 30, kCentralBytes = 46, kEndBytes = 22, kEnd64Bytes = 56, kLocatorBytes = 20;
constexpr size_t kMaxComment = 65535;
constexpr uint16_t kZip64Extra = 1;
constexpr uint32_t kIn64 = 0xffffffff;  ///< in a 32-bit field: the value is in the ZIP64 extra field

/// Reads numbers at offsets that were checked to be in the file.
class Reader {
 public:
  Reader(std::span<const unsigned char> file, const std::string& path) : file_(file), path_(path) {}

  [[noreturn]] void refuse(const std::string& reason) const {
    require_mapped_files();  // else what is wrong may be that zeros were read
    throw Error(ErrorKind::kFormat, path_ + ": " + reason + "; the file is not a complete zip archive (copy it anew)");
  }
  size_t size() const { return file_.size(); }
  bool holds(uint64_t begin, uint64_t count) const { return begin <= file_.size() && count <= file_.size() - begin; }
  template <class T>
  T number(uint64_t begin) const {
    CALIBATT_ASSERT(holds(begin, sizeof(T)));
    T value;
    std::memcpy(&value, file_.data() + begin, sizeof(T));
    return value;
  }
  uint16_t u16(uint64_t begin) const { return number<uint16_t>(begin); }
  uint32_t u32(uint64_t begin) const { return number<uint32_t>(begin); }
  uint64_t u64(uint64_t begin) const { return number<uint64_t>(begin); }
  std::string text(uint64_t begin, size_t count) const {
    CALIBATT_ASSERT(holds(begin, count));
    return {reinterpret_cast<const char*>(file_.data()) + begin, count};
  }

 private:
  std::span<const unsigned char> file_;
  const std::string& path_;
};

struct Directory {
  uint64_t begin = 0, size_bytes = 0, num_records = 0;
};

/// The end record, which lies behind everything else but a comment.
Directory find_directory(const Reader& file) {
  if (file.size() < kEndBytes) file.refuse("only " + counted(file.size(), "bytes"));
  const size_t last = file.size() - kEndBytes, first = last > kMaxComment ? last - kMaxComment : 0;
  std::optional<size_t> end;
  for (size_t at = last + 1; at-- > first && !end;) {
    if (file.u32(at) == kEnd && at + kEndBytes + file.u16(at + 20) == file.size()) end = at;
  }
  if (!end) file.refuse("no zip directory at its end: it was cut short, or is no zip archive");
  Directory directory{file.u32(*end + 16), file.u32(*end + 12), file.u16(*end + 10)};
  uint64_t directory_end = *end;
  if (file.u16(*end + 4) != file.u16(*end + 6)) file.refuse("is one part of an archive in several files");
  if (*end >= kLocatorBytes && file.u32(*end - kLocatorBytes) == kEnd64Locator) {
    const uint64_t end64 = file.u64(*end - kLocatorBytes + 8);
    if (end64 > *end - kLocatorBytes || *end - kLocatorBytes - end64 < kEnd64Bytes || file.u32(end64) != kEnd64) {
      file.refuse("its ZIP64 directory is said to end at byte " + std::to_string(end64) + ", where it does not");
    }
    directory = {file.u64(end64 + 48), file.u64(end64 + 40), file.u64(end64 + 32)};
    directory_end = end64;
  }
  if (directory.begin > directory_end || directory.size_bytes > directory_end - directory.begin) {
    file.refuse("its directory is said to be the " + counted(directory.size_bytes, "bytes") + " from byte " +
                std::to_string(directory.begin) + " on, which it cannot be in " + std::to_string(file.size()));
  }
  if (directory.num_records > directory.size_bytes / kCentralBytes) {
    file.refuse("its directory of " + counted(directory.size_bytes, "bytes") + " is said to list " +
                std::to_string(directory.num_records) + " records");
  }
  return directory;
}

/// Sizes and place as the ZIP64 extra field has them: those that are all ones in the 32-bit fields, in this order.
struct Place {
  uint64_t size_bytes, stored_bytes, header;
};
bool read_zip64(const Reader& file, uint64_t extra, uint64_t extra_bytes, Place& place) {
  std::vector<uint64_t*> wanted;
  for (uint64_t* value : {&place.size_bytes, &place.stored_bytes, &place.header}) {
    if (*value == kIn64) wanted.push_back(value);
  }
  if (wanted.empty()) return true;
  while (extra_bytes >= 4) {
    const uint64_t field_bytes = file.u16(extra + 2);
    if (field_bytes > extra_bytes - 4) return false;
    if (file.u16(extra) == kZip64Extra) {
      if (field_bytes < 8 * wanted.size()) return false;
      for (size_t i = 0; i < wanted.size(); ++i) *wanted[i] = file.u64(extra + 4 + 8 * i);
      return true;
    }
    extra += 4 + field_bytes;
    extra_bytes -= 4 + field_bytes;
  }
  return false;
}

}  // namespace

std::map<std::string, ZipRecord> read_zip_directory(std::span<const unsigned char> bytes, const std::string& path) {
  const Reader file(bytes, path);
  const Directory directory = find_directory(file);
  std::map<std::string, ZipRecord> records;
  struct Range {
    uint64_t begin, end;  ///< the local header's begin, the data's end
    const std::string* name;
  };
  std::vector<Range> ranges;
  uint64_t at = directory.begin;
  const uint64_t directory_end = directory.begin + directory.size_bytes;
  for (uint64_t i = 0; i < directory.num_records; ++i) {
    const std::string which = "record " + std::to_string(i) + " of its directory";
    if (directory_end - at < kCentralBytes || file.u32(at) != kCentralHeader) file.refuse(which + " is not there");
    const uint64_t name_bytes = file.u16(at + 28), extra_bytes = file.u16(at + 30), comment_bytes = file.u16(at + 32);
    if (name_bytes + extra_bytes + comment_bytes > directory_end - at - kCentralBytes) {
      file.refuse(which + " reaches beyond the directory");
    }
    const std::string name = file.text(at + kCentralBytes, name_bytes);
    const auto refuse = [&](const std::string& reason) { file.refuse("record " + quoted_name(name) + " " + reason); };
    Place place{file.u32(at + 24), file.u32(at + 20), file.u32(at + 42)};
    if (!read_zip64(file, at + kCentralBytes + name_bytes, extra_bytes, place)) refuse("lacks its ZIP64 sizes");
    const uint16_t flags = file.u16(at + 8), method = file.u16(at + 10);
    if ((flags & 1) != 0 || method != 0 || place.size_bytes != place.stored_bytes) {
      throw Error(ErrorKind::kFormat, path + ": record " + quoted_name(name) +
                                          " is compressed or encrypted, and is used in place; store it plainly, as "
                                          "torch.save does, or convert the file to safetensors");
    }

    if (place.header > directory.begin || directory.begin - place.header < kLocalBytes ||
        file.u32(place.header) != kLocalHeader) {
      refuse("has no header at byte " + std::to_string(place.header));
    }
    // The local extra field has a length of its own: torch pads with it.
    const uint64_t local_name = file.u16(place.header + 26), local_extra = file.u16(place.header + 28);
    const uint64_t begin = place.header + kLocalBytes + local_name + local_extra;
    if (begin > directory.begin || place.size_bytes > directory.begin - begin) {
      refuse("of " + counted(place.size_bytes, "bytes") + " reaches beyond the data");
    }
    if (file.text(place.header + kLocalBytes, local_name) != name) refuse("has another name in its own header");
    const auto [position, inserted] = records.emplace(name, ZipRecord{begin, place.size_bytes});
    if (!inserted) refuse("is there twice");
    ranges.push_back({place.header, begin + place.size_bytes, &position->first});
    at += kCentralBytes + name_bytes + extra_bytes + comment_bytes;
  }
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].begin < ranges[i - 1].end) {
      file.refuse("records " + quoted_name(*ranges[i - 1].name) + " and " + quoted_name(*ranges[i].name) + " overlap");
    }
  }
  return records;
}

}  // namespace calibatt
