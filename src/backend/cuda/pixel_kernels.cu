#include "backend/cuda/clip_kernels.cuh"
#include "backend/cuda/clip_kernels.h"
#include "backend/cuda/device/device.h"

/// Kernels that move pixels: upsample, depth to space, copies, frames for the host.
namespace calibatt::cuda {
namespace {

// ---- upsample ------------------------------------------------------------------------------------------------------

/// Unit: what a thread moves, 16 bytes or one element. Each thread reads one unit of the input and writes it four
/// times. Strides and channels in units.
template <class Unit>
__global__ void __launch_bounds__(kThreads) upsample_kernel(Rows<const Unit> in, Rows<Unit> out, uint32_t time_factor,
                                                            uint32_t width, uint32_t channels_out, uint32_t units) {
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= units) return;
  const uint32_t channels_in = time_factor * channels_out;
  const uint32_t pixel = index / channels_in, channel_in = index % channels_in;
  const uint32_t frame = pixel / width * time_factor + channel_in / channels_out, column = pixel % width;
  const uint32_t at = (frame * 2 * width + 2 * column) * channels_out + channel_in % channels_out;
  const Unit unit = in.row(blockIdx.y)[index];
#pragma unroll
  for (uint32_t y = 0; y < 2; ++y) {
    Unit* const to = out.row(2 * blockIdx.y + y) + at;
    to[0] = unit;
    to[channels_out] = unit;
  }
}

template <class Unit>
void upsample(const ClipView& in, int time_factor, const ClipView& out, cudaStream_t stream) {
  const auto elements = static_cast<int64_t>(sizeof(Unit) / dtype_size(in.dtype));
  const int64_t units = in.frames * in.frame_stride() / elements;
  CALIBATT_ASSERT(out.frames * out.frame_stride() < (int64_t{1} << 31));
  const Rows<const Unit> from = {static_cast<const Unit*>(in.data), in.row_stride / elements};
  const Rows<Unit> to = {static_cast<Unit*>(out.data), out.row_stride / elements};
  upsample_kernel<Unit><<<row_grid(in, units, kThreads), kThreads, 0, stream>>>(
      from, to, static_cast<uint32_t>(time_factor), static_cast<uint32_t>(in.width),
      static_cast<uint32_t>(out.channels / elements), static_cast<uint32_t>(units));
}

/// Each thread moves eight channels of one of the output's pixels.
template <class T>
__global__ void __launch_bounds__(kThreads)
    depth_to_space_kernel(Rows<const T> in, const float* offset, uint32_t time_factor, uint32_t space_factor,
                          uint32_t width, uint32_t eights_out, Rows<T> out, uint32_t eights) {
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= eights) return;
  const uint32_t eights_in = time_factor * space_factor * space_factor * eights_out;
  const uint32_t pixel = index / eights_in, place = index % eights_in, part = place / eights_out;
  const uint32_t frame = pixel / width * time_factor + part / (space_factor * space_factor);
  const uint32_t column = pixel % width * space_factor + part % space_factor;
  const uint32_t row = blockIdx.y * space_factor + part / space_factor % space_factor;
  float x[kEight], shift[kEight] = {};
  load_eight(in.row(blockIdx.y) + index * kEight, x);
  if (offset != nullptr) load_eight(offset + place * kEight, shift);
#pragma unroll
  for (int c = 0; c < kEight; ++c) x[c] += shift[c];
  store_eight(out.row(row) + ((frame * width * space_factor + column) * eights_out + place % eights_out) * kEight, x);
}

// ---- shortcuts of Wan 2.2 ------------------------------------------------------------------------------------------

struct Factors {
  uint32_t time, space;
  __device__ uint32_t volume() const { return time * space * space; }
};

/// A thread takes an element of the output: blockIdx.y is its row, index its place in the row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_repeated_kernel(Rows<const T> in, uint32_t channels_in, Factors factors, uint32_t first_frame, uint32_t width,
                        uint32_t channels, Rows<T> out, uint32_t elements) {
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= elements) return;
  const uint32_t channel = index % channels, column = index / channels % width;
  const uint32_t frame = index / channels / width + first_frame, s = factors.space;
  const uint32_t repeats = channels * factors.volume() / channels_in;
  const uint32_t n = ((channel * factors.time + frame % factors.time) * s + blockIdx.y % s) * s + column % s;
  const uint32_t pixel = frame / factors.time * (width / s) + column / s;
  T* const to = out.row(blockIdx.y) + index;
  *to = from_float<T>(to_float(*to) + to_float(in.row(blockIdx.y / s)[pixel * channels_in + n / repeats]));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    add_averaged_kernel(Rows<const T> in, uint32_t channels_in, Factors factors, uint32_t lacking, uint32_t width,
                        uint32_t channels, Rows<T> out, uint32_t elements) {
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= elements) return;
  const uint32_t channel = index % channels, column = index / channels % width, frame = index / channels / width;
  const uint32_t size = channels_in * factors.volume() / channels, s = factors.space, t = factors.time;
  float sum = 0;
  for (uint32_t n = channel * size; n < (channel + 1) * size; ++n) {
    const uint32_t at = frame * t + n / (s * s) % t;
    if (at < lacking) continue;
    const uint32_t pixel = (at - lacking) * (width * s) + column * s + n % s;
    sum += to_float(in.row(blockIdx.y * s + n / s % s)[pixel * channels_in + n / factors.volume()]);
  }
  T* const to = out.row(blockIdx.y) + index;
  *to = from_float<T>(to_float(*to) + sum / static_cast<float>(size));
}

// ---- copies --------------------------------------------------------------------------------------------------------

template <class In, class Out>
__global__ void __launch_bounds__(kThreads) copy_kernel(Rows<const In> in, Rows<Out> out, uint32_t elements) {
  const In* const from = in.row(blockIdx.y);
  Out* const to = out.row(blockIdx.y);
  const uint32_t stride = gridDim.x * kThreads * kEight;
  for (uint32_t i = (blockIdx.x * kThreads + threadIdx.x) * kEight; i < elements; i += stride) {
    float x[kEight];
    load_eight(from + i, x);
    store_eight(to + i, x);
  }
}

/// Element by element of the output, zeros where the input has nothing.
template <class In, class Out>
__global__ void __launch_bounds__(kThreads)
    padded_copy_kernel(Rows<const In> in, Rows<Out> out, uint32_t width_in, uint32_t channels_in, uint32_t pad_left,
                       uint32_t width_out, uint32_t channels_out, uint32_t elements) {
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= elements) return;
  const uint32_t pixel = index / channels_out, channel = index % channels_out;
  const uint32_t frame = pixel / width_out, column = pixel % width_out - pad_left;  // wraps around left of the input
  const bool inside = column < width_in && channel < channels_in;
  const In* const from = in.row(blockIdx.y);
  out.row(blockIdx.y)[index] =
      from_float<Out>(inside ? to_float(from[(frame * width_in + column) * channels_in + channel]) : 0.0f);
}

template <class In, class Out>
void copy(const ClipView& in, int64_t pad_left, const ClipView& out, cudaStream_t stream) {
  const int64_t elements = out.frames * out.frame_stride();
  const Rows<const In> from = rows_of<const In>(in);
  const Rows<Out> to = rows_of<Out>(out);
  const auto e = static_cast<uint32_t>(elements);
  if (in.width == out.width && in_eights(in) && in_eights(out) && in.channels == out.channels) {
    constexpr int kTurns = 2;
    copy_kernel<In, Out><<<row_grid(out, elements, kTurns * kThreads * kEight), kThreads, 0, stream>>>(from, to, e);
  } else {
    padded_copy_kernel<In, Out><<<row_grid(out, elements, kThreads), kThreads, 0, stream>>>(
        from, to, static_cast<uint32_t>(in.width), static_cast<uint32_t>(in.channels), static_cast<uint32_t>(pad_left),
        static_cast<uint32_t>(out.width), static_cast<uint32_t>(out.channels), e);
  }
}

// ---- pixels --------------------------------------------------------------------------------------------------------

__device__ uint8_t byte_of(float value) {
  const float clamped = fminf(fmaxf(value, -1.0f), 1.0f);
  // Not contracted into one operation, so that the bytes are the host's.
  return static_cast<uint8_t>(__float2int_rn(__fmul_rn(__fadd_rn(__fmul_rn(clamped, 0.5f), 0.5f), 255.0f)));
}

/// blockIdx.y: pixel row of the picture, of all frames; a thread takes a pixel.
__global__ void __launch_bounds__(kThreads)
    rgb_kernel(Rows<const float> patches, uint32_t patch, uint32_t width, uint32_t channels, uint32_t pixels,
               uint32_t height, uint8_t* rgb, int* has_nan) {
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= pixels) return;
  const uint32_t frame = index / width, x = index % width, y = blockIdx.y;
  const float* const from =
      patches.row(y / patch) + (frame * (width / patch) + x / patch) * channels + x % patch * patch + y % patch;
  uint8_t* const to = rgb + ((static_cast<size_t>(frame) * height + y) * width + x) * 3;
  bool sound = true;
#pragma unroll
  for (uint32_t color = 0; color < 3; ++color) {
    const float value = from[color * patch * patch];
    sound &= value == value;
    to[color] = byte_of(value);
  }
  if (!sound) *has_nan = 1;
}

}  // namespace

void launch_upsample(const ClipView& in, int time_factor, const ClipView& out, cudaStream_t stream) {
  if (in_eights(in) && in_eights(out)) {
    upsample<uint4>(in, time_factor, out, stream);
  } else if (dtype_size(in.dtype) == 4) {
    upsample<uint32_t>(in, time_factor, out, stream);
  } else {
    upsample<uint16_t>(in, time_factor, out, stream);
  }
  check(cudaGetLastError(), "starting upsample");
}

void launch_depth_to_space(const ClipView& in, const float* offset, int time_factor, int space_factor,
                           const ClipView& out, cudaStream_t stream) {
  CALIBATT_ASSERT(in_eights(in) && in_eights(out) && in.dtype == out.dtype);
  CALIBATT_ASSERT(out.frames * out.frame_stride() < (int64_t{1} << 31));
  const int64_t eights = in.frames * in.frame_stride() / kEight;
  with_type(in.dtype, [&]<class T>(T*) {
    depth_to_space_kernel<T><<<row_grid(in, eights, kThreads), kThreads, 0, stream>>>(
        rows_of<const T>(in), offset, static_cast<uint32_t>(time_factor), static_cast<uint32_t>(space_factor),
        static_cast<uint32_t>(in.width), static_cast<uint32_t>(out.channels / kEight), rows_of<T>(out),
        static_cast<uint32_t>(eights));
  });
  check(cudaGetLastError(), "starting depth to space");
}

void launch_add_repeated(const ClipView& in, int time_factor, int space_factor, int64_t first_frame,
                         const ClipView& out, cudaStream_t stream) {
  const Factors factors{static_cast<uint32_t>(time_factor), static_cast<uint32_t>(space_factor)};
  const int64_t elements = out.frames * out.frame_stride();
  CALIBATT_ASSERT(in.dtype == out.dtype && in.frames * in.frame_stride() < (int64_t{1} << 31));
  with_type(in.dtype, [&]<class T>(T*) {
    add_repeated_kernel<T><<<row_grid(out, elements, kThreads), kThreads, 0, stream>>>(
        rows_of<const T>(in), static_cast<uint32_t>(in.channels), factors, static_cast<uint32_t>(first_frame),
        static_cast<uint32_t>(out.width), static_cast<uint32_t>(out.channels), rows_of<T>(out),
        static_cast<uint32_t>(elements));
  });
  check(cudaGetLastError(), "starting a shortcut");
}

void launch_add_averaged(const ClipView& in, int time_factor, int space_factor, const ClipView& out,
                         cudaStream_t stream) {
  const Factors factors{static_cast<uint32_t>(time_factor), static_cast<uint32_t>(space_factor)};
  const int64_t elements = out.frames * out.frame_stride();
  CALIBATT_ASSERT(in.dtype == out.dtype && in.frames * in.frame_stride() < (int64_t{1} << 31));
  with_type(in.dtype, [&]<class T>(T*) {
    add_averaged_kernel<T><<<row_grid(out, elements, kThreads), kThreads, 0, stream>>>(
        rows_of<const T>(in), static_cast<uint32_t>(in.channels), factors,
        static_cast<uint32_t>(out.frames * time_factor - in.frames), static_cast<uint32_t>(out.width),
        static_cast<uint32_t>(out.channels), rows_of<T>(out), static_cast<uint32_t>(elements));
  });
  check(cudaGetLastError(), "starting a shortcut");
}

void launch_copy(const ClipView& in, int64_t pad_left, const ClipView& out, cudaStream_t stream) {
  CALIBATT_ASSERT(in.height == out.height && in.frames == out.frames && in.channels <= out.channels && pad_left >= 0 &&
                  in.width + pad_left <= out.width);
  with_type(in.dtype, [&]<class In>(In*) {
    with_type(out.dtype, [&]<class Out>(Out*) { copy<In, Out>(in, pad_left, out, stream); });
  });
  check(cudaGetLastError(), "starting a copy");
}

void launch_rgb(const ClipView& patches, int patch, uint8_t* rgb, int* has_nan, cudaStream_t stream) {
  ClipView picture = patches;
  picture.height *= patch;
  const int64_t width = patches.width * patch, pixels = patches.frames * width;
  rgb_kernel<<<row_grid(picture, pixels, kThreads), kThreads, 0, stream>>>(
      rows_of<const float>(patches), static_cast<uint32_t>(patch), static_cast<uint32_t>(width),
      static_cast<uint32_t>(patches.channels), static_cast<uint32_t>(pixels), static_cast<uint32_t>(picture.height),
      rgb, has_nan);
  check(cudaGetLastError(), "starting the conversion to RGB");
}

}  // namespace calibatt::cuda
