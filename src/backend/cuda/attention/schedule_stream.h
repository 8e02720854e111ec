#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "backend/attention_call.h"
#include "backend/attention_engine.h"
#include "backend/cuda/attention/packed_schedule.h"

struct CUstream_st;

/// A plan's schedules on their way to the GPU: a few slots of device memory, filled one or two layers ahead by one
/// thread that decodes, packs and copies, while the GPU computes. Host code: what it wants of the device is an
/// interface, so that the order of things is tested without one.
namespace calibatt::cuda {

/// Most that schedules may take of the device's memory, and of pinned host memory. A layer of Wan 2.1 14B at 720p and
/// density .375 takes 11 MB with key blocks of 128 (27 MB when all its masks are random), 19 MB with blocks of 64 (54).
inline constexpr size_t kMaxScheduleBytes = size_t{64} << 20;

/// The stream on which the kernels that read a schedule are enqueued: a cudaStream_t, named without CUDA's headers.
using KernelStream = CUstream_st*;

/// Memory of the slots, and the order of copies and kernels. `acquire` and `release` are called on the thread that
/// enqueues kernels, the others on the stream's own.
class ScheduleBuffers {
 public:
  virtual ~ScheduleBuffers() = default;
  /// Called once by the thread that will call resize, host and upload.
  virtual void begin_thread() {}
  virtual int num_slots() const = 0;
  /// Makes the slot this large (0: gives its memory back), once the device has no more use for what it holds.
  virtual void resize(int slot, size_t size_bytes) = 0;
  /// Host memory to write to, of the slot's size; not before the last upload has read it.
  virtual std::byte* host(int slot) = 0;
  /// Begins to copy the first bytes of `host` to `device`, once the kernels before the last `release` are done with it.
  virtual void upload(int slot, size_t size_bytes) = 0;
  virtual const void* device(int slot) const = 0;
  /// Kernels enqueued there from now on see what was uploaded.
  virtual void acquire(int slot, KernelStream stream) = 0;
  /// Kernels enqueued there from now on do not read the slot.
  virtual void release(int slot, KernelStream stream) = 0;
};

class ScheduleStream {
 public:
  explicit ScheduleStream(std::unique_ptr<ScheduleBuffers> buffers, size_t max_bytes = kMaxScheduleBytes);
  ~ScheduleStream();  ///< waits for what the thread does now
  ScheduleStream(const ScheduleStream&) = delete;
  ScheduleStream& operator=(const ScheduleStream&) = delete;

  /// A schedule in device memory for as long as the object lives: enqueue the kernels that read it, then let go. One at
  /// a time per stream.
  class Lease {
   public:
    Lease() = default;  ///< of a dense call
    Lease(Lease&& other) noexcept;
    Lease& operator=(Lease&&) = delete;
    ~Lease();
    const DeviceSchedule& device() const { return device_; }
    bool has_summaries() const { return has_summaries_; }

   private:
    friend class ScheduleStream;
    ScheduleStream* stream_ = nullptr;
    int slot_ = -1;
    KernelStream kernels_ = nullptr;
    DeviceSchedule device_;
    bool has_summaries_ = false;
  };

  /// AttentionEngine::prefetch_schedule. Returns at once. What is known already, or under way, is not made again.
  void prefetch(std::shared_ptr<const ScheduleSource> source, const ScheduleSizes& sizes);

  /// The schedule of a call (by call.schedule; without one, of call.heads) whose kernels are enqueued on `kernels`;
  /// each call may have another stream. Waits when it is not there yet. Throws what
  /// decoding and packing throw, and Error(kUsage) when the schedule alone is larger than the limit.
  Lease get(const AttentionCall& call, KernelStream kernels);

  MaskStreaming stats() const;

 private:
  struct Job {
    std::shared_ptr<const ScheduleSource> source;
    const void* key = nullptr;            // the source; null when the caller's heads are taken
    std::span<const HeadSchedule> heads;  // without source
    ScheduleSizes sizes;
    uint64_t announced = 0;  // running number; 0: nobody did
    bool demanded = false;   // somebody waits for it
    bool working = false;    // the thread is at it
    std::optional<PackedSchedule> packed;
    int slot = -1;  // once it is there
    std::exception_ptr error;
    bool done() const { return slot >= 0 || error != nullptr; }
  };
  struct Slot {
    size_t capacity = 0;
    bool filling = false, leased = false, used = false;
    std::shared_ptr<const ScheduleSource> source;  // keeps the key's address from being somebody else's
    const void* key = nullptr;
    ScheduleSizes sizes;
    bool full = false;
    uint64_t announced = 0;  // number of what it holds
    DeviceSchedule device;
    bool has_summaries = false;
  };
  struct Place {
    int slot = -1;
    size_t capacity = 0;     // to make it
    std::vector<int> freed;  // slots that give their memory back for it
  };

  void run();
  std::shared_ptr<Job> next_work();
  bool pack(Job& job, std::unique_lock<std::mutex>& lock);
  void fill(Job& job, const Place& place, std::unique_lock<std::mutex>& lock);
  std::optional<Place> find_place(size_t size_bytes, bool demanded) const;
  bool is_wanted(const Slot& slot) const;
  int find_slot(const void* key, const ScheduleSizes& sizes) const;
  std::shared_ptr<Job> find_job(const void* key, const ScheduleSizes& sizes) const;
  std::shared_ptr<Job> add_job(std::shared_ptr<const ScheduleSource> source, const ScheduleSizes& sizes);
  void release(int slot, KernelStream kernels);

  const std::unique_ptr<ScheduleBuffers> buffers_;
  const size_t max_bytes_;
  mutable std::mutex mutex_;
  std::condition_variable work_, progress_;
  std::vector<Slot> slots_;
  std::list<std::shared_ptr<Job>> jobs_;
  uint64_t num_announced_ = 0, last_leased_ = 0;  // running numbers
  bool leased_ = false, stopping_ = false;
  MaskStreaming stats_;
  std::thread thread_;
};

}  // namespace calibatt::cuda
