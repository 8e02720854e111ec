#pragma once

#include <algorithm>
#include <cstdint>

namespace calibatt {

/// How the masks of planned attention calls reached a GPU, one layer ahead; zeros where they are in the processor's own
/// memory already.
struct MaskStreaming {
  int64_t calls = 0;               ///< planned calls that have masks
  int64_t ready = 0;               ///< of these: found what they wanted
  int64_t late = 0;                ///< of these: announced, but the calling thread had to wait
  int64_t unannounced = 0;         ///< of these: nobody said that they would come (the first of a run, usually)
  double stall_seconds = 0;        ///< the calling thread waited so long for decoding, packing and writing
  double device_wait_seconds = 0;  ///< the stream's thread waited so long for the GPU to be done with earlier masks
  double work_seconds = 0;         ///< decoding, packing and writing, beside the calling thread
  uint64_t uploaded_bytes = 0;
  uint64_t peak_device_bytes = 0;  ///< most GPU memory that masks took at a time
  uint64_t device_bytes = 0;       ///< GPU memory that masks take now

  /// And what happened on another GPU of the same run; peak and memory are of the one that has more.
  void add(const MaskStreaming& other) {
    calls += other.calls;
    ready += other.ready;
    late += other.late;
    unannounced += other.unannounced;
    stall_seconds += other.stall_seconds;
    device_wait_seconds += other.device_wait_seconds;
    work_seconds += other.work_seconds;
    uploaded_bytes += other.uploaded_bytes;
    peak_device_bytes = std::max(peak_device_bytes, other.peak_device_bytes);
    device_bytes = std::max(device_bytes, other.device_bytes);
  }
  /// What happened since `earlier`; the peak is that of all the time, and the memory that of now.
  MaskStreaming since(const MaskStreaming& earlier) const {
    return {calls - earlier.calls,
            ready - earlier.ready,
            late - earlier.late,
            unannounced - earlier.unannounced,
            stall_seconds - earlier.stall_seconds,
            device_wait_seconds - earlier.device_wait_seconds,
            work_seconds - earlier.work_seconds,
            uploaded_bytes - earlier.uploaded_bytes,
            peak_device_bytes,
            device_bytes};
  }
};

}  // namespace calibatt
