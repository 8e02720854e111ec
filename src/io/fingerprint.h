#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "io/json_config.h"
#include "io/mapped_tensors.h"

namespace calibatt {

/// XXH3, 128 bits: tells apart what differs by accident, not what someone made to collide.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(Hasher&&) noexcept;
  void update(const void* data, size_t size_bytes);
  /// The text and its length, so that ("a", "bc") differs from ("ab", "c").
  void update(std::string_view text);
  std::string hex() const;  ///< 32 lower-case digits; updates may go on afterwards

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string hash_hex(std::string_view bytes);  ///< XXH3-128 of the bytes alone

/// Hears of the tensors that are done, at least once a GB, on the calling thread, and may end the work by throwing.
using FingerprintProgress = std::function<void(int done, int total)>;

/// Identifies a model component by what it computes: `settings` (what of its configuration changes the arithmetic, in
/// one fixed spelling) and every tensor's name, shape and values, rounded to bf16. So weights that were saved again, in
/// another file or order, or as F32, BF16 or F16 that hold the same values, have one fingerprint, and both layouts of a
/// Wan checkpoint, too, when they are opened as components (models/original_layout.h). Reads all weights once, on all
/// threads. Begins with "values1:", the name of this scheme.
std::string values_fingerprint(const std::string& settings, const MappedTensors& weights,
                               const FingerprintProgress& progress = {});

/// The scheme of plans of versions 1 and 2, 32 digits alone: every setting of the config (without the notes of the
/// program that saved it: keys with a leading underscore other than _class_name) and every tensor's name, dtype, shape
/// and bytes as stored. Independent only of how the tensors are spread over files.
std::string stored_fingerprint(const JsonConfig& config, const MappedTensors& weights,
                               const FingerprintProgress& progress = {});

/// Which of the two a recorded fingerprint is. Empty: of values, the present scheme.
enum class FingerprintScheme { kValues, kStored };
FingerprintScheme fingerprint_scheme(std::string_view recorded);

/// Of weights that were changed as they were read, as LoRAs are merged: of the values, and of what they were made from
/// ("values1:…+from1:…"), since sums differ in the last bit from one kind of processor to another.
std::string merged_fingerprint(const std::string& values, const std::string& sources);
struct FingerprintParts {
  std::string values, sources;  ///< the second is empty where the fingerprint is of values alone
};
FingerprintParts parts_of_fingerprint(const std::string& recorded);
/// Whether two fingerprints of one scheme are of the same weights: of the same values, or made from the same.
bool same_weights(const std::string& a, const std::string& b);

/// XXH3-128 of a file's bytes. Throws Error(kNotFound / kUnreadable).
std::string file_hash(const std::string& path);
/// The same of a file of at most 64 MB; of a larger one, of its size and 256 pieces of 4 KB that are spread evenly, so
/// that one of many GB is looked at in a moment. Tells models and LoRAs apart, not what differs in one place alone.
std::string sampled_file_hash(const std::string& path);

}  // namespace calibatt
