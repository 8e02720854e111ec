#include "backend/cuda/device/device_ranks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "backend/test_take_heads.h"
#include "backend/thread_ranks.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

/// Ranks take the GPUs there are in turn.
void run_device_ranks(int num_ranks, const std::function<void(DeviceRanks& ranks, Context& context)>& body) {
  run_ranks(num_ranks, [&](Communicator& hosts) {
    use_device(hosts.rank() % num_devices());
    Context context;
    DeviceRanks ranks(hosts, context);
    body(ranks, context);
  });
}

TEST(DeviceRanks, PiecesAreReadBehindWhatMakesThemAndBeforeTheyChange) {
  if (num_devices() == 0) GTEST_SKIP() << "no CUDA device";
  constexpr size_t kBytes = size_t{4} << 20;
  const auto bytes_of = [](int from, int to) {
    return kBytes * static_cast<size_t>((from + 2 * to) % 4) + static_cast<size_t>(from);
  };
  const auto value_of = [](int from, int to, int round) { return 1 + (from * 16 + to * 4 + round) % 200; };
  for (const int size : {1, 2, 4}) {
    run_device_ranks(size, [&](DeviceRanks& ranks, Context& context) {
      const auto fill = [&](void* memory, int value, size_t bytes) {
        if (bytes > 0) check(cudaMemsetAsync(memory, value, bytes, context.stream()), "filling memory");
      };
      for (int round = 0; round < 8; ++round) {
        std::vector<std::shared_ptr<void>> sent, received;
        std::vector<ConstPiece> send;
        std::vector<Piece> receive;
        for (int other = 0; other < size; ++other) {
          const size_t to = bytes_of(ranks.rank(), other), from = bytes_of(other, ranks.rank());
          send.push_back({sent.emplace_back(context.allocate_bytes(to)).get(), to});
          receive.push_back({received.emplace_back(context.allocate_bytes(from)).get(), from});
          fill(sent.back().get(), value_of(ranks.rank(), other, round), to);
        }
        ranks.all_to_all(send, receive);
        for (int other = 0; other < size; ++other) {
          fill(sent[static_cast<size_t>(other)].get(), 255, bytes_of(ranks.rank(), other));
        }
        sent.clear();  // and the pool may give it to the next
        for (int other = 0; other < size; ++other) {
          const size_t bytes = bytes_of(other, ranks.rank());
          if (bytes == 0) continue;
          const auto found = std::make_unique<uint8_t[]>(bytes);
          context.copy_to_host(found.get(), received[static_cast<size_t>(other)].get(), bytes);
          const auto value = static_cast<uint8_t>(value_of(other, ranks.rank(), round));
          EXPECT_EQ(std::count(found.get(), found.get() + bytes, value), static_cast<int64_t>(bytes))
              << "round " << round;
        }
      }
    });
  }
}

TEST(DeviceRanks, HeadsAreTakenAndGivenBack) {
  if (num_devices() == 0) GTEST_SKIP() << "no CUDA device";
  for (const test::TakenHeads& each : test::taken_heads_cases()) {
    run_device_ranks(each.num_ranks(), [&](DeviceRanks& ranks, Context& context) {
      const test::RankMemory memory{[&](const std::vector<uint8_t>& host) {
                                      std::shared_ptr<void> device = context.allocate_bytes(host.size());
                                      context.copy_to_device(device.get(), host.data(), host.size());
                                      return device;
                                    },
                                    [&](const void* device, size_t size_bytes) {
                                      std::vector<uint8_t> host(size_bytes);
                                      context.copy_to_host(host.data(), device, size_bytes);
                                      return host;
                                    },
                                    [&](void* device, size_t size_bytes) {
                                      if (size_bytes > 0)
                                        check(cudaMemsetAsync(device, 0xee, size_bytes, context.stream()),
                                              "filling memory");
                                    }};
      test::HeadTaker(ranks, memory, each).run();
    });
  }
}

// The first rank offers and takes nothing, so that its stream waits for nobody of itself; now its stream is the late
// one, now the others' are.
TEST(DeviceRanks, HeadsAreReadBehindWhatMakesThemAndBeforeTheyChange) {
  if (num_devices() == 0) GTEST_SKIP() << "no CUDA device";
  constexpr size_t kBytes = size_t{8} << 20, kMuch = size_t{256} << 20;
  constexpr int kHeadDim = 1024;
  run_device_ranks(3, [&](DeviceRanks& ranks, Context& context) {
    const auto scratch = context.allocate_bytes(kMuch);
    const auto fill = [&](void* memory, int value, size_t bytes) {
      check(cudaMemsetAsync(memory, value, bytes, context.stream()), "filling memory");
    };
    const std::vector<std::shared_ptr<void>> offered{context.allocate_bytes(kBytes), context.allocate_bytes(kBytes)};
    std::vector<std::shared_ptr<void>> taken;
    const std::vector<HeadMove> moves{{0, 0}};
    for (size_t round = 0; round < 12; ++round) {
      if ((ranks.rank() == 0) == (round % 3 == 0)) {
        for (int i = 0; i < 20; ++i) fill(scratch.get(), i, kMuch);
      }
      void* const mine = offered[round % 2].get();
      fill(mine, static_cast<int>(round + 1), kBytes);
      HeadsView view{mine, DType::kU8, kBytes / kHeadDim, kHeadDim, kHeadDim};
      const ConstHeadsView offer{view.data, view.dtype, view.num_tokens, view.token_stride, view.head_stride};
      std::vector<HeadRows> rows;
      if (ranks.rank() != 0) {
        view.data = taken.emplace_back(context.allocate_bytes(kBytes)).get();
        rows.push_back({0, 0, 0, view, moves});
      }
      ranks.take_heads({&offer, 1}, rows, kHeadDim);
      if (round > 0) fill(offered[1 - round % 2].get(), 255, kBytes);  // what the call before this one's was of
    }
    ranks.barrier();
    for (const auto& memory : offered) fill(memory.get(), 255, kBytes);
    for (size_t round = 0; round < taken.size(); ++round) {
      std::vector<uint8_t> found(kBytes);
      context.copy_to_host(found.data(), taken[round].get(), kBytes);
      EXPECT_EQ(std::count(found.begin(), found.end(), static_cast<uint8_t>(round + 1)), static_cast<int64_t>(kBytes))
          << "round " << round << ", rank " << ranks.rank();
    }
  });
}

TEST(DeviceRanks, ARankThatFailsEndsAll) {
  if (num_devices() == 0) GTEST_SKIP() << "no CUDA device";
  try {
    run_device_ranks(3, [](DeviceRanks& ranks, Context& context) {
      const auto memory = context.allocate_bytes(4096);
      for (int round = 0;; ++round) {
        if (ranks.rank() == 1 && round == 5) throw Error(ErrorKind::kDevice, "lost");
        ranks.broadcast({memory.get(), 4096}, 2);
      }
    });
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "rank 1 of 3: lost");
  }
}

}  // namespace
}  // namespace calibatt::cuda
