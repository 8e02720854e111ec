#include <type_traits>

#include "backend/cuda/clip_kernels.cuh"
#include "backend/cuda/clip_kernels.h"
#include "backend/cuda/device/device.h"

/// Kernels that compute with channels: norm, bias, softmax.
namespace calibatt::cuda {
namespace {

// ---- norm ----------------------------------------------------------------------------------------------------------

/// kLanes lanes take a pixel, each kEights groups of eight channels of it, which stay in registers between the sum of
/// squares and the scaling. Consecutive lanes read consecutive 16 bytes.
template <class In, class Out, int kLanes, int kEights>
__global__ void __launch_bounds__(kThreads)
    rms_norm_kernel(Rows<const In> in, const float* offset, const float* gamma, bool silu, Rows<Out> out,
                    uint32_t pixels, uint32_t channels) {
  const uint32_t lane = threadIdx.x % kLanes, eights = channels / kEight;
  const float root = sqrtf(static_cast<float>(channels));
  const In* const from = in.row(blockIdx.y);
  Out* const to = out.row(blockIdx.y);
  float factor[kEights][kEight], shift[kEights][kEight] = {};
#pragma unroll
  for (int i = 0; i < kEights; ++i) {
    const uint32_t eight = lane + i * kLanes;
    if (eight < eights) load_eight(gamma + eight * kEight, factor[i]);
    if (eight < eights && offset != nullptr) load_eight(offset + eight * kEight, shift[i]);
  }
  // All lanes of a warp take the same number of turns, because the sums below need all of them.
  const uint32_t stride = gridDim.x * (kThreads / kLanes);
  for (uint32_t first = blockIdx.x * (kThreads / kLanes); first < pixels; first += stride) {
    const uint32_t pixel = first + threadIdx.x / kLanes;
    const bool inside = pixel < pixels;
    float x[kEights][kEight];
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kEights; ++i) {
      const uint32_t eight = lane + i * kLanes;
      if (!inside || eight >= eights) continue;
      load_eight(from + pixel * channels + eight * kEight, x[i]);
#pragma unroll
      for (int c = 0; c < kEight; ++c) {
        x[i][c] += shift[i][c];
        squares += x[i][c] * x[i][c];
      }
    }
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
      squares += __shfl_xor_sync(~0u, squares, distance);
    }
    const float scale = root / fmaxf(sqrtf(squares), 1e-12f);
#pragma unroll
    for (int i = 0; i < kEights; ++i) {
      const uint32_t eight = lane + i * kLanes;
      if (!inside || eight >= eights) continue;
#pragma unroll
      for (int c = 0; c < kEight; ++c) {
        const float y = x[i][c] * scale * factor[i][c];
        x[i][c] = silu ? silu_of<Out>(y) : y;
      }
      store_eight(to + pixel * channels + eight * kEight, x[i]);
    }
  }
}

/// Any number of channels: a warp per pixel, which reads it twice.
template <class In, class Out>
__global__ void __launch_bounds__(kThreads)
    rms_norm_any_kernel(Rows<const In> in, const float* offset, const float* gamma, bool silu, Rows<Out> out,
                        uint32_t pixels, uint32_t channels) {
  const uint32_t lane = threadIdx.x % 32, pixel = blockIdx.x * (kThreads / 32) + threadIdx.x / 32;
  if (pixel >= pixels) return;  // whole warps
  const In* const from = in.row(blockIdx.y) + static_cast<size_t>(pixel) * channels;
  Out* const to = out.row(blockIdx.y) + static_cast<size_t>(pixel) * channels;
  float squares = 0;
  const auto shifted = [&](uint32_t c) { return to_float(from[c]) + (offset != nullptr ? offset[c] : 0.0f); };
  for (uint32_t c = lane; c < channels; c += 32) squares += shifted(c) * shifted(c);
  for (int distance = 16; distance > 0; distance /= 2) squares += __shfl_xor_sync(~0u, squares, distance);
  const float scale = sqrtf(static_cast<float>(channels)) / fmaxf(sqrtf(squares), 1e-12f);
  for (uint32_t c = lane; c < channels; c += 32) {
    const float y = shifted(c) * scale * gamma[c];
    to[c] = from_float<Out>(silu ? silu_of<Out>(y) : y);
  }
}

template <class In, class Out>
void rms_norm(const ClipView& in, const float* offset, const float* gamma, bool silu, const ClipView& out,
              cudaStream_t stream) {
  const int64_t pixels = in.frames * in.width;
  const Rows<const In> from = rows_of<const In>(in);
  const Rows<Out> to = rows_of<Out>(out);
  const auto p = static_cast<uint32_t>(pixels), channels = static_cast<uint32_t>(in.channels);
  CALIBATT_ASSERT(pixels * in.channels < (int64_t{1} << 31));
  const bool aligned = in_eights(in) && in_eights(out) && reinterpret_cast<uintptr_t>(gamma) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(offset) % 16 == 0;
  const auto launch = [&](auto lanes, auto eights) {
    constexpr int kLanes = lanes, kEights = eights;
    constexpr int kTurns = 4;  // pixels per lane, over which reading gamma is spread
    const dim3 grid = row_grid(in, pixels, kTurns * kThreads / kLanes);
    rms_norm_kernel<In, Out, kLanes, kEights>
        <<<grid, kThreads, 0, stream>>>(from, offset, gamma, silu, to, p, channels);
  };
  const std::integral_constant<int, 3> three;
  if (aligned && channels <= 3 * 4 * kEight) {  // 96: Wan's widths are multiples of it
    launch(std::integral_constant<int, 4>(), three);
  } else if (aligned && channels <= 3 * 8 * kEight) {
    launch(std::integral_constant<int, 8>(), three);
  } else if (aligned && channels <= 3 * 16 * kEight) {
    launch(std::integral_constant<int, 16>(), three);
  } else if (aligned && channels <= 4 * 32 * kEight) {
    launch(std::integral_constant<int, 32>(), std::integral_constant<int, 4>());
  } else {
    rms_norm_any_kernel<In, Out>
        <<<row_grid(in, pixels, kThreads / 32), kThreads, 0, stream>>>(from, offset, gamma, silu, to, p, channels);
  }
}

// ---- bias ----------------------------------------------------------------------------------------------------------

template <class In, class Out, bool kAccumulate>
__global__ void __launch_bounds__(kThreads)
    add_bias_kernel(Rows<const In> product, const float* bias, Rows<Out> out, uint32_t channels, uint32_t elements) {
  const uint32_t i = (blockIdx.x * kThreads + threadIdx.x) * kEight;
  if (i >= elements) return;
  float sum[kEight], more[kEight];
  load_eight(product.row(blockIdx.y) + i, sum);
  load_eight(bias + i % channels, more);
#pragma unroll
  for (int c = 0; c < kEight; ++c) sum[c] += more[c];
  Out* const to = out.row(blockIdx.y) + i;
  if constexpr (kAccumulate) {
    load_eight(to, more);
#pragma unroll
    for (int c = 0; c < kEight; ++c) sum[c] += more[c];
  }
  store_eight(to, sum);
}

template <class In, class Out, bool kAccumulate>
__global__ void __launch_bounds__(kThreads)
    add_bias_any_kernel(Rows<const In> product, uint32_t channels_in, const float* bias, Rows<Out> out,
                        uint32_t channels_out, uint32_t elements) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= elements) return;
  const uint32_t pixel = i / channels_out, channel = i % channels_out;
  Out* const to = out.row(blockIdx.y) + i;
  float sum = to_float(product.row(blockIdx.y)[pixel * channels_in + channel]) + bias[channel];
  if constexpr (kAccumulate) sum += to_float(*to);
  *to = from_float<Out>(sum);
}

template <class In, class Out, bool kAccumulate>
void add_bias(const ClipView& product, const float* bias, const ClipView& out, cudaStream_t stream) {
  const int64_t elements = out.frames * out.frame_stride();
  CALIBATT_ASSERT(product.frames * product.frame_stride() < (int64_t{1} << 31));
  const Rows<const In> from = rows_of<const In>(product);
  const Rows<Out> to = rows_of<Out>(out);
  const auto channels = static_cast<uint32_t>(out.channels), e = static_cast<uint32_t>(elements);
  if (product.channels == out.channels && in_eights(product) && in_eights(out) &&
      reinterpret_cast<uintptr_t>(bias) % 16 == 0) {
    add_bias_kernel<In, Out, kAccumulate>
        <<<row_grid(out, elements, kThreads * kEight), kThreads, 0, stream>>>(from, bias, to, channels, e);
  } else {
    add_bias_any_kernel<In, Out, kAccumulate><<<row_grid(out, elements, kThreads), kThreads, 0, stream>>>(
        from, static_cast<uint32_t>(product.channels), bias, to, channels, e);
  }
}

// ---- attention -----------------------------------------------------------------------------------------------------

/// One block per row; the row is read twice, the second time from a cache.
template <class Out>
__global__ void __launch_bounds__(kThreads)
    softmax_kernel(const float* scores, uint32_t columns, int64_t stride, Out* probabilities) {
  constexpr int kWarps = kThreads / 32;
  __shared__ float maxima[kWarps], sums[kWarps];
  const float* const from = scores + blockIdx.x * stride;
  Out* const to = probabilities + blockIdx.x * stride;
  float maximum = -INFINITY, sum = 0;
  for (uint32_t c = threadIdx.x; c < columns; c += kThreads) {
    const float x = from[c];
    if (x > maximum) {
      sum *= __expf(maximum - x);  // exp(-inf) = 0 the first time
      maximum = x;
    }
    sum += x == -INFINITY ? 0.0f : __expf(x - maximum);  // a NaN makes the sum NaN
  }
  const auto combine = [](float& max_a, float& sum_a, float max_b, float sum_b) {
    const float larger = fmaxf(max_a, max_b);
    const float a = max_a == -INFINITY ? sum_a : sum_a * __expf(max_a - larger);
    const float b = max_b == -INFINITY ? sum_b : sum_b * __expf(max_b - larger);
    max_a = larger;
    sum_a = a + b;
  };
  for (int distance = 16; distance > 0; distance /= 2) {
    const float other_max = __shfl_xor_sync(~0u, maximum, distance), other_sum = __shfl_xor_sync(~0u, sum, distance);
    combine(maximum, sum, other_max, other_sum);
  }
  if (threadIdx.x % 32 == 0) {
    maxima[threadIdx.x / 32] = maximum;
    sums[threadIdx.x / 32] = sum;
  }
  __syncthreads();
  maximum = maxima[0];
  sum = sums[0];
  for (int warp = 1; warp < kWarps; ++warp) combine(maximum, sum, maxima[warp], sums[warp]);
  const float scale = 1.0f / sum;
  for (uint32_t c = threadIdx.x; c < columns; c += kThreads) {
    to[c] = from_float<Out>(__expf(from[c] - maximum) * scale);
  }
}

}  // namespace

void launch_rms_norm(const ClipView& in, const float* offset, const float* gamma, bool silu, const ClipView& out,
                     cudaStream_t stream) {
  with_type(in.dtype, [&]<class In>(In*) {
    with_type(out.dtype, [&]<class Out>(Out*) { rms_norm<In, Out>(in, offset, gamma, silu, out, stream); });
  });
  check(cudaGetLastError(), "starting rms_norm");
}

void launch_add_bias(const ClipView& product, const float* bias, bool accumulate, const ClipView& out,
                     cudaStream_t stream) {
  CALIBATT_ASSERT(product.height == out.height && product.frames == out.frames && product.width == out.width &&
                  product.channels >= out.channels);
  with_type(product.dtype, [&]<class In>(In*) {
    with_type(out.dtype, [&]<class Out>(Out*) {
      if (accumulate) {
        add_bias<In, Out, true>(product, bias, out, stream);
      } else {
        add_bias<In, Out, false>(product, bias, out, stream);
      }
    });
  });
  check(cudaGetLastError(), "starting add_bias");
}

void launch_softmax(const float* scores, int64_t rows, int64_t columns, int64_t stride, void* probabilities,
                    DType dtype, cudaStream_t stream) {
  CALIBATT_ASSERT(rows > 0 && columns > 0 && columns < (int64_t{1} << 31) && columns <= stride);
  with_type(dtype, [&]<class Out>(Out*) {
    softmax_kernel<Out><<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(scores, static_cast<uint32_t>(columns),
                                                                              stride, static_cast<Out*>(probabilities));
  });
  check(cudaGetLastError(), "starting a softmax");
}

}  // namespace calibatt::cuda
