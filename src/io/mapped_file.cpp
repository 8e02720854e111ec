#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/error.h"
#include "io/system_error.h"

namespace calibatt {

std::shared_ptr<const MappedFile> MappedFile::open(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) throw_open_error(path, errno);
  struct stat status {};
  if (fstat(descriptor, &status) != 0) {
    const int code = errno;
    ::close(descriptor);
    throw_open_error(path, code);
  }
  if (!S_ISREG(status.st_mode)) {
    ::close(descriptor);
    throw Error(ErrorKind::kIo, path + ": not a regular file; give the path of a file");
  }
  const auto size = static_cast<size_t>(status.st_size);
  void* data = nullptr;
  if (size > 0) {
    data = mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor, 0);
    if (data == MAP_FAILED) {
      const int code = errno;
      ::close(descriptor);
      throw Error(ErrorKind::kIo, path + ": cannot be mapped into memory: " + system_message(code));
    }
  }
  ::close(descriptor);  // the mapping stays
  return std::shared_ptr<const MappedFile>(new MappedFile(path, static_cast<const unsigned char*>(data), size));
}

MappedFile::MappedFile(std::string path, const unsigned char* data, size_t size)
    : path_(std::move(path)), data_(data), size_(size) {}

void MappedFile::read_ahead(size_t begin, size_t count) const {
  if (count == 0 || begin >= size_) return;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t first = begin / page * page;
  static_cast<void>(madvise(const_cast<unsigned char*>(data_) + first, std::min(count, size_ - begin) + begin - first,
                            MADV_WILLNEED));
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<unsigned char*>(data_), size_);
}

}  // namespace calibatt
