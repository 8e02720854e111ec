#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "models/weights.h"

namespace calibatt {

enum class Bias { kNone, kStored };

/// A torch Linear of this name: name.weight [out, in] and, where it has one, name.bias [out].
std::shared_ptr<const LinearLayer> load_linear(Backend& backend, const Weights& weights, const std::string& name,
                                               int64_t out, int64_t in, const LinearFormat& format,
                                               const std::shared_ptr<StreamedWeights>& streamed = {},
                                               Bias bias = Bias::kStored);

/// Linears of one input, computed as one: their outputs side by side.
std::shared_ptr<const LinearLayer> load_fused(Backend& backend, const Weights& weights,
                                              const std::vector<std::string>& names, int64_t out_of_each, int64_t in,
                                              const LinearFormat& format,
                                              const std::shared_ptr<StreamedWeights>& streamed = {},
                                              Bias bias = Bias::kStored);

std::vector<std::string> with_prefix(const std::string& prefix, std::vector<std::string> names);

/// Refuses weights of so many bytes that are to stay in host memory, before the disk is read for minutes. what: wants
/// them there; remedy: what to do without. Throws Error(kDevice) when they do not fit.
void require_host_memory(size_t size_bytes, const std::string& what, const std::string& remedy);
/// The same for layers of steps without 8 bits, which stay there on a backend with memory of its own.
void require_host_memory_of_wide_layers(const Backend& backend, size_t size_bytes);

}  // namespace calibatt
