#include "io/system_error.h"

#include <cerrno>
#include <system_error>

#include "base/error.h"
#include "base/mapped_ranges.h"

namespace calibatt {

std::string system_message(int code) {
  return std::generic_category().message(code);
}

void throw_open_error(const std::string& path, int code) {
  if (code == ENOENT || code == ENOTDIR) {
    throw Error(ErrorKind::kNotFound, path + ": no such file; check the path");
  }
  throw Error(ErrorKind::kUnreadable, path + ": cannot be read: " + system_message(code));
}

void throw_write_error(const std::string& path, int code) {
  if (code == EFAULT) require_mapped_files();  // what was to be written comes from a file that cannot be read
  std::string remedy;
  if (code == ENOSPC || code == EDQUOT || code == EFBIG) {
    remedy = "; free some space or choose another folder (nothing was left behind)";
  } else if (code == ENOENT) {
    remedy = "; create the folder first";
  } else if (code == ENOTDIR) {
    remedy = "; what its path calls a folder is a file: choose another";
  } else if (code == EACCES || code == EPERM || code == EROFS) {
    remedy = "; choose a folder that you may write to";
  }
  throw Error(ErrorKind::kIo, path + ": cannot be written: " + system_message(code) + remedy);
}

}  // namespace calibatt
