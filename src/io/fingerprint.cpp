#include "io/fingerprint.h"

#include <xxhash.h>

#include <nlohmann/json.hpp>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"

namespace calibatt {
namespace {

constexpr size_t kReportedBytes = size_t{1} << 30;  // a second from a fast disk, and enough for all threads

std::string hex_of(XXH128_hash_t hash) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);  // the same digits on every machine
  std::string text;
  for (const unsigned char byte : canonical.digest) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

}  // namespace

struct Hasher::State {
  XXH3_state_t* xxh = XXH3_createState();
  State() {
    if (xxh == nullptr) throw std::bad_alloc();
    XXH3_128bits_reset(xxh);
  }
  ~State() { XXH3_freeState(xxh); }
  State(const State&) = delete;
};

Hasher::Hasher() : state_(std::make_unique<State>()) {}
Hasher::~Hasher() = default;
Hasher::Hasher(Hasher&&) noexcept = default;

void Hasher::update(const void* data, size_t size_bytes) {
  XXH3_128bits_update(state_->xxh, data, size_bytes);
}

void Hasher::update(std::string_view text) {
  const uint64_t length = text.size();
  update(&length, sizeof(length));
  update(text.data(), text.size());
}

std::string Hasher::hex() const {
  return hex_of(XXH3_128bits_digest(state_->xxh));
}

std::string hash_hex(std::string_view bytes) {
  return hex_of(XXH3_128bits(bytes.data(), bytes.size()));
}

std::string model_fingerprint(const JsonConfig& config, const MappedTensors& weights,
                              const std::function<void(int done, int total)>& progress) {
  nlohmann::json settings = config.json();
  for (auto item = settings.begin(); item != settings.end();) {
    item = item.key().starts_with('_') && item.key() != "_class_name" ? settings.erase(item) : std::next(item);
  }
  std::vector<std::string> names;
  for (const auto& [name, entry] : weights.entries()) names.push_back(name);
  std::vector<std::string> hashes(names.size());
  for (size_t first = 0, last = 0; first < names.size(); first = last) {
    if (progress) progress(static_cast<int>(first), static_cast<int>(names.size()));
    for (size_t in_group = 0; last < names.size() && in_group < kReportedBytes; ++last) {
      in_group += weights.entries().at(names[last]).size_bytes;
    }
    parallel_for(static_cast<int64_t>(last - first), 1, [&](int64_t begin, int64_t end, int) {
      for (size_t i = first + static_cast<size_t>(begin); i < first + static_cast<size_t>(end); ++i) {
        const auto bytes = weights.raw_bytes(names[i]);
        hashes[i] = hash_hex({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
      }
    });
  }

  Hasher hasher;
  hasher.update(settings.dump());  // nlohmann keeps keys sorted
  for (size_t i = 0; i < names.size(); ++i) {
    const MappedTensors::Entry& entry = weights.entries().at(names[i]);
    hasher.update(names[i]);
    hasher.update(dtype_name(entry.dtype));
    hasher.update(entry.shape.data(), entry.shape.size() * sizeof(int64_t));
    hasher.update(hashes[i]);
  }
  return hasher.hex();
}

}  // namespace calibatt
