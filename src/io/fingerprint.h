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

/// Identifies a model component: every setting of its config (without the notes of the program that saved it: keys with
/// a leading underscore other than _class_name) and every tensor's name, dtype, shape and bytes. Independent of how the
/// tensors are spread over files. Both layouts of a Wan checkpoint give one fingerprint when they are opened as
/// components (models/original_layout.h). Reads all weights once, on all threads; `progress` hears of the tensors that
/// are done, at least once a GB, on the calling thread, and may end it by throwing.
std::string model_fingerprint(const JsonConfig& config, const MappedTensors& weights,
                              const std::function<void(int done, int total)>& progress = {});

}  // namespace calibatt
