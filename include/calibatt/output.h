#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "calibatt/export.h"

namespace calibatt {

/// Writes a small file, complete or not at all. Throws Error(kIo).
CALIBATT_API void write_text_file(const std::string& path, std::string_view text);

/// All of a text file. Throws Error(kNotFound / kUnreadable), also for what is no regular file, and Error(kFormat) for
/// one of more than `max_bytes`.
CALIBATT_API std::string read_text_file(const std::string& path, size_t max_bytes = size_t{64} << 20);

enum class OutputKind {
  kVideo,    ///< .mp4, .webm, .webp, or .png for numbered frames
  kPicture,  ///< .png
  kPlan,     ///< .safetensors
  kFrames,   ///< .safetensors: frames that were kept because their video could not be written
  kReport,   ///< JSON, by any name
  kPage,     ///< .html: a report to look at
  kFolder,   ///< is made where it is missing
};

/// A file or folder that a program will write. `flag` is what messages call it ("--report").
struct Output {
  OutputKind kind = OutputKind::kReport;
  std::string flag, path;
};

/// A file that a program will read, the name of numbered frames, or a folder whose files it may read.
struct Input {
  std::string flag, path;
};

/// To be called before work that takes long: refuses what would fail at its end, and what would destroy something.
/// Throws Error(kIo) for a place that cannot be written to; Error(kUsage) for an extension that is not known, for an
/// output that is an input or another output (the same file, by whatever name), and for one that would replace a file
/// of another kind, such as a model's weights. An empty path is an output that is not wanted.
CALIBATT_API void check_outputs(const std::vector<Output>& outputs, const std::vector<Input>& inputs);

}  // namespace calibatt
