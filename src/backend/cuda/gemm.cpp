#include "backend/cuda/gemm.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <string>
#include <type_traits>

#include "backend/cuda/device/event_timer.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{64} << 20;  // NVIDIA recommends at least 32 MiB on Hopper
constexpr int kMaxCandidates = 12, kRounds = 3;
constexpr double kTunedOperations = 1e11;  // a product that takes longer than about 0.15 ms is worth a comparison
constexpr float kClearlyFaster = 0.98f;    // or the library's favourite stays: fewer choices depend on noise
constexpr float kOutOfReach = 1.05f;       // so much slower than another at once: not tried again
constexpr int64_t kLoadingRows = 256;

cudaDataType_t cuda_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return CUDA_R_32F;
    case DType::kBF16:
      return CUDA_R_16BF;
    case DType::kF16:
      return CUDA_R_16F;
    case DType::kE4M3:
      return CUDA_R_8F_E4M3;
    default:
      internal::assertion_failed("a dtype of products", __FILE__, __LINE__);
  }
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
      set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, static_cast<int32_t>(cuda_type(call.bias_dtype())));
    }
    if (call.dtype == DType::kE4M3) set_scales(call);
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
  void set_scales(const GemmCall& call) {
    CALIBATT_ASSERT(call.input_scales != nullptr && call.weight_scales != nullptr);
    constexpr auto kVector = static_cast<int32_t>(CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
    set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, kVector);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, kVector);
    set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, static_cast<const void*>(call.weight_scales));
    set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, static_cast<const void*>(call.input_scales));
    set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t{1});
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
          call.bias != nullptr ? alignment(call.bias) : 0,
          call.dtype == DType::kE4M3 ? std::min(alignment(call.input_scales), alignment(call.weight_scales)) : 0};
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
  if (found == algorithms_.end()) found = algorithms_.emplace(shape, choose(call)).first;
  return found->second;
}

cublasStatus_t Gemm::enqueue(const GemmCall& call, const Descriptors& descriptors,
                             const cublasLtMatmulAlgo_t& algorithm) {
  const float alpha = call.alpha, beta = call.accumulate ? 1.0f : 0.0f;
  return cublasLtMatmul(handle_, descriptors.operation, &alpha, call.weight, descriptors.weight, call.input,
                        descriptors.input, &beta, call.out, descriptors.out, call.out, descriptors.out, &algorithm,
                        workspace_.get(), kWorkspaceBytes, context_.stream());
}

std::optional<cublasLtMatmulAlgo_t> Gemm::choose(const GemmCall& call) {
  const Descriptors descriptors(call);
  std::vector<GemmCandidate> all = candidates(call, descriptors);
  if (all.empty()) return std::nullopt;
  const double operations = 2.0 * static_cast<double>(call.rows) * static_cast<double>(call.out_features) *
                            static_cast<double>(call.in_features);
  const GemmCandidate* best = &all.front();
  if (operations < kTunedOperations || !try_all(call, descriptors, all, 1)) return best->algorithm;
  float to_beat = best->milliseconds * kClearlyFaster;
  for (const GemmCandidate& each : all) {
    if (!each.finalist || each.milliseconds >= to_beat) continue;
    best = &each;
    to_beat = each.milliseconds;
  }
  return best->algorithm;
}

std::vector<GemmCandidate> Gemm::tried_candidates(const GemmCall& call, int repeats) {
  const Descriptors descriptors(call);
  std::vector<GemmCandidate> result = candidates(call, descriptors);
  if (!try_all(call, descriptors, result, repeats)) result.clear();
  return result;
}

/// Not tried yet.
std::vector<GemmCandidate> Gemm::candidates(const GemmCall& call, const Descriptors& descriptors) {
  cublasLtMatmulPreference_t preference = nullptr;
  check(cublasLtMatmulPreferenceCreate(&preference), "preferences");
  const std::unique_ptr<std::remove_pointer_t<cublasLtMatmulPreference_t>,
                        cublasStatus_t (*)(cublasLtMatmulPreference_t)>
      owner(preference, &cublasLtMatmulPreferenceDestroy);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)), "preferences");
  };
  const Shape shape = shape_of(call);
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspaceBytes});
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, shape.weight_alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, shape.input_alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, shape.out_alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, shape.out_alignment);

  std::array<cublasLtMatmulHeuristicResult_t, kMaxCandidates> found{};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle_, descriptors.operation, descriptors.weight,
                                                               descriptors.input, descriptors.out, descriptors.out,
                                                               preference, kMaxCandidates, found.data(), &count);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return {};
  check(status, describe(call));
  std::vector<GemmCandidate> result;
  for (int i = 0; i < count; ++i) {
    const cublasLtMatmulHeuristicResult_t& each = found[static_cast<size_t>(i)];
    if (each.state == CUBLAS_STATUS_SUCCESS) result.push_back({.algorithm = each.algo});
  }
  return result;
}

/// Sets the candidates' times; false, and nothing is set, when there is no memory to try in. A card at its power limit
/// changes its clock from one moment to the next: candidates take turns and medians count. To be cheap, those that are
/// clearly slower in the first round are out, and kernels are loaded by products of a few rows (where an algorithm
/// refuses so few, its first turn takes longer).
bool Gemm::try_all(GemmCall call, const Descriptors& descriptors, std::vector<GemmCandidate>& candidates, int repeats) {
  std::shared_ptr<void> scratch;
  if (call.accumulate) {
    const size_t bytes =
        static_cast<size_t>(call.rows) * static_cast<size_t>(call.out_features) * dtype_size(call.out_dtype);
    scratch = context_.try_allocate_bytes(bytes);
    if (scratch == nullptr) return false;
    cuda::check(cudaMemsetAsync(scratch.get(), 0, bytes, context_.stream()), "clearing memory");
    call.out = scratch.get();
  }
  GemmCall few_rows = call;
  few_rows.rows = std::min(call.rows, kLoadingRows);
  const Descriptors few_rows_descriptors(few_rows);
  for (const GemmCandidate& each : candidates) {
    static_cast<void>(enqueue(few_rows, few_rows_descriptors, each.algorithm));
  }

  std::vector<std::vector<float>> times(candidates.size());
  float fastest = INFINITY;  // of the first round
  for (int round = 0; round < kRounds; ++round) {
    for (size_t i = 0; i < candidates.size(); ++i) {
      if (round > 0 && i > 0 && times[i].front() > fastest * kOutOfReach) continue;
      times[i].push_back(milliseconds(call, descriptors, candidates[i].algorithm, repeats));
      if (round == 0) fastest = std::min(fastest, times[i].front());
    }
  }
  for (size_t i = 0; i < candidates.size(); ++i) {
    std::ranges::sort(times[i]);
    candidates[i].milliseconds = times[i][times[i].size() / 2];
    candidates[i].finalist = times[i].size() == kRounds;
  }
  if (scratch != nullptr) {
    scratch.reset();
    context_.trim();  // nothing of that size is needed again
  }
  return true;
}

/// Infinite when the algorithm refuses after all.
float Gemm::milliseconds(const GemmCall& call, const Descriptors& descriptors, const cublasLtMatmulAlgo_t& algorithm,
                         int repeats) {
  EventTimer timer(context_.stream());
  timer.start();
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
  for (int i = 0; i < repeats && status == CUBLAS_STATUS_SUCCESS; ++i) status = enqueue(call, descriptors, algorithm);
  timer.stop();
  const double seconds = timer.seconds() / repeats;
  return status == CUBLAS_STATUS_SUCCESS ? static_cast<float>(seconds * 1e3) : INFINITY;
}

std::string GemmCandidate::describe() const {
  std::string text;
  const auto add = [&]<class Value>(const char* name, cublasLtMatmulAlgoConfigAttributes_t attribute, Value value) {
    size_t written = 0;
    if (cublasLtMatmulAlgoConfigGetAttribute(&algorithm, attribute, &value, sizeof(value), &written) !=
        CUBLAS_STATUS_SUCCESS) {
      return;
    }
    text += (text.empty() ? "" : ", ") + std::string(name) + " " + std::to_string(value);
  };
  add("algorithm", CUBLASLT_ALGO_CONFIG_ID, int32_t{});
  add("tile", CUBLASLT_ALGO_CONFIG_TILE_ID, uint32_t{});
  add("stages", CUBLASLT_ALGO_CONFIG_STAGES_ID, uint32_t{});
  add("cluster", CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, uint16_t{});
  add("inner shape", CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, uint16_t{});
  add("swizzle", CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, uint32_t{});
  add("split-k", CUBLASLT_ALGO_CONFIG_SPLITK_NUM, int32_t{});
  add("reduction", CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, uint32_t{});
  add("option", CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, uint32_t{});
  return text;
}

}  // namespace calibatt::cuda
