#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <vector>

#include "calibrate/record/recorder.h"

namespace calibatt {

/// Means of a list's first members, a matrix for each of some keys. What never changes any more is summed up once and
/// kept, so that a list that grows by one member reads each of them once, not all of them again. The means are the same
/// bits whatever is kept.
class RunningMeans {
 public:
  explicit RunningMeans(size_t num_keys) : kept_(num_keys) {}

  /// Of members [0, count). read(member, values): its matrix of this key, `size` values. The first `settled` ≤ count
  /// never change; a later call has no lower count than an earlier one has settled. Safe to call from several threads.
  std::vector<float> mean(size_t key, size_t size, size_t settled, size_t count,
                          const std::function<void(size_t member, std::span<float> values)>& read);
  /// How many matrices were read so far.
  int64_t num_reads() const { return num_reads_; }

 private:
  struct Kept {
    std::mutex mutex;  ///< of what follows
    size_t members = 0;
    std::vector<float> mean;
  };
  std::atomic<int64_t> num_reads_ = 0;
  std::vector<Kept> kept_;  ///< [num_keys]
};

/// Which blocks a plan made from the earlier prompts' maps would keep: means over them of one head's matrices, [R, C].
/// site_head = (step · layers + layer) · heads + head.
class EarlierMeans {
 public:
  /// The header must outlive the object.
  explicit EarlierMeans(const ProfileHeader& header);

  /// So many of the first prompts are measured, and none of them is any more: whoever asks has at least these.
  void settle(size_t prompts) { settled_ = prompts; }

  std::vector<float> energy(const EarlierPrompts& prompts, size_t site_head);
  /// Squared, with the neighbouring steps' mixed in (profile.h).
  std::vector<float> harm(const EarlierPrompts& prompts, Skipped skipped, size_t site_head);
  int64_t num_reads() const { return energy_.num_reads() + harm_.num_reads(); }

 private:
  size_t num_heads() const;  ///< of all steps and layers; without maps, of which there are no means, none

  const ProfileHeader& header_;
  const size_t num_blocks_;
  std::atomic<size_t> settled_ = 0;
  RunningMeans energy_, harm_;
};

}  // namespace calibatt
