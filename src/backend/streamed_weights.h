#pragma once

#include <memory>
#include <utility>

namespace calibatt {

/// Weights that live in host memory and are on the device only around their use: the linear layers of one transformer
/// block. Made by LinearOps::make_streamed_weights, filled by LinearOps::load_linear, then sealed. The device has room
/// for few of them at a time, so their users take turns: prefetch the next one, use this one, end its use. Everything
/// is enqueued; nothing waits on the host. To be destroyed before its backend.
class StreamedWeights {
 public:
  virtual ~StreamedWeights() = default;
  virtual void seal() = 0;       ///< all layers are loaded: pins the memory. Throws Error(kDevice) when it cannot be
  virtual void prefetch() = 0;   ///< begins the copy to the device; announce the next one only, not several ahead
  virtual void begin_use() = 0;  ///< what is enqueued from here on finds the weights on the device
  virtual void end_use() = 0;    ///< what is enqueued from here on does not need them
};

/// The weights are on the device while this object lives, and those of `next` on their way. Either may be null: weights
/// that are always there.
class WeightsInUse {
 public:
  WeightsInUse(std::shared_ptr<StreamedWeights> weights, const std::shared_ptr<StreamedWeights>& next)
      : weights_(std::move(weights)) {
    if (weights_) weights_->begin_use();
    try {
      if (next) next->prefetch();
    } catch (...) {
      end();
      throw;
    }
  }
  WeightsInUse(const WeightsInUse&) = delete;
  WeightsInUse& operator=(const WeightsInUse&) = delete;
  ~WeightsInUse() { end(); }

 private:
  void end() const {
    if (!weights_) return;
    try {
      weights_->end_use();
    } catch (...) {  // only a device that fails throws here, and whatever asks it next says so
    }
  }

  std::shared_ptr<StreamedWeights> weights_;
};

}  // namespace calibatt
