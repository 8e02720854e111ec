// Weights of which every rank keeps a part, on its GPU or in host memory. Ranks take the GPUs there are in turn.
#include "backend/cuda/device_shard.h"

#include <cstring>
#include <thread>

#include "backend/cuda/backend_pair.h"
#include "backend/cuda/host_weights.h"
#include "backend/thread_ranks.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

class SharedWeights : public BackendPair {
 protected:
  static constexpr int64_t kIn = 320, kOut = 192;
  static constexpr int kBlocks = 5;  // more than there are buffers

  static StoredLinear stored_layer(const LinearFormat& format, uint64_t seed) {
    StoredLinear stored{{}, {}, format, nullptr};
    for (uint64_t part = 0; part < 3; ++part) {
      stored.weights.push_back({random({kOut, kIn}, part == 1 ? DType::kF32 : DType::kBF16, seed + part), "weight"});
    }
    return stored;
  }
  static std::vector<int> devices_of(int num_ranks) {
    std::vector<int> devices;
    for (int rank = 0; rank < num_ranks; ++rank) devices.push_back(rank % num_devices());
    return devices;
  }
  static ShardedBlock block_of(const std::shared_ptr<WeightShards>& shards, int rank, int block, bool on_the_host) {
    return {{shards, rank},
            "block " + std::to_string(block),
            2 * Backend::streamed_bytes(3 * kOut, kIn, DType::kF32),
            on_the_host};
  }
  /// What the weight is, on the host.
  static Tensor weight_of(Backend& backend, const LinearLayer& layer) {
    return backend.to_host(backend.weight_of(layer, {})).clone();
  }
  static void expect_same_bytes(const Tensor& found, const Tensor& expected) {
    ASSERT_EQ(found.size_bytes(), expected.size_bytes());
    EXPECT_EQ(std::memcmp(found.raw(), expected.raw(), found.size_bytes()), 0);
  }
};

TEST_F(SharedWeights, AreThoseThatOneRankHas) {
  for (const LinearFormat& format :
       {LinearFormat(DType::kF32), LinearFormat(DType::kBF16), LinearFormat::e4m3(), LinearFormat::int8()}) {
    for (const bool on_the_host : {false, true}) {
      for (const int num_ranks : {1, 2, 3, 5}) {
        SCOPED_TRACE(testing::Message() << num_ranks << " ranks, " << dtype_name(format.dtype)
                                        << (on_the_host ? ", in host memory" : ""));
        const auto shards = std::make_shared<WeightShards>(devices_of(num_ranks));
        run_ranks(num_ranks, [&](Communicator& hosts) {
          const auto backend = make_cuda_backend(devices_of(num_ranks)[static_cast<size_t>(hosts.rank())]);
          std::vector<std::shared_ptr<StreamedWeights>> blocks;
          std::vector<std::shared_ptr<const LinearLayer>> layers;
          std::vector<Tensor> expected;
          for (int block = 0; block < kBlocks; ++block) {
            blocks.push_back(backend->make_sharded_weights(block_of(shards, hosts.rank(), block, on_the_host)));
            for (const uint64_t layer : {0, 10}) {
              StoredLinear stored = stored_layer(format, 100 * static_cast<uint64_t>(block) + layer);
              expected.push_back(weight_of(*backend, *backend->load_linear(stored)));
              stored.streamed = blocks.back();
              layers.push_back(backend->load_linear(stored));
            }
            blocks.back()->seal();
          }
          hosts.barrier();
          for (int turn = 0; turn < 3 * kBlocks; ++turn) {
            const auto block = static_cast<size_t>(turn % kBlocks);
            const WeightsInUse in_use(blocks[block], blocks[(block + 1) % kBlocks]);
            for (const size_t layer : {2 * block, 2 * block + 1}) {
              expect_same_bytes(weight_of(*backend, *layers[layer]), expected[layer]);
            }
            if (turn == kBlocks) backend->synchronize();
          }
          hosts.barrier();  // all have asked for every part
          layers.clear();
          blocks.clear();  // while the others' GPUs may still gather
        });
      }
    }
  }
}

/// A part outlives the rank that made it, its backend and its thread.
TEST_F(SharedWeights, ARankThatEndsTakesNothingFromThoseThatRead) {
  for (const bool on_the_host : {false, true}) {
    const auto shards = std::make_shared<WeightShards>(devices_of(2));
    const StoredLinear stored = stored_layer(DType::kBF16, 7);
    const Tensor expected = weight_of(*gpu, *gpu->load_linear(stored));
    const auto backend = make_cuda_backend(devices_of(2)[0]);
    const auto load = [&](Backend& on, int rank) {
      auto block = on.make_sharded_weights(block_of(shards, rank, 0, on_the_host));
      StoredLinear own = stored;
      own.streamed = block;
      auto layer = on.load_linear(own);
      block->seal();
      return std::pair(std::move(block), std::move(layer));
    };
    const auto [block, layer] = load(*backend, 0);
    auto other = make_cuda_backend(devices_of(2)[1]);
    auto of_other = std::make_unique<decltype(load(*other, 1))>(load(*other, 1));
    backend->make_current();
    {
      const WeightsInUse in_use(block, nullptr);
      expect_same_bytes(weight_of(*backend, *layer), expected);
    }
    std::jthread([&] {
      other->make_current();
      of_other.reset();
      other.reset();
    }).join();
    backend->trim_memory();  // the buffer goes, and all is gathered again
    const WeightsInUse in_use(block, nullptr);
    expect_same_bytes(weight_of(*backend, *layer), expected);
  }
}

/// What a rank holds is its part and two buffers.
TEST_F(SharedWeights, TakeAPartOfTheMemory) {
  constexpr int kRanks = 2, kMany = 64;
  constexpr size_t kBlock = size_t{2} * 2048 * 2048;
  const auto shards = std::make_shared<WeightShards>(devices_of(kRanks));
  run_ranks(kRanks, [&](Communicator& hosts) {
    const auto backend = make_cuda_backend(devices_of(kRanks)[static_cast<size_t>(hosts.rank())]);
    StoredLinear stored{{{random({2048, 2048}, DType::kBF16), "weight"}}, {}, DType::kBF16, nullptr};
    std::vector<std::shared_ptr<StreamedWeights>> blocks;
    std::vector<std::shared_ptr<const LinearLayer>> layers;
    for (int block = 0; block < kMany; ++block) {
      blocks.push_back(
          backend->make_sharded_weights({{shards, hosts.rank()}, "large " + std::to_string(block), kBlock}));
      stored.streamed = blocks.back();
      layers.push_back(backend->load_linear(stored));
      blocks.back()->seal();
    }
    hosts.barrier();
    backend->reset_peak_memory();
    for (size_t block = 0; block < kMany; ++block) {
      const WeightsInUse in_use(blocks[block], blocks[(block + 1) % kMany]);
      backend->synchronize();
    }
    EXPECT_GE(backend->peak_memory_bytes(), kMany * kBlock / kRanks + 2 * kBlock);
    EXPECT_LE(backend->peak_memory_bytes(), kMany * kBlock / kRanks + 2 * kBlock + (size_t{64} << 20));
    hosts.barrier();
    layers.clear();
    blocks.clear();
  });
}

}  // namespace
}  // namespace calibatt::cuda
