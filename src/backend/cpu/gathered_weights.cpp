#include "backend/cpu/gathered_weights.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace calibatt::cpu {
namespace {

constexpr size_t kAlignment = 64;  // of matrices in a block, and of parts: what a product likes to begin at

}  // namespace

GatheredWeights::~GatheredWeights() {
  if (slot_ < 0) ring_.slots.forget(id_);
}

size_t GatheredWeights::append(Tensor matrix) {
  CALIBATT_ASSERT(own_.empty());
  const size_t begin = (size_bytes_ + kAlignment - 1) / kAlignment * kAlignment;
  size_bytes_ = begin + matrix.size_bytes();
  matrices_.emplace_back(begin, std::move(matrix));
  return begin;
}

void GatheredWeights::seal() {
  CALIBATT_ASSERT(own_.empty());
  const ByteRange own = block_.range(size_bytes_, block_.shards.rank, kAlignment);
  own_ = Tensor::zeros(DType::kU8, {static_cast<int64_t>(std::max<size_t>(own.size(), 1))});
  for (const auto& [begin, matrix] : matrices_) {
    const size_t first = std::max(begin, own.begin), last = std::min(begin + matrix.size_bytes(), own.end);
    if (first >= last) continue;
    std::memcpy(static_cast<char*>(own_.raw()) + (first - own.begin),
                static_cast<const char*>(matrix.raw()) + (first - begin), last - first);
  }
  matrices_.clear();
  block_.publish(own_.storage());
}

void GatheredWeights::fill(int slot) {
  if (parts_.empty()) parts_ = block_.parts();
  Tensor& buffer = ring_.buffers[static_cast<size_t>(slot)];
  if (buffer.size_bytes() < size_bytes_) buffer = Tensor(DType::kU8, {static_cast<int64_t>(size_bytes_)});
  for (size_t rank = 0; rank < parts_.size(); ++rank) {
    const ByteRange range = block_.range(size_bytes_, static_cast<int>(rank), kAlignment);
    if (range.size() > 0) std::memcpy(static_cast<char*>(buffer.raw()) + range.begin, parts_[rank].get(), range.size());
  }
}

void GatheredWeights::prefetch() {
  CALIBATT_ASSERT(!own_.empty());
  const auto place = ring_.slots.announce(id_);
  if (!place || !place->fill) return;
  try {
    fill(place->slot);
  } catch (...) {
    ring_.slots.forget(id_);
    throw;
  }
}

void GatheredWeights::begin_use() {
  CALIBATT_ASSERT(!own_.empty() && slot_ < 0);
  const SlotRing::Place place = ring_.slots.begin_use(id_);
  try {
    if (place.fill) fill(place.slot);
  } catch (...) {
    ring_.slots.end_use(id_);
    ring_.slots.forget(id_);
    throw;
  }
  slot_ = place.slot;
}

void GatheredWeights::end_use() {
  CALIBATT_ASSERT(slot_ >= 0);
  ring_.slots.end_use(id_);
  slot_ = -1;
}

const char* GatheredWeights::memory() const {
  CALIBATT_ASSERT(slot_ >= 0);
  return static_cast<const char*>(ring_.buffers[static_cast<size_t>(slot_)].raw());
}

}  // namespace calibatt::cpu
