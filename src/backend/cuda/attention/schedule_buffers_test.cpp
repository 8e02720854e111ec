#include "backend/cuda/attention/schedule_buffers.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "base/error.h"

namespace calibatt::cuda {
namespace {

constexpr int kBlocks = 200, kTokens = kBlocks * 64, kHeads = 8;
constexpr ScheduleSizes kSizes{kTokens, kTokens, 64, 64};

class Source : public ScheduleSource {
 public:
  explicit Source(unsigned seed) {
    std::mt19937 random(seed);
    for (int head = 0; head < kHeads; ++head) {
      BlockMask mask(kBlocks, kBlocks);
      for (int r = 0; r < kBlocks; ++r) {
        for (int c = 0; c < kBlocks; ++c) mask.set(r, c, random() % (seed % 3 + 2) == 0);
        mask.set(r, r, true);
      }
      intervals_.push_back(BlockIntervals::from_mask(mask));
    }
    for (const BlockIntervals& one : intervals_) heads_.push_back({.intervals = &one, .anchors = nullptr});
  }
  std::span<const HeadSchedule> heads() const override { return heads_; }

 private:
  std::vector<BlockIntervals> intervals_;
  std::vector<HeadSchedule> heads_;
};

// "Kernels" that copy away what they were given, on a compute stream that runs far behind the host: if a slot were
// written too early or read too early, a copy would differ.
TEST(CudaScheduleBuffers, KernelsSeeTheirOwnScheduleHoweverFarTheHostIsAhead) {
  if (num_devices() == 0) GTEST_SKIP() << "no CUDA device";
  constexpr int kLayers = 40;
  std::vector<std::shared_ptr<Source>> sources;
  for (unsigned i = 0; i < kLayers; ++i) sources.push_back(std::make_shared<Source>(i));
  const Stream compute;
  DeviceBuffer delay(size_t{1} << 30);
  std::vector<DeviceBuffer> seen;
  for (const auto& source : sources) {
    const PackedSchedule packed = pack_schedule(source->heads(), kTokens, kTokens, 64, 64);
    seen.emplace_back(packed.ranges.size() * sizeof(ChunkRange));
  }
  for (const size_t limit : {size_t{2} << 20, kMaxScheduleBytes}) {  // tight: slots give each other room; and roomy
    ScheduleStream stream(std::make_unique<CudaScheduleBuffers>(), limit);
    stream.prefetch(sources[0], kSizes);
    for (size_t i = 0; i < kLayers; ++i) {
      if (i + 1 < kLayers) stream.prefetch(sources[i + 1], kSizes);
      check(cudaMemsetAsync(seen[i].data(), 0, seen[i].size_bytes(), compute.get()), "clearing");
      AttentionCall call;
      call.q.num_tokens = call.k.num_tokens = kTokens;
      call.heads = sources[i]->heads();
      call.schedule = sources[i].get();
      const auto lease = stream.get(call, compute.get());
      for (int pass = 0; pass < 4; ++pass) {  // some milliseconds before the schedule is read
        check(cudaMemsetAsync(delay.data(), pass, delay.size_bytes(), compute.get()), "delaying");
      }
      check(cudaMemcpyAsync(seen[i].data(), lease.device().ranges, seen[i].size_bytes(), cudaMemcpyDeviceToDevice,
                            compute.get()),
            "reading the schedule");
    }
    compute.synchronize();
    for (size_t i = 0; i < kLayers; ++i) {
      const PackedSchedule packed = pack_schedule(sources[i]->heads(), kTokens, kTokens, 64, 64);
      std::vector<ChunkRange> ranges(packed.ranges.size());
      seen[i].copy_to_host(ranges.data(), compute.get());
      compute.synchronize();
      ASSERT_EQ(std::memcmp(ranges.data(), packed.ranges.data(), seen[i].size_bytes()), 0) << "layer " << i;
    }
    const MaskStreaming stats = stream.stats();
    EXPECT_EQ(stats.calls, kLayers);
    EXPECT_EQ(stats.unannounced, 0);
    EXPECT_LE(stats.peak_device_bytes, limit);
    EXPECT_GT(stats.device_wait_seconds, 0.0) << "the host was ahead";
  }
}

// The reader that was enqueued first is still at it when the second is done: the slot must not be written before both.
TEST(CudaScheduleBuffers, AreNotWrittenBeforeTheReadersOfAllStreamsAreDone) {
  if (num_devices() == 0) GTEST_SKIP() << "no CUDA device";
  constexpr size_t kBytes = 4096;
  const Stream slow, fast;
  DeviceBuffer delay(size_t{1} << 30), seen(kBytes);
  CudaScheduleBuffers buffers(2);
  buffers.resize(0, kBytes);
  std::memset(buffers.host(0), 1, kBytes);
  buffers.upload(0, kBytes);
  buffers.acquire(0, slow.get());
  for (int pass = 0; pass < 8; ++pass) {
    check(cudaMemsetAsync(delay.data(), pass, delay.size_bytes(), slow.get()), "delaying");
  }
  check(cudaMemcpyAsync(seen.data(), buffers.device(0), kBytes, cudaMemcpyDeviceToDevice, slow.get()), "reading");
  buffers.release(0, slow.get());
  buffers.acquire(0, fast.get());
  buffers.release(0, fast.get());
  std::memset(buffers.host(0), 2, kBytes);
  buffers.upload(0, kBytes);
  slow.synchronize();
  std::vector<char> found(kBytes), expected(kBytes, 1);
  seen.copy_to_host(found.data(), slow.get());
  slow.synchronize();
  EXPECT_EQ(found, expected);
}

TEST(CudaScheduleBuffers, ErrorsOfTheDeviceReachTheCaller) {
  if (num_devices() == 0) GTEST_SKIP() << "no CUDA device";
  const Stream compute;
  CudaScheduleBuffers buffers(2);
  EXPECT_THROW(buffers.resize(0, size_t{1} << 50), Error);
  buffers.resize(0, 256);
  std::memset(buffers.host(0), 7, 256);
  buffers.upload(0, 256);
  buffers.acquire(0, compute.get());
  buffers.release(0, compute.get());
  compute.synchronize();
}

}  // namespace
}  // namespace calibatt::cuda
