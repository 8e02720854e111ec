#pragma once

#include <string>

namespace calibatt {

/// Where an output path leads. A symbolic link is followed, so that the file it names is written and the link stays.
/// Devices and FIFOs are written into (/dev/null, /dev/stdout); block devices, sockets and folders are refused, and so
/// is a FIFO that nobody reads.
struct OutputTarget {
  std::string path;     ///< the last name in a chain of links
  bool stream = false;  ///< it exists and is written into; else a file that is made or replaced as a whole
  int descriptor = -1;  ///< of a stream that is open already (/dev/stdout, /dev/fd/3), borrowed; else −1
};

/// Throws Error(kIo) for everything that can be known before writing: a missing or read-only folder, a file that is
/// write-protected, a name that is too long, a chain of links without end. The message begins with `path`.
/// A FIFO is opened here, since opening it is the one way to see whether it has a reader (who may come within seconds),
/// and stays open for whoever writes it (take_fifo): closed, it would tell the reader that all was written.
OutputTarget resolve_output(const std::string& path);

/// The descriptor of a FIFO that resolve_output opened; the caller closes it. −1 where there is none.
int take_fifo(const std::string& target_path);

std::string folder_of(const std::string& path);        ///< "." for a bare name
std::string lower_extension(const std::string& path);  ///< ".mp4" of "a.MP4"

}  // namespace calibatt
