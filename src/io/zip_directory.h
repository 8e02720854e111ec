#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>

namespace calibatt {

/// One record of a zip archive: where its bytes lie in the file.
struct ZipRecord {
  size_t begin = 0, size_bytes = 0;
};

/// The records of a zip archive by name, from its central directory (also ZIP64, PKWARE's APPNOTE 4.3.14), for archives
/// whose records are stored, not compressed. Everything is checked against the file: records lie before the directory,
/// behind their own local headers, and do not overlap. Checksums are not: that would read the whole file.
/// A package such as libzip copies what it reads; here records are used where they lie in the mapped file, because the
/// text encoder's are 11 GB, and the directory is all that is needed of the format.
/// Throws Error(kFormat) in the form `PATH: reason; what to do`.
std::map<std::string, ZipRecord> read_zip_directory(std::span<const unsigned char> file, const std::string& path);

}  // namespace calibatt
