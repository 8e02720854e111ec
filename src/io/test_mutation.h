#pragma once

#include <cstddef>
#include <random>
#include <span>
#include <string>

namespace calibatt::test {

/// For tests: the same changes of files in every run.
class Mutator {
 public:
  explicit Mutator(unsigned seed) : random_(seed) {}

  size_t below(size_t limit) { return random_() % limit; }
  auto number() { return random_(); }
  /// One to `most_edits` times: something is cut out, one of the tokens or another piece of the same text put in, or a
  /// byte changed. Never empty.
  std::string mutant_of(const std::string& sound, std::span<const std::string> tokens, size_t most_edits) {
    constexpr size_t kLongestCut = 16, kLongestPiece = 50;
    std::string mutant = sound;
    for (size_t edits = 1 + below(most_edits); edits > 0; --edits) {
      const size_t at = below(mutant.size());
      switch (below(4)) {
        case 0:
          mutant.erase(at, 1 + below(kLongestCut));
          break;
        case 1:
          mutant.insert(at, tokens[below(tokens.size())]);
          break;
        case 2:
          mutant.insert(at, sound.substr(below(sound.size()), below(kLongestPiece)));
          break;
        default:
          mutant[at] = static_cast<char>(random_());
      }
      if (mutant.empty()) mutant = sound;
    }
    return mutant;
  }

 private:
  std::mt19937 random_;
};

}  // namespace calibatt::test
