#include "serve/picture_bytes.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <mutex>

#include "calibatt/error.h"

namespace calibatt::serve {
namespace {

/// A file that lies in memory alone, for a reader that takes paths.
class MemoryFile {
 public:
  explicit MemoryFile(const std::string& bytes) : descriptor_(::memfd_create("input_reference", MFD_CLOEXEC)) {
    if (descriptor_ < 0) fail();
    for (size_t done = 0; done < bytes.size();) {
      const ssize_t count = ::write(descriptor_, bytes.data() + done, bytes.size() - done);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) {
        const int code = errno;
        ::close(descriptor_);
        errno = code;
        fail();
      }
      done += static_cast<size_t>(count);
    }
  }
  ~MemoryFile() { ::close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  [[noreturn]] static void fail() {
    throw Error(ErrorKind::kIo, std::string("input_reference: cannot be held in memory: ") + std::strerror(errno));
  }
  int descriptor_;
};

}  // namespace

std::shared_ptr<const Picture> picture_of_bytes(const std::string& bytes) {
  // One after another: decoded, a picture of few bytes may be hundreds of megabytes.
  static std::mutex decoding;
  const std::lock_guard lock(decoding);
  const MemoryFile file(bytes);
  try {
    auto picture = std::make_shared<Picture>(read_picture(file.path()));
    picture->source = "input_reference";
    return picture;
  } catch (const Error& error) {
    std::string message = error.what();
    if (const size_t at = message.find(file.path()); at != std::string::npos) {
      message.replace(at, file.path().size(), "input_reference");
    }
    throw Error(error.kind(), message);
  }
}

}  // namespace calibatt::serve
