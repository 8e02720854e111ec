#include "backend/cuda/clip_kernels.cuh"
#include "backend/cuda/clip_kernels.h"
#include "backend/cuda/device/device.h"

/// Group norm: a pass that sums, a small one that turns sums into a factor and a shift of each channel of each frame,
/// and a pass that applies them. A thread keeps its eight channels while it goes along a row.
namespace calibatt::cuda {
namespace {

constexpr int kMaxEights = kThreads;  // of channels

/// Threads of a block: `eights` for the channels of a pixel, times `lanes` pixels.
struct Block {
  uint32_t eights, lanes;
  explicit Block(int64_t channels) : eights(static_cast<uint32_t>(channels / kEight)), lanes(kThreads / eights) {}
  uint32_t threads() const { return eights * lanes; }
};

/// One block per row, frame and so many columns.
constexpr uint32_t kSumTurns = 32, kApplyTurns = 16;  // pixels of a thread

dim3 grid_of(const ClipView& view, uint32_t columns) {
  CALIBATT_ASSERT(view.height <= 65535 && view.frames <= 65535);
  return {static_cast<unsigned>((view.width + columns - 1) / columns), static_cast<unsigned>(view.height),
          static_cast<unsigned>(view.frames)};
}

/// partial[frame][row][column range][group]: sum and sum of squares. Shared memory: 2 · lanes · channels floats.
template <class In>
__global__ void __launch_bounds__(kThreads) sum_kernel(Rows<const In> in, const float* offset, uint32_t width,
                                                       uint32_t channels, uint32_t groups, float2* partial) {
  extern __shared__ float shared[];
  const uint32_t eights = channels / kEight, lanes = blockDim.x / eights;
  const uint32_t lane = threadIdx.x / eights, channel = threadIdx.x % eights * kEight;
  float* const sums = shared;
  float* const squares = shared + lanes * channels;
  float shift[kEight] = {}, sum[kEight] = {}, square[kEight] = {};
  if (offset != nullptr) load_eight(offset + channel, shift);
  const In* const from = in.row(blockIdx.y) + blockIdx.z * width * channels + channel;
  const uint32_t end = min(width, (blockIdx.x + 1) * lanes * kSumTurns);
#pragma unroll 4
  for (uint32_t column = blockIdx.x * lanes * kSumTurns + lane; column < end; column += lanes) {
    float x[kEight];
    load_eight(from + column * channels, x);
#pragma unroll
    for (int c = 0; c < kEight; ++c) {
      x[c] += shift[c];
      sum[c] += x[c];
      square[c] += x[c] * x[c];
    }
  }
  store_eight(sums + lane * channels + channel, sum);
  store_eight(squares + lane * channels + channel, square);
  __syncthreads();
  // In a fixed order, so that results are the same in every run: pixels first, then the channels of a group.
  for (uint32_t c = threadIdx.x; c < channels; c += blockDim.x) {
    for (uint32_t other = 1; other < lanes; ++other) {
      sums[c] += sums[other * channels + c];
      squares[c] += squares[other * channels + c];
    }
  }
  __syncthreads();
  const uint32_t size = channels / groups;
  float2* const to = partial + ((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * groups;
  for (uint32_t group = threadIdx.x; group < groups; group += blockDim.x) {
    float2 total = {0, 0};
    for (uint32_t c = group * size; c < (group + 1) * size; ++c) {
      total.x += sums[c];
      total.y += squares[c];
    }
    to[group] = total;
  }
}

/// blockIdx.x: group, blockIdx.y: frame. factor, shift: [frames][channels].
__global__ void __launch_bounds__(kThreads)
    affine_kernel(const float2* partial, uint32_t parts, const float* offset, const float* gamma, const float* beta,
                  uint32_t channels, double count, double epsilon, float* factor, float* shift) {
  __shared__ double sums[kThreads], squares[kThreads];
  const uint32_t groups = gridDim.x, size = channels / groups;
  double sum = 0, square = 0;
  for (uint32_t part = threadIdx.x; part < parts; part += kThreads) {
    const float2 value = partial[(blockIdx.y * parts + part) * groups + blockIdx.x];
    sum += value.x;
    square += value.y;
  }
  sums[threadIdx.x] = sum;
  squares[threadIdx.x] = square;
  for (uint32_t distance = kThreads / 2; distance > 0; distance /= 2) {
    __syncthreads();
    if (threadIdx.x >= distance) continue;
    sums[threadIdx.x] += sums[threadIdx.x + distance];
    squares[threadIdx.x] += squares[threadIdx.x + distance];
  }
  __syncthreads();
  const double mean = sums[0] / count, mean_square = squares[0] / count;
  // Rounding may make it negative; a NaN stays one.
  const double variance = mean_square > mean * mean ? mean_square - mean * mean : mean_square - mean_square;
  const double scale = 1 / sqrt(variance + epsilon);
  for (uint32_t i = threadIdx.x; i < size; i += kThreads) {
    const uint32_t channel = blockIdx.x * size + i, to = blockIdx.y * channels + channel;
    const double product = scale * gamma[channel];
    factor[to] = static_cast<float>(product);
    shift[to] = static_cast<float>(beta[channel] + ((offset != nullptr ? offset[channel] : 0.0f) - mean) * product);
  }
}

/// blockIdx.y: row of the output, whose border repeats the nearest pixels.
template <class In, class Out>
__global__ void __launch_bounds__(kThreads)
    apply_kernel(Rows<const In> in, uint32_t height, uint32_t width, uint32_t channels, const float* factor,
                 const float* shift, bool silu, uint32_t border, uint32_t width_out, Rows<Out> out) {
  const uint32_t eights = channels / kEight, lanes = blockDim.x / eights;
  const uint32_t lane = threadIdx.x / eights, channel = threadIdx.x % eights * kEight;
  const auto inside = [border](uint32_t at, uint32_t size) { return min(max(at, border) - border, size - 1); };
  const In* const from = in.row(inside(blockIdx.y, height)) + blockIdx.z * width * channels + channel;
  Out* const to = out.row(blockIdx.y) + blockIdx.z * width_out * channels + channel;
  float factors[kEight], shifts[kEight];
  load_eight(factor + blockIdx.z * channels + channel, factors);
  load_eight(shift + blockIdx.z * channels + channel, shifts);
  const uint32_t end = min(width_out, (blockIdx.x + 1) * lanes * kApplyTurns);
#pragma unroll 4
  for (uint32_t column = blockIdx.x * lanes * kApplyTurns + lane; column < end; column += lanes) {
    float x[kEight];
    load_eight(from + inside(column, width) * channels, x);
#pragma unroll
    for (int c = 0; c < kEight; ++c) {
      const float y = x[c] * factors[c] + shifts[c];
      x[c] = silu ? silu_of<Out>(y) : y;
    }
    store_eight(to + column * channels, x);
  }
}

/// In place.
template <class T>
__global__ void __launch_bounds__(kThreads)
    silu_kernel(Rows<T> clip, const float* offset, uint32_t channels, uint32_t elements) {
  const uint32_t i = (blockIdx.x * kThreads + threadIdx.x) * kEight;
  if (i >= elements) return;
  float x[kEight], shift[kEight] = {};
  T* const at = clip.row(blockIdx.y) + i;
  load_eight(at, x);
  if (offset != nullptr) load_eight(offset + i % channels, shift);
#pragma unroll
  for (int c = 0; c < kEight; ++c) x[c] = silu_of<T>(x[c] + shift[c]);
  store_eight(at, x);
}

/// Column ranges of the summing pass, of all rows and frames.
int64_t num_parts(const ClipView& in) {
  const dim3 grid = grid_of(in, Block(in.channels).lanes * kSumTurns);
  return static_cast<int64_t>(grid.x) * grid.y * grid.z;
}

template <class In, class Out>
void group_norm(const ClipView& in, const GroupNormArgs& args, const ClipView& out, cudaStream_t stream) {
  const Block block(in.channels);
  const auto channels = static_cast<uint32_t>(in.channels), groups = static_cast<uint32_t>(args.groups),
             width = static_cast<uint32_t>(in.width);
  auto* const partial = static_cast<float2*>(args.workspace);
  float* const factor = reinterpret_cast<float*>(partial + num_parts(in) * args.groups);
  float* const shift = factor + in.frames * in.channels;
  const size_t shared_bytes = 2 * sizeof(float) * block.lanes * channels;
  sum_kernel<In><<<grid_of(in, block.lanes * kSumTurns), block.threads(), shared_bytes, stream>>>(
      rows_of<const In>(in), args.offset, width, channels, groups, partial);
  const auto count = static_cast<double>(in.height * in.width * (in.channels / args.groups));
  affine_kernel<<<dim3(groups, static_cast<unsigned>(in.frames)), kThreads, 0, stream>>>(
      partial, static_cast<uint32_t>(num_parts(in) / in.frames), args.offset, args.gamma, args.beta, channels, count,
      args.epsilon, factor, shift);
  apply_kernel<In, Out><<<grid_of(out, block.lanes * kApplyTurns), block.threads(), 0, stream>>>(
      rows_of<const In>(in), static_cast<uint32_t>(in.height), width, channels, factor, shift, args.silu,
      static_cast<uint32_t>((out.height - in.height) / 2), static_cast<uint32_t>(out.width), rows_of<Out>(out));
}

}  // namespace

size_t group_norm_workspace_bytes(const ClipView& in, int groups) {
  return static_cast<size_t>(num_parts(in) * groups) * sizeof(float2) +
         static_cast<size_t>(2 * in.frames * in.channels) * sizeof(float);
}

void launch_group_norm(const ClipView& in, const GroupNormArgs& args, const ClipView& out, cudaStream_t stream) {
  CALIBATT_ASSERT(in_eights(in) && in_eights(out) && in.channels <= kMaxEights * kEight);
  CALIBATT_ASSERT(in.channels % args.groups == 0 && in.frames * in.frame_stride() < (int64_t{1} << 31) &&
                  out.frames * out.frame_stride() < (int64_t{1} << 31));
  with_type(in.dtype, [&]<class In>(In*) {
    with_type(out.dtype, [&]<class Out>(Out*) { group_norm<In, Out>(in, args, out, stream); });
  });
  check(cudaGetLastError(), "starting a group norm");
}

void launch_silu(const ClipView& x, const float* offset, cudaStream_t stream) {
  const int64_t elements = x.frames * x.frame_stride();
  CALIBATT_ASSERT(in_eights(x));
  with_type(x.dtype, [&]<class T>(T*) {
    silu_kernel<T><<<row_grid(x, elements, kThreads * kEight), kThreads, 0, stream>>>(
        rows_of<T>(x), offset, static_cast<uint32_t>(x.channels), static_cast<uint32_t>(elements));
  });
  check(cudaGetLastError(), "starting SiLU");
}

}  // namespace calibatt::cuda
