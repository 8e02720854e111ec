#include "backend/cuda/gemm.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <string>

#include "base/error.h"

namespace calibatt::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{64} << 20;  // NVIDIA recommends at least 32 MiB on Hopper
constexpr int kMaxCandidates = 6;
constexpr double kTunedOperations = 1e11;  // a product that takes longer than about 0.15 ms is worth a comparison
constexpr float kClearlyFaster = 0.98f;    // or the library's favourite stays: fewer choices depend on noise

cudaDataType_t cuda_type(DType dtype) {
  CALIBATT_ASSERT(dtype == DType::kF32 || dtype == DType::kBF16);
  return dtype == DType::kF32 ? CUDA_R_32F : CUDA_R_16BF;
}

uint32_t alignment(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  return static_cast<uint32_t>(std::min<uintptr_t>(256, address & (~address + 1)));
}

std::string describe(const GemmCall& call) {
  return "product [" + std::to_string(call.rows) + ", " + std::to_string(call.in_features) + "] · [" +
         std::to_string(call.in_features) + ", " + std::to_string(call.out_features) + "] " +
         std::string(dtype_name(call.dtype)) + " → " + std::string(dtype_name(call.out_dtype));
}

void check(cublasStatus_t status, const std::string& what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  cuda::check(cudaPeekAtLastError(), "cuBLASLt");  // a lost GPU says more about itself
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw_out_of_memory("cuBLASLt, " + what);
  throw Error(ErrorKind::kDevice, "GPU: cuBLASLt: " + what + ": " + cublasLtGetStatusString(status) +
                                      "; check that the installed cuBLAS is of CUDA 13");
}

/// An event of the current device.
class Event {
 public:
  Event() { cuda::check(cudaEventCreate(&event_), "making an event"); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { static_cast<void>(cudaEventDestroy(event_)); }
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

/// cuBLASLt is column-major: a row-major [rows, n] array is its n × rows matrix. So outᵀ = weight · inputᵀ, where the
/// stored weight is an in × out matrix that is transposed, and the bias runs along the rows of outᵀ, as it must.
struct Gemm::Descriptors {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t weight = nullptr, input = nullptr, out = nullptr;

  explicit Descriptors(const GemmCall& call) {
    check(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing a product");
    set(CUBLASLT_MATMUL_DESC_TRANSA, static_cast<int32_t>(CUBLAS_OP_T));
    set(CUBLASLT_MATMUL_DESC_TRANSB, static_cast<int32_t>(CUBLAS_OP_N));
    const auto epilogue =
        static_cast<uint32_t>(call.bias != nullptr ? (call.gelu ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_BIAS)
                                                   : (call.gelu ? CUBLASLT_EPILOGUE_GELU : CUBLASLT_EPILOGUE_DEFAULT));
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    if (call.bias != nullptr) {
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, call.bias);
      set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, static_cast<int32_t>(cuda_type(call.out_dtype)));
    }
    const auto layout = [](cublasLtMatrixLayout_t& to, DType dtype, int64_t rows, int64_t columns) {
      check(cublasLtMatrixLayoutCreate(&to, cuda_type(dtype), static_cast<uint64_t>(rows),
                                       static_cast<uint64_t>(columns), rows),
            "describing a matrix");
    };
    layout(weight, call.dtype, call.in_features, call.out_features);
    layout(input, call.dtype, call.in_features, call.rows);
    layout(out, call.out_dtype, call.out_features, call.rows);
  }
  Descriptors(const Descriptors&) = delete;
  Descriptors& operator=(const Descriptors&) = delete;
  ~Descriptors() {
    for (cublasLtMatrixLayout_t each : {weight, input, out}) {
      if (each != nullptr) static_cast<void>(cublasLtMatrixLayoutDestroy(each));
    }
    if (operation != nullptr) static_cast<void>(cublasLtMatmulDescDestroy(operation));
  }

 private:
  template <class Value>
  void set(cublasLtMatmulDescAttributes_t attribute, const Value& value) {
    check(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof(value)), "describing a product");
  }
};

Gemm::Gemm(Context& context) : context_(context), workspace_(context.allocate_bytes(kWorkspaceBytes)) {
  check(cublasLtCreate(&handle_), "starting");
}

Gemm::~Gemm() {
  if (handle_ != nullptr) static_cast<void>(cublasLtDestroy(handle_));
}

Gemm::Shape Gemm::shape_of(const GemmCall& call) {
  return {call.rows,
          call.out_features,
          call.in_features,
          call.dtype,
          call.out_dtype,
          call.bias != nullptr,
          call.gelu,
          call.accumulate,
          alignment(call.input),
          alignment(call.weight),
          alignment(call.out),
          call.bias != nullptr ? alignment(call.bias) : 0};
}

void Gemm::run(const GemmCall& call) {
  if (call.rows == 0) return;
  const auto& algorithm = algorithm_for(call);
  if (!algorithm) check(CUBLAS_STATUS_NOT_SUPPORTED, describe(call));
  check(enqueue(call, Descriptors(call), *algorithm), describe(call));
}

const std::optional<cublasLtMatmulAlgo_t>& Gemm::algorithm_for(const GemmCall& call) {
  const Shape shape = shape_of(call);
  auto found = algorithms_.find(shape);
  if (found == algorithms_.end()) found = algorithms_.emplace(shape, choose(call, shape)).first;
  return found->second;
}

cublasStatus_t Gemm::enqueue(const GemmCall& call, const Descriptors& descriptors,
                             const cublasLtMatmulAlgo_t& algorithm) {
  const float alpha = 1, beta = call.accumulate ? 1.0f : 0.0f;
  return cublasLtMatmul(handle_, descriptors.operation, &alpha, call.weight, descriptors.weight, call.input,
                        descriptors.input, &beta, call.out, descriptors.out, call.out, descriptors.out, &algorithm,
                        workspace_.get(), kWorkspaceBytes, context_.stream());
}

std::optional<cublasLtMatmulAlgo_t> Gemm::choose(const GemmCall& call, const Shape& shape) {
  const Descriptors descriptors(call);
  cublasLtMatmulPreference_t preference = nullptr;
  check(cublasLtMatmulPreferenceCreate(&preference), "preferences");
  const std::unique_ptr<std::remove_pointer_t<cublasLtMatmulPreference_t>,
                        cublasStatus_t (*)(cublasLtMatmulPreference_t)>
      owner(preference, &cublasLtMatmulPreferenceDestroy);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)), "preferences");
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspaceBytes});
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, shape.weight_alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, shape.input_alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, shape.out_alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, shape.out_alignment);

  std::array<cublasLtMatmulHeuristicResult_t, kMaxCandidates> results{};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle_, descriptors.operation, descriptors.weight,
                                                               descriptors.input, descriptors.out, descriptors.out,
                                                               preference, kMaxCandidates, results.data(), &count);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return std::nullopt;
  check(status, describe(call));
  const auto usable = std::ranges::stable_partition(results.begin(), results.begin() + count, [](const auto& result) {
    return result.state == CUBLAS_STATUS_SUCCESS;
  });
  count = static_cast<int>(usable.begin() - results.begin());
  if (count == 0) return std::nullopt;

  const double operations = 2.0 * static_cast<double>(call.rows) * static_cast<double>(call.out_features) *
                            static_cast<double>(call.in_features);
  if (call.accumulate || operations < kTunedOperations) return results[0].algo;
  int best = 0;
  float best_milliseconds = milliseconds(call, descriptors, results[0].algo) * kClearlyFaster;
  for (int i = 1; i < count; ++i) {
    const float each = milliseconds(call, descriptors, results[static_cast<size_t>(i)].algo);
    if (each >= best_milliseconds) continue;
    best = i;
    best_milliseconds = each;
  }
  return results[static_cast<size_t>(best)].algo;
}

/// The faster of two runs after one to warm up; infinite when the algorithm refuses after all.
float Gemm::milliseconds(const GemmCall& call, const Descriptors& descriptors, const cublasLtMatmulAlgo_t& algorithm) {
  if (enqueue(call, descriptors, algorithm) != CUBLAS_STATUS_SUCCESS) return INFINITY;
  float best = INFINITY;
  for (int turn = 0; turn < 2; ++turn) {
    const Event begin, end;
    cuda::check(cudaEventRecord(begin.get(), context_.stream()), "recording an event");
    if (enqueue(call, descriptors, algorithm) != CUBLAS_STATUS_SUCCESS) return INFINITY;
    cuda::check(cudaEventRecord(end.get(), context_.stream()), "recording an event");
    cuda::check(cudaEventSynchronize(end.get()), "running a product");
    float each = 0;
    cuda::check(cudaEventElapsedTime(&each, begin.get(), end.get()), "timing a product");
    best = std::min(best, each);
  }
  return best;
}

}  // namespace calibatt::cuda
