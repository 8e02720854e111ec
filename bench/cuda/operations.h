#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/device/context.h"
#include "backend/cuda/gemm.h"
#include "backend/cuda/linear.h"

/// What operations_bench measures with: times of anything that is enqueued, and linear layers, compared first.
namespace calibatt::bench {

inline constexpr int64_t kChecked = 64;  ///< rows that are compared

struct Operations {  ///< of a block, at one size
  const char *id, *name;
  int64_t tokens, heads, head_dim, ffn;
  bool joint = false;  ///< Mochi's
  int64_t dim() const { return heads * head_dim; }
};

/// Uniform in [-1, 1), the same in every run.
Tensor noise(DType dtype, std::vector<int64_t> shape, uint64_t seed);
Tensor first_rows(const Tensor& tensor, int64_t rows);
/// Throws Error(kNumeric) where they differ by more than one rounding to bf16 makes.
void check_close(const Tensor& found, const Tensor& expected, const std::string& what);

class Bench {
 public:
  explicit Bench(Backend& gpu) : gpu_(gpu) { copy_bandwidth_ = measure_copy(); }
  static constexpr int kWarmUps = 2, kRuns = 7;
  double copy_bandwidth() const { return copy_bandwidth_; }

  /// Median seconds of `work`; bytes: read and written once; operations: of products. stream: where the work is
  /// enqueued, when it is not the backend's.
  nlohmann::json measure(const std::string& name, double bytes, double operations, const std::function<void()>& work,
                         cudaStream_t stream = nullptr);

 private:
  double measure_copy();

  Backend& gpu_;
  double copy_bandwidth_ = 0;
};

/// What becomes of a product.
enum class Way { kWritten, kGelu, kAdded, kGated, kGatedInTwoPasses };

/// Linear layers on a stream of their own, so that the passes they are made of can be run one by one too.
class Products {
 public:
  struct Layer {
    Tensor weight, bias;  // host
    std::shared_ptr<const LinearLayer> gpu, cpu;
  };

  Products(Bench& bench, int trial_repeats);
  size_t peak_bytes() const { return context_.peak_bytes(); }

  Layer make(int64_t out, int64_t in, uint64_t seed, bool has_bias = true);
  Tensor empty(DType dtype, std::vector<int64_t> shape) { return context_.allocate(dtype, std::move(shape)); }

  /// Compared, then timed. out: F32 where something is added to it, else BF16.
  nlohmann::json measure(const std::string& name, const Layer& layer, const Tensor& input, Tensor& out, Way way,
                         const Tensor& gate);

 private:
  void run(const Layer& layer, const Tensor& input, Tensor& out, Way way, const Tensor& gate);
  void compare(const std::string& name, const Layer& layer, const Tensor& input, const Tensor& out, Way way,
               const Tensor& gate, const std::function<void()>& work);
  nlohmann::json candidates(const Layer& layer, const Tensor& input, Tensor& out, Way way);
  Tensor to_host(const Tensor& device);
  Tensor checked_rows(const Tensor& device) { return to_host(first_rows(device, kChecked)); }

  Bench& bench_;
  int trial_repeats_;
  cuda::Context context_;
  cuda::CublasLinear linear_{context_};
  cuda::Gemm gemm_{context_};
  std::unique_ptr<Backend> cpu_;
};

/// Where a model's measurements go, and its sizes.
struct ModelBench {
  Backend& gpu;
  Bench& bench;
  const Operations& model;
  Backend& cpu;  ///< what the results are compared with
  nlohmann::json results = nlohmann::json::array();

  void add(const std::string& name, double bytes, const std::function<void()>& work) {
    results.push_back(bench.measure(name, bytes, 0, work));
  }
  double cells() const { return static_cast<double>(model.tokens) * static_cast<double>(model.dim()); }
};

void wan_operations(ModelBench& of, Products& products);
void mochi_operations(ModelBench& of, Products& products);

}  // namespace calibatt::bench
