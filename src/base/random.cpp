#include "base/random.h"

#include <cmath>
#include <numbers>

namespace calibatt {
namespace {

constexpr int kChunk = 16;  // torch transforms 16 uniforms at a time: 8 radii and 8 angles

void box_muller_16(float* values) {
  for (int i = 0; i < kChunk / 2; ++i) {
    const float radius = std::sqrt(-2.0f * std::log(1.0f - values[i]));  // 1 − u: a uniform may be 0, never 1
    const float angle = 2.0f * std::numbers::pi_v<float> * values[i + kChunk / 2];
    values[i] = radius * std::cos(angle);
    values[i + kChunk / 2] = radius * std::sin(angle);
  }
}

}  // namespace

MersenneTwister::MersenneTwister(uint32_t seed) {
  state_[0] = seed;
  for (uint32_t i = 1; i < kStateSize; ++i) {
    state_[i] = 1812433253u * (state_[i - 1] ^ (state_[i - 1] >> 30)) + i;
  }
}

void MersenneTwister::refill() {
  constexpr int kShift = 397;
  for (int i = 0; i < kStateSize; ++i) {
    const uint32_t mixed = (state_[i] & 0x80000000u) | (state_[(i + 1) % kStateSize] & 0x7fffffffu);
    state_[i] = state_[(i + kShift) % kStateSize] ^ (mixed >> 1) ^ ((mixed & 1u) ? 0x9908b0dfu : 0u);
  }
  position_ = 0;
}

uint32_t MersenneTwister::next() {
  if (position_ == kStateSize) refill();
  uint32_t word = state_[position_++];
  word ^= word >> 11;
  word ^= (word << 7) & 0x9d2c5680u;
  word ^= (word << 15) & 0xefc60000u;
  return word ^ (word >> 18);
}

float TorchGenerator::uniform() {
  return static_cast<float>(engine_.next() & 0xffffffu) * 0x1p-24f;
}

double TorchGenerator::uniform_double() {
  const uint64_t high = engine_.next();
  const uint64_t word = (high << 32) | engine_.next();
  return static_cast<double>(word & ((uint64_t{1} << 53) - 1)) * 0x1p-53;
}

double TorchGenerator::normal() {
  if (cached_normal_) {
    const double value = *cached_normal_;
    cached_normal_.reset();
    return value;
  }
  const double angle = 2.0 * std::numbers::pi * uniform_double();
  const double radius = std::sqrt(-2.0 * std::log1p(-uniform_double()));
  cached_normal_ = radius * std::sin(angle);
  return radius * std::cos(angle);
}

void TorchGenerator::randn(std::span<float> values) {
  const size_t size = values.size();
  if (size < kChunk) {
    for (float& value : values) value = static_cast<float>(normal());
    return;
  }
  for (float& value : values) value = uniform();
  for (size_t i = 0; i + kChunk <= size; i += kChunk) box_muller_16(values.data() + i);
  if (size % kChunk != 0) {
    // The tail: the last 16 values, some of them done already, are drawn afresh.
    const std::span<float> tail = values.last(kChunk);
    for (float& value : tail) value = uniform();
    box_muller_16(tail.data());
  }
}

Tensor TorchGenerator::randn(std::vector<int64_t> shape) {
  Tensor tensor(DType::kF32, std::move(shape));
  randn(std::span<float>(tensor.f32(), static_cast<size_t>(tensor.size())));
  return tensor;
}

}  // namespace calibatt
