#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backend/attention_call.h"
#include "backend/communicator.h"
#include "backend/timer.h"
#include "base/tensor.h"

namespace calibatt {

/// [tokens, heads, head_dim] in host memory.
struct HostHeads {
  ConstHeadsView view;  ///< kF32 or kBF16
  Tensor storage;       ///< owns what the view points to; empty where host memory is the backend's
};

/// A role of a backend: the memory that everything it computes on is in, and its time.
class Device {
 public:
  virtual ~Device() = default;
  virtual std::string_view name() const = 0;              ///< of the backend: "cpu", "cuda"
  virtual std::string device_name() const { return {}; }  ///< "NVIDIA H100 …"; empty: this machine's processor

  /// Makes this device the calling thread's. The thread that made it need not, unless it made another since; every
  /// other one must, before it computes here.
  virtual void make_current() {}
  /// This device's end of the group of ranks whose hosts meet in `hosts`: pieces are memory of this device. Every rank
  /// of the group calls it. Null where memory is the host's, so that `hosts` itself will do. Throws Error(kDevice)
  /// where devices cannot read each other's memory.
  virtual std::unique_ptr<Communicator> join(Communicator& /*hosts*/) { return nullptr; }

  // ---- time --------------------------------------------------------------------------------------------------------
  virtual void synchronize() {}  ///< waits for all that was asked for; throws Error(kDevice) when any of it failed
  virtual std::unique_ptr<Timer> make_timer() { return std::make_unique<WallClockTimer>(); }
  /// Ends a piece of work (one layer, say) and waits until the piece before it is done. Called after every piece, it
  /// keeps the device busy, while the host is never more than a piece ahead: whoever wants to stop has not enqueued
  /// minutes of work by then. Throws Error(kDevice) when the waited-for piece failed. Nothing to do where a call
  /// returns when its work is done.
  virtual void limit_run_ahead() {}

  // ---- memory ------------------------------------------------------------------------------------------------------
  virtual Tensor empty(DType dtype, std::vector<int64_t> shape) = 0;
  virtual Tensor from_host(const Tensor& host) = 0;  ///< may share storage where host memory is the device's
  virtual Tensor to_host(const Tensor& device) = 0;  ///< likewise; waits for what makes the tensor
  /// The same for a strided view into this backend's memory, which may be part of a larger tensor (q, k and v are
  /// thirds of one).
  virtual HostHeads heads_to_host(ConstHeadsView view, int num_heads, int head_dim) = 0;
  /// to[t, h, :] = from[t, h, :]; the same type and number of tokens, no overlap, the heads of a token without gaps.
  virtual void copy_heads(ConstHeadsView from, HeadsView to, int num_heads, int head_dim) = 0;
  /// Whether the backend's device of this index can read this one's memory.
  virtual bool is_readable_by(int /*device*/) const { return true; }
  /// Whether tensors are in host memory, so that anybody may follow their pointers.
  virtual bool in_host_memory() const { return true; }
  /// Most device memory that was in use at a time since reset_peak_memory; 0 where nobody counts.
  virtual size_t peak_memory_bytes() const { return 0; }
  virtual void reset_peak_memory() {}
  /// Device memory that a run may still take; SIZE_MAX where tensors are in host memory (base/host_memory.h tells).
  virtual size_t available_memory_bytes() const { return SIZE_MAX; }
  /// Gives back what is kept for later and not in use now: to be called between stages that need much.
  virtual void trim_memory() {}
};

}  // namespace calibatt
