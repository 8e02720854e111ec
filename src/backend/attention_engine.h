#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "backend/attention_call.h"
#include "backend/communicator.h"
#include "calibatt/mask_streaming.h"

namespace calibatt {

/// The sizes that a schedule is made for, in tokens; as in AttentionCall.
struct ScheduleSizes {
  int num_queries = 0, num_keys = 0;
  int block_q = 64, block_k = 64;
  bool operator==(const ScheduleSizes&) const = default;
};

/// A role of a backend: self- and cross-attention, dense or by a schedule.
class AttentionEngine {
 public:
  virtual ~AttentionEngine() = default;
  /// softmax(QKᵀ)V by the fastest kernel that takes the call. The last in a backend's table takes
  /// every call that AttentionCall allows, on a GPU up to what a grid and its shared memory hold. Throws Error(kUsage),
  /// before anything is written, when shapes, dtypes or schedules do not fit together or no kernel takes the call.
  /// Returns the kernel's name, of static storage; empty where none ran.
  virtual std::string_view attention(const AttentionCall& call) = 0;
  /// Whether calls in 8 bits may have queries and keys that are still to be normalised (AttentionCall::norm), because
  /// the engine then saves passes over them.
  virtual bool takes_norm() const { return false; }
  /// Name of the kernel that `attention` would run for dense calls of this dtype and head size, in 8 bits or not; for
  /// what is told before a run. Throws Error(kUsage), with the reason, when no kernel takes them.
  virtual std::string attention_kernel(DType, int /*head_dim*/, bool /*eight_bits*/ = false) const { return "unknown"; }
  /// Tells of a planned call that comes next or soon (AttentionCall::schedule will be this source), so that a backend
  /// whose kernels want schedules in another form or memory can prepare them meanwhile. A hint: calls that nobody
  /// announced work too, and what was announced need not come. What goes wrong here is thrown by `attention`.
  virtual void prefetch_schedule(const std::shared_ptr<const ScheduleSource>& /*schedule*/,
                                 const ScheduleSizes& /*sizes*/) {}
  /// The ranks whose tokens its calls are of, where it computes calls together with others
  /// (attention/sequence_parallel.h); null: it is alone, as every backend's own is.
  virtual Communicator* ranks() const { return nullptr; }
  /// Since the backend was made; zeros where nothing is streamed.
  virtual MaskStreaming mask_streaming() const { return {}; }
};

}  // namespace calibatt
