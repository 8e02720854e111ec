#pragma once

#include <string>
#include <vector>

#include "calibatt/export.h"

namespace calibatt {

/// One prompt and, for messages, where it was written: "--prompt", or "prompts.txt:3" for the third line of a file.
struct Prompt {
  std::string text;
  std::string source;
};

/// The prompts of a text file, one a line, as they stand there. Blank lines and comments, whose first character after
/// blanks is '#', are passed over. Lines end in LF, CRLF or CR. The file is UTF-8, with a byte order mark or without,
/// or UTF-16 with one.
///
/// Throws Error(kNotFound / kUnreadable) for a file that cannot be read; Error(kFormat) naming file, line and byte for
/// one in another encoding, with NUL bytes, or with a line that no prompt can be as long as; Error(kUsage) where a line
/// is empty once cleaned, or the file holds no prompt at all.
CALIBATT_API std::vector<Prompt> read_prompts(const std::string& path);

/// Throws Error(kUsage), beginning with the source, where the text is not UTF-8 or is too long to be a prompt. An empty
/// prompt is one: it makes an unconditional video.
CALIBATT_API void check_prompt(const Prompt& prompt);

}  // namespace calibatt
