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

/// Of the block's group and frame, in every thread. blockIdx.x: group, blockIdx.y: frame.
__device__ double2 total_of_parts(const float2* partial, uint32_t parts) {
  __shared__ double sums[kThreads], squares[kThreads];
  const uint32_t groups = gridDim.x;
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
  return {sums[0], squares[0]};
}

/// How a norm's factors and shifts follow from sums.
struct AffineArgs {
  const float *offset, *gamma, *beta;
  uint32_t channels;
  double count, epsilon;
  float *factor, *shift;  // [frames][channels]
};

/// Those of the block's group and frame.
__device__ void write_affine(double2 total, const AffineArgs& args) {
  const uint32_t size = args.channels / gridDim.x;
  const double mean = total.x / args.count, mean_square = total.y / args.count;
  // Rounding may make it negative; a NaN stays one.
  const double variance = mean_square > mean * mean ? mean_square - mean * mean : mean_square - mean_square;
  const double scale = 1 / sqrt(variance + args.epsilon);
  for (uint32_t i = threadIdx.x; i < size; i += kThreads) {
    const uint32_t channel = blockIdx.x * size + i, to = blockIdx.y * args.channels + channel;
    const double product = scale * args.gamma[channel];
    args.factor[to] = static_cast<float>(product);
    args.shift[to] = static_cast<float>(args.beta[channel] +
                                        ((args.offset != nullptr ? args.offset[channel] : 0.0f) - mean) * product);
  }
}

__global__ void __launch_bounds__(kThreads) affine_kernel(const float2* partial, uint32_t parts, AffineArgs args) {
  write_affine(total_of_parts(partial, parts), args);
}

/// totals: [frames][groups].
__global__ void __launch_bounds__(kThreads) total_kernel(const float2* partial, uint32_t parts, double2* totals) {
  const double2 total = total_of_parts(partial, parts);
  if (threadIdx.x == 0) totals[blockIdx.y * gridDim.x + blockIdx.x] = total;
}

/// totals: [shards][frames][groups], added up in the same order by everybody.
__global__ void __launch_bounds__(kThreads)
    affine_of_shards_kernel(const double2* totals, uint32_t num_shards, AffineArgs args) {
  double2 total = {0, 0};
  for (uint32_t shard = 0; shard < num_shards; ++shard) {
    const double2 value = totals[(shard * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x];
    total.x += value.x;
    total.y += value.y;
  }
  write_affine(total, args);
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

/// The workspace: partial sums, then factors and shifts.
float2* partial_sums(const GroupNormArgs& args) {
  return static_cast<float2*>(args.workspace);
}

/// height: of the whole frames.
AffineArgs affine_args(const ClipView& in, const GroupNormArgs& args, int64_t height) {
  float* const factor = reinterpret_cast<float*>(partial_sums(args) + num_parts(in) * args.groups);
  return {.offset = args.offset,
          .gamma = args.gamma,
          .beta = args.beta,
          .channels = static_cast<uint32_t>(in.channels),
          .count = static_cast<double>(height * in.width * (in.channels / args.groups)),
          .epsilon = args.epsilon,
          .factor = factor,
          .shift = factor + in.frames * in.channels};
}

dim3 groups_and_frames(const ClipView& in, const GroupNormArgs& args) {
  return {static_cast<unsigned>(args.groups), static_cast<unsigned>(in.frames)};
}
uint32_t parts_of_frame(const ClipView& in) {
  return static_cast<uint32_t>(num_parts(in) / in.frames);
}

template <class In>
void sum_parts(const ClipView& in, const GroupNormArgs& args, cudaStream_t stream) {
  const Block block(in.channels);
  const auto channels = static_cast<uint32_t>(in.channels);
  const size_t shared_bytes = 2 * sizeof(float) * block.lanes * channels;
  sum_kernel<In><<<grid_of(in, block.lanes * kSumTurns), block.threads(), shared_bytes, stream>>>(
      rows_of<const In>(in), args.offset, static_cast<uint32_t>(in.width), channels, static_cast<uint32_t>(args.groups),
      partial_sums(args));
}

template <class In, class Out>
void apply(const ClipView& in, const AffineArgs& affine, bool silu, const ClipView& out, cudaStream_t stream) {
  apply_kernel<In, Out>
      <<<grid_of(out, Block(in.channels).lanes * kApplyTurns), Block(in.channels).threads(), 0, stream>>>(
          rows_of<const In>(in), static_cast<uint32_t>(in.height), static_cast<uint32_t>(in.width), affine.channels,
          affine.factor, affine.shift, silu, static_cast<uint32_t>((out.height - in.height) / 2),
          static_cast<uint32_t>(out.width), rows_of<Out>(out));
}

void check_sizes(const ClipView& in, const GroupNormArgs& args) {
  CALIBATT_ASSERT(in_eights(in) && in.channels <= kMaxEights * kEight);
  CALIBATT_ASSERT(in.channels % args.groups == 0 && in.frames * in.frame_stride() < (int64_t{1} << 31));
}
void check_output(const ClipView& out) {
  CALIBATT_ASSERT(in_eights(out) && out.frames * out.frame_stride() < (int64_t{1} << 31));
}

}  // namespace

size_t group_norm_workspace_bytes(const ClipView& in, int groups) {
  return static_cast<size_t>(num_parts(in) * groups) * sizeof(float2) +
         static_cast<size_t>(2 * in.frames * in.channels) * sizeof(float);
}

void launch_group_norm(const ClipView& in, const GroupNormArgs& args, const ClipView& out, cudaStream_t stream) {
  check_sizes(in, args);
  check_output(out);
  const AffineArgs affine = affine_args(in, args, in.height);
  with_type(in.dtype, [&]<class In>(In*) {
    sum_parts<In>(in, args, stream);
    affine_kernel<<<groups_and_frames(in, args), kThreads, 0, stream>>>(partial_sums(args), parts_of_frame(in), affine);
    with_type(out.dtype, [&]<class Out>(Out*) { apply<In, Out>(in, affine, args.silu, out, stream); });
  });
  check(cudaGetLastError(), "starting a group norm");
}

size_t group_sums_bytes(const ClipView& in, int groups) {
  return static_cast<size_t>(in.frames * groups) * sizeof(double2);
}

void launch_group_sums(const ClipView& in, const GroupNormArgs& args, void* sums, cudaStream_t stream) {
  check_sizes(in, args);
  with_type(in.dtype, [&]<class In>(In*) { sum_parts<In>(in, args, stream); });
  total_kernel<<<groups_and_frames(in, args), kThreads, 0, stream>>>(partial_sums(args), parts_of_frame(in),
                                                                     static_cast<double2*>(sums));
  check(cudaGetLastError(), "starting the sums of a group norm");
}

void launch_group_norm_by_sums(const ClipView& in, const GroupNormArgs& args, const void* sums, int num_shards,
                               int64_t height, const ClipView& out, cudaStream_t stream) {
  check_output(out);
  const AffineArgs affine = affine_args(in, args, height);
  affine_of_shards_kernel<<<groups_and_frames(in, args), kThreads, 0, stream>>>(
      static_cast<const double2*>(sums), static_cast<uint32_t>(num_shards), affine);
  with_type(in.dtype, [&]<class In>(In*) {
    with_type(out.dtype, [&]<class Out>(Out*) { apply<In, Out>(in, affine, args.silu, out, stream); });
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
