#pragma once

#include <string>
#include <string_view>

namespace calibatt {

/// A prompt as diffusers' Wan pipelines clean it before tokenizing: ftfy.fix_text (6.3), html.unescape twice, runs of
/// white space to one blank, none at the ends. Any bytes in, valid UTF-8 out: what is not UTF-8 becomes U+FFFD.
///
/// Of ftfy, done here: HTML entities (kept from the first line with "<" on), terminal escapes, control characters, C1
/// controls read as Windows-1252, Latin ligatures, full-width and half-width forms, straight quotes, line breaks, NFC,
/// and UTF-8 that was once read as Windows-1252 or Latin-1, in a whole line or in parts of it. Not covered: mojibake
/// through other encodings (MacRoman, Windows-1250, -1251, …), with bytes lost or blanks in place of U+00A0; and
/// references in capitals to what is no letter ("&CHECKMARK;").
std::string clean_prompt(std::string_view prompt);

}  // namespace calibatt
