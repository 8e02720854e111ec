#include "models/linear_loading.h"

#include <cstdio>

#include "base/error.h"
#include "base/host_memory.h"

namespace calibatt {

std::shared_ptr<const LinearLayer> load_linear(Backend& backend, const Weights& weights, const std::string& name,
                                               int64_t out, int64_t in, const LinearFormat& format,
                                               const std::shared_ptr<StreamedWeights>& streamed, Bias bias) {
  return load_fused(backend, weights, {name}, out, in, format, streamed, bias);
}

std::shared_ptr<const LinearLayer> load_fused(Backend& backend, const Weights& weights,
                                              const std::vector<std::string>& names, int64_t out_of_each, int64_t in,
                                              const LinearFormat& format,
                                              const std::shared_ptr<StreamedWeights>& streamed, Bias bias) {
  std::vector<std::string> matrices, biases;
  for (const std::string& name : names) {
    matrices.push_back(name + ".weight");
    if (bias == Bias::kStored) biases.push_back(name + ".bias");
  }
  return backend.load_linear(
      {weights.stored_all(matrices, {out_of_each, in}), weights.stored_all(biases, {out_of_each}), format, streamed});
}

std::vector<std::string> with_prefix(const std::string& prefix, std::vector<std::string> names) {
  for (std::string& name : names) name.insert(0, prefix);
  return names;
}

void require_host_memory(size_t size_bytes, const std::string& what, const std::string& remedy) {
  constexpr double kGigabyte = 1e9;
  const size_t available = available_host_memory();
  if (size_bytes <= available) return;
  char sizes[120];
  std::snprintf(sizes, sizeof(sizes), "%.1f GB of weights are to stay in host memory, and %.1f GB of it are available",
                static_cast<double>(size_bytes) / kGigabyte, static_cast<double>(available) / kGigabyte);
  throw Error(ErrorKind::kDevice, what + ": " + sizes + "; close other programs or " + remedy);
}

void require_host_memory_of_wide_layers(const Backend& backend, size_t size_bytes) {
  if (backend.in_host_memory()) return;
  require_host_memory(size_bytes, "steps without 8 bits (--weights-dtype)",
                      "give --keep-steps 0, which computes every step in 8 bits and loses quality; a calibration needs "
                      "them, and can be made without 8 bits");
}

}  // namespace calibatt
