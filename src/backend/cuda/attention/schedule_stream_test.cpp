#include "backend/cuda/attention/schedule_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <random>

#include "base/error.h"

namespace calibatt::cuda {
namespace {

using ::testing::HasSubstr;

/// Memory of the host in place of a device; sees to it that nothing is written to that is being read.
class FakeBuffers : public ScheduleBuffers {
 public:
  struct Slot {
    std::vector<std::byte> host, device;
    int leases = 0;
  };
  explicit FakeBuffers(int num_slots) : slots(static_cast<size_t>(num_slots)) {}
  int num_slots() const override { return static_cast<int>(slots.size()); }
  void resize(int slot, size_t size_bytes) override {
    const std::lock_guard lock(mutex);
    EXPECT_EQ(at(slot).leases, 0) << "memory that a kernel reads";
    at(slot).host.assign(size_bytes, {});
    at(slot).device.assign(size_bytes, {});
    size_t all = 0;
    for (const Slot& one : slots) all += one.device.size();
    peak_bytes = std::max(peak_bytes, all);
    ++num_resizes;
  }
  std::byte* host(int slot) override { return at(slot).host.data(); }
  void upload(int slot, size_t size_bytes) override {
    if (fail_uploads) throw Error(ErrorKind::kDevice, "the device is gone");
    const std::lock_guard lock(mutex);
    EXPECT_EQ(at(slot).leases, 0) << "memory that a kernel reads";
    ASSERT_LE(size_bytes, at(slot).device.size());
    std::memcpy(at(slot).device.data(), at(slot).host.data(), size_bytes);
    ++num_uploads;
  }
  const void* device(int slot) const override { return slots[static_cast<size_t>(slot)].device.data(); }
  void acquire(int slot, KernelStream stream) override {
    const std::lock_guard lock(mutex);
    ++at(slot).leases;
    acquired.push_back(stream);
  }
  void release(int slot, KernelStream stream) override {
    const std::lock_guard lock(mutex);
    --at(slot).leases;
    released.push_back(stream);
  }
  Slot& at(int slot) { return slots[static_cast<size_t>(slot)]; }

  std::mutex mutex;
  std::vector<Slot> slots;
  size_t peak_bytes = 0;
  std::vector<KernelStream> acquired, released;  // on which streams, in order
  std::atomic<int> num_uploads = 0, num_resizes = 0;
  std::atomic<bool> fail_uploads = false;
};

constexpr KernelStream kKernels = nullptr;
constexpr int kBlocks = 24, kTokens = kBlocks * 64;
constexpr ScheduleSizes kSizes{kTokens, kTokens, 64, 64};

/// Heads that are made when asked for, slowly or not at all.
class FakeSource : public ScheduleSource {
 public:
  explicit FakeSource(unsigned seed, int num_heads = 3) {
    std::mt19937 random(seed);
    for (int head = 0; head < num_heads; ++head) {
      BlockMask mask(kBlocks, kBlocks);
      for (int r = 0; r < kBlocks; ++r) {
        for (int c = 0; c < kBlocks; ++c) mask.set(r, c, random() % 2 == 0);
        mask.set(r, r, true);
      }
      intervals_.push_back(BlockIntervals::from_mask(mask));
    }
    for (const BlockIntervals& one : intervals_) heads_.push_back({.intervals = &one, .anchors = nullptr});
  }
  std::span<const HeadSchedule> heads() const override {
    ++num_asked;
    if (fail) throw Error(ErrorKind::kFormat, "this layer is damaged");
    return heads_;
  }
  PackedSchedule packed() const { return pack_schedule(heads_, kTokens, kTokens, 64, 64); }
  void make_dense() { heads_.assign(heads_.size(), {}); }

  mutable std::atomic<int> num_asked = 0;
  std::atomic<bool> fail = false;

 private:
  std::vector<BlockIntervals> intervals_;
  std::vector<HeadSchedule> heads_;
};

AttentionCall call_of(const FakeSource* source, std::span<const HeadSchedule> heads) {
  AttentionCall call;
  call.q.num_tokens = call.k.num_tokens = kTokens;
  call.block_q = call.block_k = 64;
  call.heads = heads;
  call.schedule = source;
  return call;
}
AttentionCall call_of(const FakeSource& source) {
  return call_of(&source, source.heads());
}

/// What a kernel would read is what packing gives.
void expect_holds(const ScheduleStream::Lease& lease, const FakeSource& source) {
  const PackedSchedule expected = source.packed();
  const DeviceSchedule& device = lease.device();
  ASSERT_EQ(device.num_tiles, expected.tiles.size());
  EXPECT_EQ(std::memcmp(device.tiles, expected.tiles.data(), expected.tiles.size() * sizeof(Tile)), 0);
  EXPECT_EQ(std::memcmp(device.ranges, expected.ranges.data(), expected.ranges.size() * sizeof(ChunkRange)), 0);
}

std::string text_of_error(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

class ScheduleStreamTest : public ::testing::Test {
 protected:
  ScheduleStream& start(int num_slots = 3, size_t max_bytes = kMaxScheduleBytes) {
    auto buffers = std::make_unique<FakeBuffers>(num_slots);
    buffers_ = buffers.get();
    stream_.emplace(std::move(buffers), max_bytes);
    return *stream_;
  }
  // Minutes: what never comes is to fail the test, not to hang it.
  void wait_for(const std::function<bool()>& condition) {
    for (int i = 0; i < 120'000 && !condition(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ASSERT_TRUE(condition());
  }
  static std::vector<std::shared_ptr<FakeSource>> layers(int count, int num_heads = 3) {
    std::vector<std::shared_ptr<FakeSource>> result;
    for (int i = 0; i < count; ++i) {
      result.push_back(std::make_shared<FakeSource>(static_cast<unsigned>(i), num_heads));
    }
    return result;
  }
  FakeBuffers* buffers_ = nullptr;
  std::optional<ScheduleStream> stream_;
};

TEST_F(ScheduleStreamTest, ARunOneLayerAheadFindsEverythingAnnounced) {
  for (const int num_slots : {2, 3, 5}) {
    ScheduleStream& stream = start(num_slots);
    const auto run = layers(30);
    stream.prefetch(run[0], kSizes);
    for (size_t i = 0; i < run.size(); ++i) {
      if (i + 1 < run.size()) stream.prefetch(run[i + 1], kSizes);
      const auto lease = stream.get(call_of(*run[i]), kKernels);
      expect_holds(lease, *run[i]);
    }
    const MaskStreaming stats = stream.stats();
    EXPECT_EQ(stats.calls, 30);
    EXPECT_EQ(stats.ready + stats.late, 30);
    EXPECT_EQ(stats.unannounced, 0);
    EXPECT_EQ(buffers_->num_uploads, 30) << "each once";
    EXPECT_LE(buffers_->num_resizes, num_slots + 2) << "slots are used again";
    EXPECT_EQ(stats.peak_device_bytes, buffers_->peak_bytes);
  }
}

TEST_F(ScheduleStreamTest, WhatIsThereIsNotMadeAgain) {
  ScheduleStream& stream = start();
  const auto run = layers(1);
  for (int forward = 0; forward < 4; ++forward) {
    stream.prefetch(run[0], kSizes);
    expect_holds(stream.get(call_of(*run[0]), kKernels), *run[0]);
  }
  EXPECT_EQ(buffers_->num_uploads, 1);
  ScheduleSizes other = kSizes;
  other.block_q = 64;
  other.num_queries = kTokens - 1;  // as many blocks, other tiles
  stream.prefetch(run[0], other);
  wait_for([&] { return buffers_->num_uploads == 2; });
}

TEST_F(ScheduleStreamTest, AScheduleOnTheDeviceStaysWhileItIsRead) {
  ScheduleStream& stream = start(2);
  const auto run = layers(4);
  stream.prefetch(run[0], kSizes);
  {
    const auto lease = stream.get(call_of(*run[0]), kKernels);
    for (size_t i = 1; i < 4; ++i) stream.prefetch(run[i], kSizes);
    wait_for([&] { return buffers_->num_uploads == 2; });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_EQ(buffers_->num_uploads, 2) << "one slot is read, the other holds what comes next";
    expect_holds(lease, *run[0]);
  }
  wait_for([&] { return buffers_->num_uploads == 3; });
  expect_holds(stream.get(call_of(*run[1]), kKernels), *run[1]);
  EXPECT_EQ(stream.stats().unannounced, 0);
}

TEST_F(ScheduleStreamTest, CallsThatNobodyAnnouncedWorkToo) {
  ScheduleStream& stream = start(2);
  const auto run = layers(5);
  for (const auto& source : run) expect_holds(stream.get(call_of(*source), kKernels), *source);
  for (const auto& source : run) expect_holds(stream.get(call_of(nullptr, source->heads()), kKernels), *source);
  EXPECT_EQ(stream.stats().unannounced, 10);
  // An address may be another schedule's by now: what nobody keeps alive is not found by it.
  expect_holds(stream.get(call_of(run[4].get(), run[0]->heads()), kKernels), *run[0]);
}

TEST_F(ScheduleStreamTest, WhatWasAnnouncedInVainMakesRoom) {
  ScheduleStream& stream = start(2);
  const auto run = layers(12);
  stream.prefetch(run[11], kSizes);  // never asked for
  wait_for([&] { return buffers_->num_uploads == 1; });
  stream.prefetch(run[0], kSizes);
  for (size_t i = 0; i < 10; ++i) {
    stream.prefetch(run[i + 1], kSizes);
    expect_holds(stream.get(call_of(*run[i]), kKernels), *run[i]);
  }
  EXPECT_EQ(stream.stats().unannounced, 0);
}

TEST_F(ScheduleStreamTest, DenseCallsTakeNothing) {
  ScheduleStream& stream = start();
  const auto source = std::make_shared<FakeSource>(1);
  source->make_dense();
  stream.prefetch(source, kSizes);
  wait_for([&] { return source->num_asked > 0; });
  const auto lease = stream.get(call_of(*source), kKernels);
  EXPECT_EQ(lease.device().tiles, nullptr);
  EXPECT_EQ(stream.get(call_of(nullptr, {}), kKernels).device().tiles, nullptr);
  EXPECT_EQ(buffers_->num_uploads, 0);
  EXPECT_EQ(stream.stats().calls, 0);
}

TEST_F(ScheduleStreamTest, ErrorsReachTheCallThatWantsTheSchedule) {
  ScheduleStream& stream = start();
  const auto run = layers(3);
  run[0]->fail = true;
  stream.prefetch(run[0], kSizes);
  wait_for([&] { return run[0]->num_asked == 1; });
  const AttentionCall call = call_of(run[0].get(), run[1]->heads());
  EXPECT_EQ(text_of_error([&] { stream.get(call, kKernels); }), "this layer is damaged");
  run[0]->fail = false;
  expect_holds(stream.get(call_of(*run[0]), kKernels), *run[0]);
  buffers_->fail_uploads = true;
  stream.prefetch(run[1], kSizes);
  EXPECT_EQ(text_of_error([&] { stream.get(call_of(*run[1]), kKernels); }), "the device is gone");
  buffers_->fail_uploads = false;
  expect_holds(stream.get(call_of(*run[2]), kKernels), *run[2]);
  expect_holds(stream.get(call_of(*run[1]), kKernels), *run[1]);
}

TEST_F(ScheduleStreamTest, MemoryStaysWithinItsLimit) {
  const auto small = layers(6, 2), large = layers(6, 7);
  const size_t large_bytes = large[0]->packed().size_bytes();
  for (const double limit : {1.1, 1.5, 2.1, 3.2}) {
    const auto max_bytes = static_cast<size_t>(limit * static_cast<double>(large_bytes));
    ScheduleStream& stream = start(3, max_bytes);
    std::vector<std::shared_ptr<FakeSource>> run;
    for (size_t i = 0; i < 6; ++i) run.insert(run.end(), {small[i], large[i]});
    stream.prefetch(run[0], kSizes);
    for (size_t i = 0; i < run.size(); ++i) {
      if (i + 1 < run.size()) stream.prefetch(run[i + 1], kSizes);
      expect_holds(stream.get(call_of(*run[i]), kKernels), *run[i]);
    }
    EXPECT_LE(buffers_->peak_bytes, max_bytes);
    EXPECT_LE(stream.stats().peak_device_bytes, max_bytes);
    EXPECT_EQ(stream.stats().unannounced, 0);
  }
  ScheduleStream& stream = start(3, large_bytes - 1);
  EXPECT_THAT(text_of_error([&] { stream.get(call_of(*large[0]), kKernels); }),
              HasSubstr("are kept for schedules; calibrate with"));
  expect_holds(stream.get(call_of(*small[0]), kKernels), *small[0]);
}

TEST_F(ScheduleStreamTest, TwoLeasesAtOnceAreRefused) {
  ScheduleStream& stream = start();
  const auto run = layers(2);
  const auto lease = stream.get(call_of(*run[0]), kKernels);
  EXPECT_THROW(stream.get(call_of(*run[1]), kKernels), std::logic_error);
}

// Callers of the C interface bring a stream with each call.
TEST_F(ScheduleStreamTest, IsOrderedAgainstTheStreamOfEachCall) {
  ScheduleStream& stream = start();
  const auto run = layers(2);
  char streams[2];
  const auto kernels = [&](size_t i) { return reinterpret_cast<KernelStream>(&streams[i % 2]); };
  std::vector<KernelStream> expected;
  for (size_t i = 0; i < 6; ++i) {
    expect_holds(stream.get(call_of(*run[i / 3]), kernels(i)), *run[i / 3]);  // one upload, read by both
    expected.push_back(kernels(i));
  }
  EXPECT_EQ(buffers_->acquired, expected);
  EXPECT_EQ(buffers_->released, expected);
  EXPECT_EQ(buffers_->num_uploads, 6) << "what nobody announced is not kept";
}

TEST_F(ScheduleStreamTest, EndsWhileWorkIsUnderWay) {
  for (int round = 0; round < 20; ++round) {
    ScheduleStream& stream = start();
    for (const auto& source : layers(4)) stream.prefetch(source, kSizes);
    if (round % 2 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200 * round));
  }
}

}  // namespace
}  // namespace calibatt::cuda
