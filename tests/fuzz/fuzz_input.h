// What the libFuzzer targets share: their bytes as a file, and what may come of reading it.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/error.h"

namespace calibatt::fuzz {

/// Of this process alone, and in memory.
inline std::string own_path(const std::string& name) {
  return "/dev/shm/calibatt-fuzzer-" + std::to_string(getpid()) + name;
}
inline std::string own_folder(const std::string& name) {
  std::filesystem::create_directories(own_path(name));
  return own_path(name);
}

inline void write_file(const std::string& path, const uint8_t* data, size_t size) {
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
}
/// The input as a file whose name ends so.
inline std::string input_file(const uint8_t* data, size_t size, const std::string& ending) {
  std::string path = own_path(ending);
  write_file(path, data, size);
  return path;
}

/// Anything may be refused by an Error. Whatever else is thrown ends the process, which libFuzzer reports.
void attempt(const auto& read) {
  try {
    read();
  } catch (const Error&) {
  }
}

}  // namespace calibatt::fuzz
