#pragma once

#include <string>

namespace calibatt {

/// Says that this process measures prompts [begin, end) of a profile folder, until it is destroyed or the process ends,
/// however it ends (the kernel holds the lock: bytes [begin, end) of the hidden file `.lock`). Processes with ranges
/// that do not overlap share a folder.
class ProfileLock {
 public:
  /// Creates the folder where there is none. Throws Error(kMismatch) naming the process that measures one of these
  /// prompts already, Error(kIo) when the folder cannot be written.
  ProfileLock(const std::string& folder, int begin, int end);
  ~ProfileLock();
  ProfileLock(const ProfileLock&) = delete;
  ProfileLock& operator=(const ProfileLock&) = delete;

 private:
  int descriptor_ = -1;
};

}  // namespace calibatt
