#include "io/mapped_file.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/error.h"
#include "io/input_file.h"
#include "io/system_error.h"

namespace calibatt {

std::shared_ptr<const MappedFile> MappedFile::open(const std::string& path) {
  const InputFile file(path);
  const size_t size = file.size_bytes();
  void* data = nullptr;
  if (size > 0) {
    data = mmap(nullptr, size, PROT_READ, MAP_SHARED, file.descriptor(), 0);
    if (data == MAP_FAILED) {
      throw Error(ErrorKind::kUnreadable, path + ": cannot be mapped into memory: " + system_message(errno));
    }
  }
  return std::shared_ptr<const MappedFile>(new MappedFile(path, static_cast<const unsigned char*>(data), size));
}

MappedFile::MappedFile(std::string path, const unsigned char* data, size_t size)
    : path_(std::move(path)), data_(data), size_(size) {
  if (data_ != nullptr) range_.emplace(data_, size_, path_);
}

void MappedFile::read_ahead(size_t begin, size_t count) const {
  if (count == 0 || begin >= size_) return;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t first = begin / page * page;
  static_cast<void>(madvise(const_cast<unsigned char*>(data_) + first, std::min(count, size_ - begin) + begin - first,
                            MADV_WILLNEED));
}

MappedFile::~MappedFile() {
  range_.reset();
  if (data_ != nullptr) munmap(const_cast<unsigned char*>(data_), size_);
}

}  // namespace calibatt
