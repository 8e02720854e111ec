#include "io/fingerprint.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/error.h"
#include "base/mapped_ranges.h"
#include "base/thread_pool.h"
#include "io/input_file.h"
#include "io/mapped_file.h"

namespace calibatt {
namespace {

constexpr size_t kReportedBytes = size_t{1} << 30;  // a second from a fast disk, and enough for all threads
constexpr std::string_view kValuesPrefix = "values1:";
constexpr std::string_view kSources = "+from1:";
constexpr uint64_t kWholeBytes = uint64_t{64} << 20, kSamples = 256, kSampleBytes = 4096;
constexpr int64_t kPieceElements = int64_t{1} << 20;  // part of the scheme: a tensor's hash is that of its pieces'

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

bool is_float(DType dtype) {
  return dtype == DType::kF64 || dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

/// What one thread hashes at a time: these elements of a tensor.
struct Piece {
  size_t tensor = 0;
  int64_t begin = 0, count = 0;
};
using HashPiece = std::function<std::string(const Tensor& tensor, const Piece& piece)>;

/// The hashes of each tensor's pieces, joined, in the order of the names. A group of tensors at a time.
std::vector<std::string> hash_tensors(const MappedTensors& weights, int64_t piece_elements, const HashPiece& hash,
                                      const FingerprintProgress& progress) {
  std::vector<std::string> names;
  for (const auto& [name, entry] : weights.entries()) names.push_back(name);
  std::vector<std::string> hashes(names.size());
  for (size_t first = 0, last = 0; first < names.size(); first = last) {
    if (progress) progress(static_cast<int>(first), static_cast<int>(names.size()));
    std::vector<Tensor> tensors;
    std::vector<Piece> pieces;
    for (size_t in_group = 0; last < names.size() && in_group < kReportedBytes; ++last) {
      tensors.push_back(weights.get(names[last]));
      in_group += tensors.back().size_bytes();
      int64_t begin = 0;
      do {  // an empty tensor has one piece, too
        pieces.push_back({last, begin, std::min(piece_elements, tensors.back().size() - begin)});
        begin += pieces.back().count;
      } while (begin < tensors.back().size());
    }
    std::vector<std::string> found(pieces.size());
    parallel_for(static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const Piece& piece = pieces[static_cast<size_t>(i)];
        found[static_cast<size_t>(i)] = hash(tensors[piece.tensor - first], piece);
      }
    });
    require_mapped_files();
    for (size_t i = 0; i < pieces.size(); ++i) hashes[pieces[i].tensor] += found[i];
  }
  return hashes;
}

/// As bf16 where it is a float: from the file itself, or by way of the cache.
std::string hash_values(const Tensor& tensor, const Piece& piece) {
  const auto* from =
      static_cast<const char*>(tensor.raw()) + static_cast<size_t>(piece.begin) * dtype_size(tensor.dtype());
  if (!is_float(tensor.dtype()) || tensor.dtype() == DType::kBF16) {
    return hash_hex({from, static_cast<size_t>(piece.count) * dtype_size(tensor.dtype())});
  }
  constexpr int64_t kStep = 4096;
  bfloat16 rounded[kStep];
  Hasher hasher;
  for (int64_t begin = 0; begin < piece.count; begin += kStep) {
    const int64_t count = std::min(kStep, piece.count - begin);
    convert_elements(from + static_cast<size_t>(begin) * dtype_size(tensor.dtype()), tensor.dtype(), rounded,
                     DType::kBF16, count);
    hasher.update(rounded, static_cast<size_t>(count) * sizeof(bfloat16));
  }
  return hasher.hex();
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

std::string values_fingerprint(const std::string& settings, const MappedTensors& weights,
                               const FingerprintProgress& progress) {
  const std::vector<std::string> hashes = hash_tensors(weights, kPieceElements, hash_values, progress);
  Hasher hasher;
  hasher.update(settings);
  size_t at = 0;
  for (const auto& [name, entry] : weights.entries()) {
    hasher.update(name);
    if (!is_float(entry.dtype)) hasher.update(dtype_name(entry.dtype));
    hasher.update(entry.shape.data(), entry.shape.size() * sizeof(int64_t));
    hasher.update(hashes[at++]);
  }
  return std::string(kValuesPrefix) + hasher.hex();
}

std::string stored_fingerprint(const JsonConfig& config, const MappedTensors& weights,
                               const FingerprintProgress& progress) {
  nlohmann::json settings = config.json();
  for (auto item = settings.begin(); item != settings.end();) {
    item = item.key().starts_with('_') && item.key() != "_class_name" ? settings.erase(item) : std::next(item);
  }
  const auto whole = [](const Tensor& tensor, const Piece&) {
    return hash_hex({static_cast<const char*>(tensor.raw()), tensor.size_bytes()});
  };
  const std::vector<std::string> hashes = hash_tensors(weights, std::numeric_limits<int64_t>::max(), whole, progress);
  Hasher hasher;
  hasher.update(settings.dump());  // nlohmann keeps keys sorted
  size_t at = 0;
  for (const auto& [name, entry] : weights.entries()) {
    hasher.update(name);
    hasher.update(dtype_name(entry.dtype));
    hasher.update(entry.shape.data(), entry.shape.size() * sizeof(int64_t));
    hasher.update(hashes[at++]);
  }
  return hasher.hex();
}

FingerprintScheme fingerprint_scheme(std::string_view recorded) {
  return recorded.empty() || recorded.starts_with(kValuesPrefix) ? FingerprintScheme::kValues
                                                                 : FingerprintScheme::kStored;
}

std::string merged_fingerprint(const std::string& values, const std::string& sources) {
  return values + std::string(kSources) + sources;
}

FingerprintParts parts_of_fingerprint(const std::string& recorded) {
  const size_t at = recorded.find(kSources);
  if (at == std::string::npos) return {recorded, ""};
  return {recorded.substr(0, at), recorded.substr(at + kSources.size())};
}

bool same_weights(const std::string& a, const std::string& b) {
  const FingerprintParts one = parts_of_fingerprint(a), other = parts_of_fingerprint(b);
  return one.values == other.values || (!one.sources.empty() && one.sources == other.sources);
}

std::string file_hash(const std::string& path) {
  const auto file = MappedFile::open(path);
  Hasher hasher;
  hasher.update(file->bytes().data(), file->size());
  file->require_readable();
  return hasher.hex();
}

std::string sampled_file_hash(const std::string& path) {
  const InputFile file(path);
  const uint64_t size = file.size_bytes();
  if (size <= kWholeBytes) return file_hash(path);
  Hasher hasher;
  hasher.update(&size, sizeof(size));
  std::array<char, kSampleBytes> sample{};
  for (uint64_t i = 0; i < kSamples; ++i) {
    // Not mapped: the system would read far around each.
    file.read_at((size - kSampleBytes) / (kSamples - 1) * i, sample);
    hasher.update(sample.data(), sample.size());
  }
  return hasher.hex();
}

}  // namespace calibatt
