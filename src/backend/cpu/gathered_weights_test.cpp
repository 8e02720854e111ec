// Linear layers of which every rank keeps a part: the same numbers as whole ones.
#include <gtest/gtest.h>

#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "backend/thread_ranks.h"
#include "base/error.h"
#include "base/random.h"

namespace calibatt {
namespace {

constexpr int64_t kIn = 40, kOut = 72, kRows = 9;

StoredLinear stored_layer(uint64_t seed, const LinearFormat& format) {
  StoredLinear stored;
  stored.weights = {{TorchGenerator(seed).randn({kOut, kIn}), "a"}, {TorchGenerator(seed + 1).randn({kOut, kIn}), "b"}};
  stored.biases = {{TorchGenerator(seed + 2).randn({kOut}), "a.bias"},
                   {TorchGenerator(seed + 3).randn({kOut}), "b.bias"}};
  stored.format = format;
  return stored;
}

Tensor product(Backend& backend, const LinearLayer& layer, const LinearFormat& format) {
  const Tensor x = TorchGenerator(5).randn({kRows, kIn});
  Tensor out(DType::kF32, {kRows, 2 * kOut});
  if (!format.is_eight_bits()) {
    backend.linear(layer, converted(x, format.dtype), out);
    return out;
  }
  EightBitRows rows{Tensor(format.dtype, x.shape()), Tensor(DType::kF32, {kRows})};
  backend.eight_bit_ops().quantise(x, Activation::kNone, rows);
  backend.eight_bit_ops().linear(layer, rows, out);
  return out;
}

void expect_same(const Tensor& found, const Tensor& expected) {
  ASSERT_EQ(found.size_bytes(), expected.size_bytes());
  EXPECT_EQ(std::memcmp(found.raw(), expected.raw(), expected.size_bytes()), 0);
}

ShardedBlock block_of(const std::shared_ptr<WeightShards>& shards, int rank, int block) {
  return {{shards, rank}, "block " + std::to_string(block), size_t{1} << 20};
}

TEST(GatheredWeights, ComputeWhatWholeOnesDoInTurns) {
  constexpr int kBlocks = 3;  // more than there are buffers
  for (const LinearFormat& format :
       {LinearFormat(DType::kF32), LinearFormat(DType::kBF16), LinearFormat::e4m3(), LinearFormat::int8()}) {
    for (const int num_ranks : {1, 2, 3, 5}) {
      SCOPED_TRACE(testing::Message() << num_ranks << " ranks, " << dtype_name(format.dtype));
      const auto shards = std::make_shared<WeightShards>(std::vector<int>(static_cast<size_t>(num_ranks), 0));
      run_ranks(num_ranks, [&](Communicator& hosts) {
        const auto backend = cpu::make_cpu_backend();
        std::vector<std::shared_ptr<StreamedWeights>> blocks;
        std::vector<std::shared_ptr<const LinearLayer>> layers, whole;
        for (int block = 0; block < kBlocks; ++block) {
          blocks.push_back(backend->make_sharded_weights(block_of(shards, hosts.rank(), block)));
          for (const uint64_t layer : {0, 10}) {
            StoredLinear stored = stored_layer(static_cast<uint64_t>(100 * block) + layer, format);
            whole.push_back(backend->load_linear(stored));
            stored.streamed = blocks.back();
            layers.push_back(backend->load_linear(stored));
          }
          blocks.back()->seal();
        }
        hosts.barrier();
        for (int turn = 0; turn < 2 * kBlocks; ++turn) {
          const auto block = static_cast<size_t>(turn % kBlocks);
          const WeightsInUse in_use(blocks[block], blocks[(block + 1) % kBlocks]);
          for (const size_t layer : {2 * block, 2 * block + 1}) {
            expect_same(product(*backend, *layers[layer], format), product(*backend, *whole[layer], format));
          }
        }
        hosts.barrier();  // all have gathered every block
        layers.clear();
        blocks.clear();
      });
    }
  }
}

TEST(GatheredWeights, ThatARankDoesNotHaveAreMissedByTheOthers) {
  const auto shards = std::make_shared<WeightShards>(std::vector<int>{0, 0});
  const auto backend = cpu::make_cpu_backend();
  const auto block = backend->make_sharded_weights(block_of(shards, 0, 7));
  StoredLinear stored = stored_layer(1, DType::kF32);
  stored.streamed = block;
  const auto layer = backend->load_linear(stored);
  block->seal();
  for (int attempt = 0; attempt < 3; ++attempt) {  // a failure leaves no buffer in use
    try {
      block->begin_use();
      ADD_FAILURE() << "it was gathered";
    } catch (const Error& error) {
      EXPECT_STREQ(error.what(), "rank 1 of 2 does not have its part of block 7; load the model again");
    }
  }
}

}  // namespace
}  // namespace calibatt
