#include <algorithm>
#include <type_traits>

#include "backend/cuda/device/device.h"
#include "backend/cuda/device/vector_access.cuh"
#include "backend/cuda/kernels/activated.cuh"
#include "backend/cuda/kernels/elementwise.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnit = 4;  ///< elements a thread moves at a time when addresses allow it
constexpr int64_t kMaxBlocks = 1 << 16;

template <class T>
struct Activate {
  const T* x;
  T* out;
  Activation activation;
  template <int n>
  __device__ void run(int64_t at) const {
    float values[n];
    load<Reuse::kStream>(x + at, values);
#pragma unroll
    for (int i = 0; i < n; ++i) values[i] = activated(activation, values[i]);
    store(out + at, values);
  }
};

template <class T>
struct Multiply {
  const T *a, *b;
  T* out;
  template <int n>
  __device__ void run(int64_t at) const {
    float first[n], second[n];
    load<Reuse::kStream>(a + at, first);
    load<Reuse::kStream>(b + at, second);
#pragma unroll
    for (int i = 0; i < n; ++i) first[i] *= second[i];
    store(out + at, first);
  }
};

struct Add {
  const float *a, *b;
  float* out;
  int64_t period;
  template <int n>
  __device__ void run(int64_t at) const {
    float first[n], second[n];
    load<Reuse::kStream>(a + at, first);
    load<Reuse::kCached>(b + at % period, second);
#pragma unroll
    for (int i = 0; i < n; ++i) first[i] += second[i];
    store(out + at, first);
  }
};

/// One element at a time: rare.
template <class T>
struct AddBias {
  T* y;
  const float* bias;
  int64_t channels;
  template <int n>
  __device__ void run(int64_t at) const {
#pragma unroll
    for (int i = 0; i < n; ++i) store_one(y + at + i, to_float(y[at + i]) + bias[(at + i) % channels]);
  }
};

template <class From, class To>
struct Convert {
  const From* x;
  To* out;
  template <int n>
  __device__ void run(int64_t at) const {
    float values[n];
    load<Reuse::kStream>(x + at, values);
    store(out + at, values);
  }
};

template <int n, class Operation>
__global__ void __launch_bounds__(kThreads) map_kernel(int64_t size, const Operation operation) {
  const int64_t step = int64_t{gridDim.x} * kThreads * n;
  for (int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * n; at < size; at += step) {
    operation.template run<n>(at);
  }
}

/// operation.run<n>(at) for every n-th element; n = 4 when the size and all these pointers allow it, else 1.
template <class Operation, class... Pointers>
void map(int64_t size, cudaStream_t stream, const Operation& operation, Pointers... pointers) {
  if (size == 0) return;
  const bool wide = size % kUnit == 0 && ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
  const int64_t units = wide ? size / kUnit : size;
  const auto blocks = static_cast<unsigned>(std::min((units + kThreads - 1) / kThreads, kMaxBlocks));
  if (wide) {
    map_kernel<kUnit><<<blocks, kThreads, 0, stream>>>(size, operation);
  } else {
    map_kernel<1><<<blocks, kThreads, 0, stream>>>(size, operation);
  }
  check(cudaGetLastError(), "element-wise kernel: launch");
}

/// fn(a null pointer of the element type)
template <class Fn>
void with_type(DType dtype, const Fn& fn) {
  CALIBATT_ASSERT(dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16);
  if (dtype == DType::kF32) {
    fn(static_cast<float*>(nullptr));
  } else if (dtype == DType::kBF16) {
    fn(static_cast<__nv_bfloat16*>(nullptr));
  } else {
    fn(static_cast<__half*>(nullptr));
  }
}

/// For kernels over matrices: a thread has the same columns of kMatrixRows rows, all of which are under way at a time;
/// neighbouring threads have neighbouring columns.
constexpr int kMatrixThreads = 128, kMatrixRows = 4;
constexpr int kSwigluRows = 2;  // which reads two matrices

bool aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

dim3 matrix_grid(int64_t rows, int64_t columns, int columns_per_thread, int rows_per_thread = kMatrixRows) {
  const int64_t columns_per_block = int64_t{kMatrixThreads} * columns_per_thread;
  return {static_cast<unsigned>((rows + rows_per_thread - 1) / rows_per_thread),
          static_cast<unsigned>((columns + columns_per_block - 1) / columns_per_block)};
}

template <class T, int n>
__global__ void __launch_bounds__(kMatrixThreads)
    scale_rows_kernel(const T* x, const float* factor, float gain, T* out, int64_t rows, int64_t columns) {
  const int64_t column = (int64_t{blockIdx.y} * kMatrixThreads + threadIdx.x) * n;
  if (column >= columns) return;
  const int64_t first = int64_t{blockIdx.x} * kMatrixRows;
  float values[kMatrixRows][n];
#pragma unroll
  for (int r = 0; r < kMatrixRows; ++r) {
    if (first + r < rows) load<Reuse::kStream>(x + (first + r) * columns + column, values[r]);
  }
#pragma unroll
  for (int r = 0; r < kMatrixRows; ++r) {
    if (first + r < rows) {
      const float by = factor[first + r] * gain;
#pragma unroll
      for (int i = 0; i < n; ++i) values[r][i] *= by;
      store(out + (first + r) * columns + column, values[r]);
    }
  }
}

template <class T, int n>
__global__ void __launch_bounds__(kMatrixThreads)
    add_gated_kernel(float* residual, const T* y, const float* gate, int64_t rows, int64_t channels) {
  const int64_t column = (int64_t{blockIdx.y} * kMatrixThreads + threadIdx.x) * n;
  if (column >= channels) return;
  const int64_t first = int64_t{blockIdx.x} * kMatrixRows;
  float old[kMatrixRows][n], change[kMatrixRows][n], factor[n];
#pragma unroll
  for (int r = 0; r < kMatrixRows; ++r) {
    if (first + r < rows) {
      load<Reuse::kStream>(y + (first + r) * channels + column, change[r]);
      load<Reuse::kStream>(residual + (first + r) * channels + column, old[r]);
    }
  }
  if (gate != nullptr) {
    load<Reuse::kCached>(gate + column, factor);
  } else {
#pragma unroll
    for (int i = 0; i < n; ++i) factor[i] = 1;
  }
#pragma unroll
  for (int r = 0; r < kMatrixRows; ++r) {
    if (first + r < rows) {
#pragma unroll
      for (int i = 0; i < n; ++i) old[r][i] += factor[i] * change[r][i];
      store(residual + (first + r) * channels + column, old[r]);
    }
  }
}

/// Where 16 bits are kept, an exponential and a quotient of 2⁻²² are exact enough, and the pass is bound by memory.
template <class T>
__device__ __forceinline__ float silu(float x) {
  if constexpr (sizeof(T) == 4) {
    return activated(Activation::kSiLU, x);
  } else {
    return __fdividef(x, 1.0f + __expf(-x));
  }
}

template <class T, int n>
__global__ void __launch_bounds__(kMatrixThreads) swiglu_kernel(const T* x, T* out, int64_t rows, int64_t channels) {
  const int64_t column = (int64_t{blockIdx.y} * kMatrixThreads + threadIdx.x) * n;
  if (column >= channels) return;
  const int64_t first = int64_t{blockIdx.x} * kSwigluRows;
  float values[kSwigluRows][n], gate[kSwigluRows][n];
#pragma unroll
  for (int r = 0; r < kSwigluRows; ++r) {
    if (first + r < rows) {
      load<Reuse::kStream>(x + (first + r) * 2 * channels + column, values[r]);
      load<Reuse::kStream>(x + (first + r) * 2 * channels + channels + column, gate[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < kSwigluRows; ++r) {
    if (first + r < rows) {
#pragma unroll
      for (int i = 0; i < n; ++i) values[r][i] *= silu<T>(gate[r][i]);
      store(out + (first + r) * channels + column, values[r]);
    }
  }
}

__global__ void __launch_bounds__(kThreads) sum_of_squares_kernel(const float* x, int64_t size, double* partial_sums) {
  __shared__ double sums[kThreads];
  double sum = 0;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < size; i += int64_t{kSumParts} * kThreads) {
    sum += static_cast<double>(x[i]) * x[i];
  }
  sums[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) partial_sums[blockIdx.x] = sums[0];
}

}  // namespace

void activate(Activation activation, const void* x, void* out, DType dtype, int64_t size, cudaStream_t stream) {
  with_type(dtype, [&]<class T>(T*) {
    map(size, stream, Activate<T>{static_cast<const T*>(x), static_cast<T*>(out), activation}, x, out);
  });
}

void multiply(const void* a, const void* b, void* out, DType dtype, int64_t size, cudaStream_t stream) {
  with_type(dtype, [&]<class T>(T*) {
    const Multiply<T> operation{static_cast<const T*>(a), static_cast<const T*>(b), static_cast<T*>(out)};
    map(size, stream, operation, a, b, out);
  });
}

void swiglu(const void* x, void* out, DType dtype, int64_t rows, int64_t channels, cudaStream_t stream) {
  if (rows == 0 || channels == 0) return;
  with_type(dtype, [&]<class T>(T*) {
    const auto enqueue = [&](auto n) {
      swiglu_kernel<T, n()><<<matrix_grid(rows, channels, n(), kSwigluRows), kMatrixThreads, 0, stream>>>(
          static_cast<const T*>(x), static_cast<T*>(out), rows, channels);
    };
    constexpr int kWide = 16 / sizeof(T);
    if (channels % kWide == 0 && aligned(x) && aligned(out)) {
      enqueue(std::integral_constant<int, kWide>());
    } else {
      enqueue(std::integral_constant<int, 1>());
    }
  });
  check(cudaGetLastError(), "SwiGLU: launch");
}

void add(const float* a, const float* b, float* out, int64_t size, int64_t period, cudaStream_t stream) {
  // A period that is no multiple of the unit is passed on as an odd address, so that elements go one at a time.
  const auto period_as_address = static_cast<uintptr_t>(period % kUnit);
  map(size, stream, Add{a, b, out, period}, a, b, out, period_as_address);
}

void convert(const void* x, DType from, void* out, DType to, int64_t size, cudaStream_t stream) {
  with_type(to, [&]<class To>(To*) {
    with_type(from, [&]<class From>(From*) {
      map(size, stream, Convert<From, To>{static_cast<const From*>(x), static_cast<To*>(out)}, x, out);
    });
  });
}

void scale_rows(const void* x, const float* factor, float gain, void* out, DType dtype, int64_t rows, int64_t columns,
                cudaStream_t stream) {
  if (rows == 0 || columns == 0) return;
  with_type(dtype, [&]<class T>(T*) {
    const auto enqueue = [&](auto n) {
      scale_rows_kernel<T, n()><<<matrix_grid(rows, columns, n()), kMatrixThreads, 0, stream>>>(
          static_cast<const T*>(x), factor, gain, static_cast<T*>(out), rows, columns);
    };
    constexpr int kWide = 16 / sizeof(T);
    if (columns % kWide == 0 && aligned(x) && aligned(out)) {
      enqueue(std::integral_constant<int, kWide>());
    } else {
      enqueue(std::integral_constant<int, 1>());
    }
  });
  check(cudaGetLastError(), "scaling of rows: launch");
}

void add_gated(float* residual, const void* y, DType y_dtype, const float* gate, int64_t rows, int64_t channels,
               cudaStream_t stream) {
  if (rows == 0 || channels == 0) return;
  with_type(y_dtype, [&]<class T>(T*) {
    const auto enqueue = [&](auto n) {
      add_gated_kernel<T, n()><<<matrix_grid(rows, channels, n()), kMatrixThreads, 0, stream>>>(
          residual, static_cast<const T*>(y), gate, rows, channels);
    };
    if (channels % kUnit == 0 && aligned(residual) && aligned(y) && aligned(gate)) {
      enqueue(std::integral_constant<int, kUnit>());
    } else {
      enqueue(std::integral_constant<int, 1>());
    }
  });
  check(cudaGetLastError(), "gated addition: launch");
}

void add_bias(void* y, DType dtype, const float* bias, int64_t rows, int64_t channels, cudaStream_t stream) {
  with_type(dtype, [&]<class T>(T*) {
    map(rows * channels, stream, AddBias<T>{static_cast<T*>(y), bias, channels}, y);
  });
}

void sum_of_squares(const float* x, int64_t size, double* partial_sums, cudaStream_t stream) {
  sum_of_squares_kernel<<<kSumParts, kThreads, 0, stream>>>(x, size, partial_sums);
  check(cudaGetLastError(), "sum of squares: launch");
}

}  // namespace calibatt::cuda
