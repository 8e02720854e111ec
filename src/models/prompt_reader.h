#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "calibatt/prompts.h"
#include "text/tokenizer.h"

namespace calibatt {

/// Prompts as a model's pipeline makes tokens of them: cleaned in its way, and cut to what the model reads.
class PromptReader {
 public:
  /// clean: null, prompts are taken as they are. warn: as in ModelLoadOptions. Throws what Tokenizer::load throws.
  PromptReader(const std::string& tokenizer_folder, int max_tokens, std::string (*clean)(std::string_view text),
               std::function<void(const std::string& message)> warn);

  /// At most max_tokens, the last of them the end of sequence. Warns of a cut, once for each prompt. Throws
  /// Error(kUsage) for a prompt that cannot be read.
  std::vector<int32_t> tokens(const Prompt& prompt);

 private:
  Tokenizer tokenizer_;
  int max_tokens_;
  std::string (*clean_)(std::string_view text);
  std::function<void(const std::string& message)> warn_;
  std::set<std::string> warned_;
};

}  // namespace calibatt
