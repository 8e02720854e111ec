#include "backend/cuda/attention/schedule_stream.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <tuple>
#include <utility>

#include "base/error.h"

namespace calibatt::cuda {
namespace {

constexpr size_t kMaxAnnounced = 4;  // schedules under way; each may have been packed in host memory
constexpr double kHeadroom = 1.25;   // a slot grows by more than was asked for: growing waits for the device

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string megabytes(size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f MB", static_cast<double>(bytes) / 1e6);
  return text;
}

}  // namespace

ScheduleStream::ScheduleStream(std::unique_ptr<ScheduleBuffers> buffers, size_t max_bytes)
    : buffers_(std::move(buffers)), max_bytes_(max_bytes) {
  CALIBATT_ASSERT(buffers_ != nullptr && buffers_->num_slots() >= 2);
  slots_.resize(static_cast<size_t>(buffers_->num_slots()));
  thread_ = std::thread([this] { run(); });
}

ScheduleStream::~ScheduleStream() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  thread_.join();
}

ScheduleStream::Lease::Lease(Lease&& other) noexcept
    : stream_(std::exchange(other.stream_, nullptr)),
      slot_(other.slot_),
      kernels_(other.kernels_),
      device_(other.device_),
      has_summaries_(other.has_summaries_) {}

ScheduleStream::Lease::~Lease() {
  if (stream_ != nullptr) stream_->release(slot_, kernels_);
}

// ---- the calling thread --------------------------------------------------------------------------------------------

void ScheduleStream::prefetch(std::shared_ptr<const ScheduleSource> source, const ScheduleSizes& sizes) {
  CALIBATT_ASSERT(source != nullptr);
  const std::lock_guard lock(mutex_);
  if (const int slot = find_slot(source.get(), sizes); slot >= 0) {
    slots_[static_cast<size_t>(slot)].announced = ++num_announced_;
    slots_[static_cast<size_t>(slot)].used = false;
    return;
  }
  if (find_job(source.get(), sizes) != nullptr) return;
  add_job(std::move(source), sizes);
}

ScheduleStream::Lease ScheduleStream::get(const AttentionCall& call, KernelStream kernels) {
  Lease lease;
  if (!needs_schedule(call.heads)) return lease;
  const ScheduleSizes sizes{static_cast<int>(call.q.num_tokens), static_cast<int>(call.k.num_tokens), call.block_q,
                            call.block_k};
  std::unique_lock lock(mutex_);
  CALIBATT_ASSERT(!leased_);  // or it might wait for the memory that it holds itself
  ++stats_.calls;
  int slot = call.schedule != nullptr ? find_slot(call.schedule, sizes) : -1;
  if (slot >= 0) {
    ++stats_.ready;
  } else {
    std::shared_ptr<Job> job = call.schedule != nullptr ? find_job(call.schedule, sizes) : nullptr;
    ++(job != nullptr ? stats_.late : stats_.unannounced);
    if (job == nullptr) {
      job = add_job(nullptr, sizes);
      job->announced = 0;
      job->key = call.schedule;
      job->heads = call.heads;  // the caller's own; it waits here as long as they are read
    }
    job->demanded = true;
    work_.notify_all();
    const auto start = std::chrono::steady_clock::now();
    const double waited_before = stats_.device_wait_seconds;
    progress_.wait(lock, [&] { return job->done(); });
    const double device_wait = stats_.device_wait_seconds - waited_before;  // the GPU is behind, not we
    stats_.stall_seconds += std::max(0.0, seconds_since(start) - device_wait);
    jobs_.remove(job);
    if (job->error != nullptr) std::rethrow_exception(job->error);
    slot = job->slot;
  }
  Slot& found = slots_[static_cast<size_t>(slot)];
  found.leased = false;
  buffers_->acquire(slot, kernels);
  found.leased = leased_ = found.used = true;
  last_leased_ = std::max(last_leased_, found.announced);
  lease.stream_ = this;
  lease.slot_ = slot;
  lease.kernels_ = kernels;
  lease.device_ = found.device;
  lease.has_summaries_ = found.has_summaries;
  return lease;
}

void ScheduleStream::release(int slot, KernelStream kernels) {
  const std::lock_guard lock(mutex_);
  try {
    buffers_->release(slot, kernels);
  } catch (const Error&) {
    // A destructor calls this. The device is lost then, and says so again to whoever uses it next.
  }
  Slot& released = slots_[static_cast<size_t>(slot)];
  released.leased = leased_ = false;
  // Whose source nobody keeps alive, its address may become another's.
  if (released.source == nullptr) released.key = nullptr;
  work_.notify_all();
}

MaskStreaming ScheduleStream::stats() const {
  const std::lock_guard lock(mutex_);
  MaskStreaming stats = stats_;
  for (const Slot& slot : slots_) stats.device_bytes += slot.capacity;
  return stats;
}

int ScheduleStream::find_slot(const void* key, const ScheduleSizes& sizes) const {
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (slot.full && !slot.filling && slot.key == key && slot.sizes == sizes) return static_cast<int>(i);
  }
  return -1;
}

std::shared_ptr<ScheduleStream::Job> ScheduleStream::find_job(const void* key, const ScheduleSizes& sizes) const {
  for (const auto& job : jobs_) {
    if (job->key == key && job->sizes == sizes) return job;
  }
  return nullptr;
}

std::shared_ptr<ScheduleStream::Job> ScheduleStream::add_job(std::shared_ptr<const ScheduleSource> source,
                                                             const ScheduleSizes& sizes) {
  // What was announced long ago and never asked for makes room.
  for (auto job = jobs_.begin(); job != jobs_.end() && jobs_.size() >= kMaxAnnounced;) {
    job = (*job)->demanded || (*job)->working ? std::next(job) : jobs_.erase(job);
  }
  auto job = std::make_shared<Job>();
  job->key = source.get();
  job->source = std::move(source);
  job->sizes = sizes;
  job->announced = ++num_announced_;
  jobs_.push_back(job);
  work_.notify_all();
  return job;
}

// ---- the stream's own thread ---------------------------------------------------------------------------------------

void ScheduleStream::run() {
  std::exception_ptr broken;
  try {
    buffers_->begin_thread();
  } catch (...) {
    broken = std::current_exception();
  }
  std::unique_lock lock(mutex_);
  while (true) {
    std::shared_ptr<Job> job;
    work_.wait(lock, [&] { return stopping_ || (job = next_work()) != nullptr; });
    if (stopping_) return;
    job->working = true;
    const auto start = std::chrono::steady_clock::now();
    const double waited_before = stats_.device_wait_seconds;
    try {
      if (broken != nullptr) std::rethrow_exception(broken);
      if (!job->packed) {
        if (!pack(*job, lock)) jobs_.remove(job);
      } else if (const auto place = find_place(job->packed->size_bytes(), job->demanded)) {
        fill(*job, *place, lock);
      }
    } catch (...) {
      if (!lock.owns_lock()) lock.lock();
      job->error = std::current_exception();
    }
    job->working = false;
    stats_.work_seconds += seconds_since(start) - (stats_.device_wait_seconds - waited_before);
    // Where it failed, `get` takes it from the list; where it is there, whoever asks finds the slot.
    if (job->slot >= 0 && !job->demanded) jobs_.remove(job);
    progress_.notify_all();
  }
}

// The job that can go on now: one that somebody waits for, else the one announced first.
std::shared_ptr<ScheduleStream::Job> ScheduleStream::next_work() {
  for (const bool demanded : {true, false}) {
    for (const auto& job : jobs_) {
      if (job->demanded != demanded || job->done()) continue;
      if (!job->packed || find_place(job->packed->size_bytes(), demanded)) return job;
    }
  }
  return nullptr;
}

// False when there is nothing to pack: the call will be a dense one.
bool ScheduleStream::pack(Job& job, std::unique_lock<std::mutex>& lock) {
  lock.unlock();
  const std::span<const HeadSchedule> heads = job.source != nullptr ? job.source->heads() : job.heads;
  if (!needs_schedule(heads)) {
    lock.lock();
    return false;
  }
  PackedSchedule packed =
      pack_schedule(heads, job.sizes.num_queries, job.sizes.num_keys, job.sizes.block_q, job.sizes.block_k);
  const size_t size_bytes = packed.size_bytes();
  if (size_bytes > max_bytes_) {
    throw Error(ErrorKind::kUsage,
                "attention: the schedule of one layer takes " + megabytes(size_bytes) + " on the GPU, " +
                    megabytes(max_bytes_) +
                    " are kept for schedules; calibrate with larger key blocks or a larger merge gap");
  }
  lock.lock();
  job.packed = std::move(packed);
  return true;
}

void ScheduleStream::fill(Job& job, const Place& place, std::unique_lock<std::mutex>& lock) {
  Slot& slot = slots_[static_cast<size_t>(place.slot)];
  const size_t old_capacity = slot.capacity;
  slot = {};
  slot.capacity = old_capacity;
  slot.filling = true;
  for (const int freed : place.freed) slots_[static_cast<size_t>(freed)].filling = true;
  lock.unlock();
  const size_t size_bytes = job.packed->size_bytes();
  double device_wait = 0;
  try {
    const auto start = std::chrono::steady_clock::now();
    for (const int freed : place.freed) buffers_->resize(freed, 0);
    if (place.capacity != old_capacity) buffers_->resize(place.slot, place.capacity);
    std::byte* const host = buffers_->host(place.slot);
    device_wait = seconds_since(start);
    job.packed->write_image({host, size_bytes});
    buffers_->upload(place.slot, size_bytes);
  } catch (...) {
    lock.lock();
    for (const int freed : place.freed) slots_[static_cast<size_t>(freed)] = {};
    slot = {};  // its size is not known; the next use sets one
    throw;
  }
  lock.lock();
  for (const int freed : place.freed) slots_[static_cast<size_t>(freed)] = {};
  slot.capacity = place.capacity;
  slot.source = job.source;
  slot.key = job.key;
  slot.sizes = job.sizes;
  slot.device = job.packed->at(buffers_->device(place.slot));
  slot.has_summaries = job.packed->has_summaries();
  slot.announced = job.announced;
  slot.full = true;
  slot.filling = false;
  slot.leased = job.demanded;  // nobody else's until the one that waits has it
  job.packed.reset();
  job.slot = place.slot;
  stats_.uploaded_bytes += size_bytes;
  stats_.device_wait_seconds += device_wait;
  size_t all = 0;
  for (const Slot& one : slots_) all += one.capacity;
  stats_.peak_device_bytes = std::max(stats_.peak_device_bytes, all);
}

bool ScheduleStream::is_wanted(const Slot& slot) const {
  return slot.full && !slot.used && slot.announced > last_leased_;
}

// A slot for so many bytes, without going beyond the limit. What was announced and not used yet is given up only for a
// schedule that somebody waits for, or when something announced later has been used: then it was announced in vain.
std::optional<ScheduleStream::Place> ScheduleStream::find_place(size_t size_bytes, bool demanded) const {
  std::vector<int> free;  // the best to take first
  size_t capacity = 0;
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    capacity += slot.capacity;
    if (!slot.filling && !slot.leased && (demanded || !is_wanted(slot))) free.push_back(static_cast<int>(i));
  }
  if (free.empty()) return std::nullopt;
  std::ranges::sort(free, {}, [&](int i) {
    const Slot& slot = slots_[static_cast<size_t>(i)];
    return std::tuple(is_wanted(slot), slot.full, slot.announced);
  });

  Place place;
  const auto fits = [&](int i) { return slots_[static_cast<size_t>(i)].capacity >= size_bytes; };
  if (const auto fitting = std::ranges::find_if(free, fits); fitting != free.end()) {
    place.slot = *fitting;
    place.capacity = slots_[static_cast<size_t>(place.slot)].capacity;
    return place;
  }
  place.slot = free.front();
  size_t others = capacity - slots_[static_cast<size_t>(place.slot)].capacity;
  for (size_t i = 1; i < free.size() && others + size_bytes > max_bytes_; ++i) {
    const size_t freed = slots_[static_cast<size_t>(free[i])].capacity;
    if (freed == 0) continue;
    place.freed.push_back(free[i]);
    others -= freed;
  }
  if (others + size_bytes > max_bytes_) return std::nullopt;
  const auto roomy = static_cast<size_t>(static_cast<double>(size_bytes) * kHeadroom);
  place.capacity = std::max(size_bytes, std::min(roomy, max_bytes_ - others));
  // With room to spare for one slot, the others would find less than they need.
  const size_t share = max_bytes_ / slots_.size();
  if (place.capacity > share) place.capacity = std::max(size_bytes, share);
  return place;
}

}  // namespace calibatt::cuda
