#pragma once

#include "backend/cuda/attention/sm90_fp8/quantize.cuh"
#include "backend/cuda/device/ptx/arithmetic.cuh"

/// A chunk of values in e4m3, transposed, and what rounding took of them.
namespace calibatt::cuda::sm90_fp8 {

/// e4m3's largest is the nearest of everything up to here (466 and more are not, and a few float roundings fit).
inline constexpr float kLargestRounded = 460.0f;

/// A warp of `quantize_values` holds 4 units of 8 channels, and of each 8 parts of the sums: this lane gets one
/// channel's sum, that of channel 4 · (lane / 4 mod 2) + 2 · (lane / 8 mod 2) + lane / 16 of its unit.
__device__ __forceinline__ float sum_of_lanes(float (&sums)[kUnit], int lane) {
#pragma unroll
  for (int half = kUnit / 2, distance = 4; half > 0; half /= 2, distance *= 2) {
    const bool upper = lane & distance;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float other = __shfl_xor_sync(0xffffffffu, upper ? sums[i] : sums[i + half], distance);
      sums[i] = (upper ? sums[i + half] : sums[i]) + other;
    }
  }
  return sums[0];
}

/// The sum of channel `channel`'s staged bytes, in the first of kThreads / kHeadDim threads: exact in a float, as 64
/// numbers of e4m3 are 2^24 of its smallest at most.
template <int kHeadDim>
__device__ __forceinline__ float sum_of_bytes(const uint8_t* staged, int channel, int part) {
  constexpr int kThreadsOfRow = kThreads / kHeadDim, kPieces = kChunkKeys / 16 / kThreadsOfRow;
  const uint4* pieces = reinterpret_cast<const uint4*>(staged + channel * kChunkKeys) + part * kPieces;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const uint4 piece = pieces[i];
    for (const uint32_t four : {piece.x, piece.y, piece.z, piece.w}) sum += ptx::sum_e4m3(four);
  }
#pragma unroll
  for (int lane = 1; lane < kThreadsOfRow; lane *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
  return sum;
}

/// What a channel's values are in units of: what the sample shows, and where that did not reach (known once all are
/// made), their true range.
__device__ __forceinline__ float true_scale(const Quantized& to, int64_t place) {
  return fmaxf(to.v_scale[place], to.v_peak[place] / kLargestE4m3);
}

/// The key of slot j of four, less that of the first (ptx::key_slot).
__device__ __forceinline__ int key_of_slot(int j) {
  return j / 2 * 8 + j % 2;
}

/// Of 4 values of a thread's channels, some of which are too large: how far those lie from the mean. They are read
/// again, for in units of the scale they may be infinite.
template <class Type>
__device__ void tell_peaks(const Rows& rows, int first, int unit, const float (&mean)[kUnit],
                           const float (&factor)[kUnit], float* peaks) {
#pragma unroll 1
  for (int j = 0; j < 4; ++j) {
    const int row = first + key_of_slot(j);
    if (row >= rows.count) continue;
    float value[kUnit];
    unpack<Type>(rows.unit(row, unit), value);
#pragma unroll
    for (int i = 0; i < kUnit; ++i) {
      const float far = fabsf(value[i] - mean[i]);  // as integers, positive floats have the same order
      if (far * factor[i] > kLargestRounded) atomicMax(reinterpret_cast<int*>(peaks + i), __float_as_int(far));
    }
  }
}

/// Where a thread of kThreads stands in a chunk of values on their way through shared memory: of 8 channels it makes
/// the 4 keys that lie behind each other. 4 units × 8 fours of keys a warp: 64 bytes of a row together, and few bank
/// conflicts.
template <int kHeadDim>
struct ValuesPlace {
  static constexpr int kUnits = kUnitsOf<kHeadDim>, kBytes = kChunkKeys * kHeadDim;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int unit = lane % 4 + warp % (kUnits / 4) * 4;
  const int four = lane / 4 + warp / (kUnits / 4) * 8;  ///< slots 4·four … + 3 of the chunk
  const int first = four / 4 * 16 + four % 4 * 2;       ///< the key in the first of them
  __device__ bool has_work() const { return four < kChunkKeys / 4; }

  __device__ void stage(const float (&x)[4][kUnit], uint8_t* staged) const {
#pragma unroll
    for (int i = 0; i < kUnit; ++i) {
      *reinterpret_cast<uint32_t*>(staged + ptx::swizzled<kChunkKeys>(unit * kUnit + i, four / 4) + four % 4 * 4) =
          ptx::pack_e4m3(x[0][i], x[1][i], x[2][i], x[3][i]);
    }
  }
  /// When all have staged.
  static __device__ void write(const uint8_t* staged, uint8_t* chunk) {
    for (int i = static_cast<int>(threadIdx.x); i < kBytes / 16; i += kThreads) {
      reinterpret_cast<uint4*>(chunk)[i] = reinterpret_cast<const uint4*>(staged)[i];
    }
  }
};

/// Values of chunk `chunk`, transposed by way of shared memory. kAgain: by their true scales.
template <int kHeadDim, class Type, bool kAgain>
__device__ void quantize_values(const Inputs& in, const Rows& rows, int64_t index, int chunk) {
  using Place = ValuesPlace<kHeadDim>;
  __shared__ alignas(16) uint8_t staged[Place::kBytes];
  __shared__ float sums[2][kHeadDim];
  const Place at;
  if (at.has_work()) {
    const int64_t place = index * kHeadDim + at.unit * kUnit;
    float mean[kUnit], factor[kUnit];
#pragma unroll
    for (int i = 0; i < kUnit; ++i) {
      mean[i] = __ldg(in.to.v_mean + place + i);
      factor[i] = 1.0f / (kAgain ? true_scale(in.to, place + i) : __ldg(in.to.v_scale + place + i));
    }
    const int first = chunk * kChunkKeys + at.first;
    float x[4][kUnit], sum[kUnit] = {}, largest = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = first + key_of_slot(j);
      unpack<Type>(rows.unit(row, at.unit), x[j]);
#pragma unroll
      for (int i = 0; i < kUnit; ++i) {
        x[j][i] = row < rows.count ? (x[j][i] - mean[i]) * factor[i] : 0.0f;
        largest = fmaxf(largest, fabsf(x[j][i]));
        sum[i] += x[j][i];
      }
    }
    if (!kAgain && largest > kLargestRounded) {
      tell_peaks<Type>(rows, first, at.unit, mean, factor, in.to.v_peak + place);
    }
    at.stage(x, staged);
    const float of_channel = sum_of_lanes(sum, at.lane);
    const int channel = (at.lane >> 2 & 1) * 4 + (at.lane >> 3 & 1) * 2 + (at.lane >> 4);
    sums[at.four / 8][at.unit * kUnit + channel] = of_channel;
  }
  __syncthreads();
  constexpr int kThreadsOfRow = kThreads / kHeadDim;
  const int channel = static_cast<int>(threadIdx.x) / kThreadsOfRow;
  const int part = static_cast<int>(threadIdx.x) % kThreadsOfRow;
  const float of_bytes = sum_of_bytes<kHeadDim>(staged, channel, part);
  if (part == 0) {
    const int64_t place = (index * in.to.key_chunks + chunk) * kHeadDim + channel;
    const float of_values = sums[0][channel] + sums[1][channel];
    in.to.v_error[place] = of_values - of_bytes;
    if (in.to.v_sum != nullptr) in.to.v_sum[place] = of_values;
  }
  Place::write(staged, in.to.v + (index * in.to.num_chunks + chunk) * Place::kBytes);
}

}  // namespace calibatt::cuda::sm90_fp8
