#pragma once

#include <memory>
#include <string_view>

#include "backend/attention_call.h"
#include "base/tensor.h"

namespace calibatt {

class ClipOps;

/// Where the arithmetic happens. Models are written against this interface alone; a device backend implements it
/// without touching them. Tensors passed in live where this backend put them (from_host / empty).
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;

  /// softmax(QKᵀ)V by the fastest kernel that takes the call; the reference is the last resort and takes any.
  /// Throws Error(kUsage) when shapes, dtypes or schedules do not fit together, before anything is written.
  virtual void attention(const AttentionCall& call) = 0;

  // ---- video autoencoder (clip_ops.h) ----
  /// Throws Error(kUsage) on a backend that has none.
  virtual ClipOps& clip_ops();
};

/// The backend of this name ("cpu"); throws Error(kUsage) naming those there are.
std::unique_ptr<Backend> make_backend(std::string_view name);

}  // namespace calibatt
