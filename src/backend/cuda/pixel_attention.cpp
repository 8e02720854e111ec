#include "backend/cuda/pixel_attention.h"

#include <cublas_v2.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "backend/cuda/clip_kernels.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

constexpr int64_t kScoreBytes = int64_t{256} << 20;
constexpr int64_t kRowMultiple = 128;   // of the queries at a time: whole tiles of a matrix product
constexpr int64_t kColumnMultiple = 8;  // rows of probabilities start at multiples of 16 bytes

void check_blas(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw_out_of_memory("cuBLAS, " + std::string(what));
  throw Error(ErrorKind::kDevice, "cuBLAS: " + std::string(what) + ": " + cublasGetStatusString(status));
}

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

struct PixelAttention::Handle {
  cublasHandle_t blas = nullptr;

  explicit Handle(cudaStream_t stream) {
    check_blas(cublasCreate(&blas), "starting");
    check_blas(cublasSetStream(blas, stream), "setting the stream");
    // float32 stays float32 (no TF32), and partial sums of bfloat16 products are not rounded to bfloat16.
    check_blas(cublasSetMathMode(blas, static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH |
                                                                 CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)),
               "setting the precision");
  }
  Handle(const Handle&) = delete;
  ~Handle() {
    if (blas != nullptr) static_cast<void>(cublasDestroy(blas));
  }
};

PixelAttention::PixelAttention(Context& context)
    : context_(context), handle_(std::make_unique<Handle>(context.stream())) {}
PixelAttention::~PixelAttention() = default;

void PixelAttention::run(const ClipView& qkv, int64_t first_row, const ClipView& out) {
  const int64_t tokens = qkv.height * qkv.width, num_queries = out.height * out.width, channels = out.channels;
  const cudaDataType_t type = qkv.dtype == DType::kBF16 ? CUDA_R_16BF : CUDA_R_32F;
  const size_t element = dtype_size(qkv.dtype);
  const int64_t stride = round_up(tokens, kColumnMultiple);
  const int64_t num_ranges = (num_queries * stride * static_cast<int64_t>(sizeof(float)) - 1) / kScoreBytes + 1;
  const int64_t rows_at_once = std::min(num_queries, round_up((num_queries - 1) / num_ranges + 1, kRowMultiple));

  const Tensor scores = context_.allocate(DType::kF32, {rows_at_once, stride});
  Tensor probabilities = qkv.dtype == DType::kF32 ? scores : context_.allocate(qkv.dtype, {rows_at_once, stride});
  float* const scores_data = const_cast<float*>(scores.f32());
  const char* const queries = static_cast<const char*>(qkv.at(first_row, 0));
  const char* const keys = static_cast<const char*>(qkv.data) + static_cast<size_t>(channels) * element;
  const char* const values = keys + static_cast<size_t>(channels) * element;
  const float scale = 1.0f / std::sqrt(static_cast<float>(channels)), one = 1, zero = 0;
  const auto n = static_cast<int>(tokens), c = static_cast<int>(channels), ld = static_cast<int>(stride);

  // cuBLAS' matrices are column-major: a row-major [tokens, channels] is its [channels, tokens].
  for (int64_t begin = 0; begin < num_queries; begin += rows_at_once) {
    const int64_t rows = std::min(rows_at_once, num_queries - begin);
    const auto r = static_cast<int>(rows);
    const char* const some_queries = queries + static_cast<size_t>(begin * 3 * channels) * element;
    char* const some_out = static_cast<char*>(out.data) + static_cast<size_t>(begin * channels) * element;
    check_blas(cublasGemmEx(handle_->blas, CUBLAS_OP_T, CUBLAS_OP_N, n, r, c, &scale, keys, type, 3 * c, some_queries,
                            type, 3 * c, &zero, scores_data, CUDA_R_32F, ld, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
               "multiplying queries and keys");
    launch_softmax(scores_data, rows, tokens, stride, probabilities.raw(), qkv.dtype, context_.stream());
    check_blas(
        cublasGemmEx(handle_->blas, CUBLAS_OP_N, CUBLAS_OP_N, c, r, n, &one, values, type, 3 * c, probabilities.raw(),
                     type, ld, &zero, some_out, type, c, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
        "multiplying probabilities and values");
  }
}

}  // namespace calibatt::cuda
