#include "backend/cuda/device/device_ranks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

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
