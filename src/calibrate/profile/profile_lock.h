#pragma once

#include <string>

namespace calibatt {

/// Says that somebody measures prompts [begin, end) of a profile folder, until it is destroyed or the process ends,
/// however it ends: the kernel holds the lock, on bytes [begin, end) of the hidden file `.lock`. Processes, and threads
/// of one, whose ranges do not overlap share a folder. The last one to leave removes the file, and a folder of its own
/// making in which nothing was measured.
class ProfileLock {
 public:
  /// Creates the folder where there is none. Throws Error(kMismatch) naming the process that measures one of these
  /// prompts already, Error(kIo) when the folder cannot be written.
  ProfileLock(const std::string& folder, int begin, int end);
  ~ProfileLock();
  ProfileLock(const ProfileLock&) = delete;
  ProfileLock& operator=(const ProfileLock&) = delete;

 private:
  std::string path_;
  bool created_folder_ = false;
  int descriptor_ = -1;
};

}  // namespace calibatt
