#pragma once

#include <string>

namespace calibatt {

/// Where an output path leads. A symbolic link is followed, so that the file it names is written and the link stays.
/// Devices and FIFOs are written into (/dev/null, /dev/stdout); block devices, sockets and folders are refused.
struct OutputTarget {
  std::string path;     ///< the last name in a chain of links
  bool stream = false;  ///< it exists and is written into; else a file that is made or replaced as a whole
  int descriptor = -1;  ///< of a stream that is open already (/dev/stdout, /dev/fd/3), borrowed; else −1
};

/// Throws Error(kIo) for everything that can be known before writing: a missing or read-only folder, a file that is
/// write-protected, a name that is too long, a chain of links without end. The message begins with `path`.
OutputTarget resolve_output(const std::string& path);

std::string folder_of(const std::string& path);        ///< "." for a bare name
std::string lower_extension(const std::string& path);  ///< ".mp4" of "a.MP4"

}  // namespace calibatt
