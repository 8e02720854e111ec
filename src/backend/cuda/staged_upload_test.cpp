#include "backend/cuda/staged_upload.h"

#include <gmock/gmock.h>

#include <cmath>

#include "backend/cuda/backend_pair.h"

namespace calibatt::cuda {
namespace {

class StagedUploadTest : public BackendPair {
 protected:
  /// Longer than all chunks of the ring together in F32, and no multiple of anything.
  static constexpr int64_t kLong = (int64_t{32} << 20) + 12345;
};

TEST_F(StagedUploadTest, BringsEveryElementConverted) {
  Context context;
  StagedUpload upload(context);
  const Tensor wide = random({kLong});
  for (const DType from : {DType::kF32, DType::kBF16}) {
    const StoredTensor stored{converted(wide, from), "FILE: tensor \"x\""};
    for (const DType to : {DType::kF32, DType::kBF16}) {
      const Tensor device = context.allocate(to, {kLong});
      upload.run(stored, const_cast<void*>(device.raw()), to);
      Tensor back(to, {kLong});
      context.copy_to_host(back.raw(), device.raw(), back.size_bytes());
      const Tensor expected = converted(stored.tensor, to);
      EXPECT_EQ(std::memcmp(back.raw(), expected.raw(), back.size_bytes()), 0);
    }
    upload.release();
  }
}

TEST_F(StagedUploadTest, NamesWhatIsNotFinite) {
  Context context;
  StagedUpload upload(context);
  Tensor bad = random({kLong});
  bad.f32()[kLong - 1] = NAN;
  const Tensor device = context.allocate(DType::kF32, {kLong});
  try {
    upload.run({bad, "FILE: tensor \"x\""}, const_cast<void*>(device.raw()), DType::kF32);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kNumeric);
    EXPECT_THAT(error.what(), testing::HasSubstr("FILE: tensor \"x\" holds NaN"));
  }
}

using LoadedLinear = BackendPair;

TEST_F(LoadedLinear, StacksPartsOnTheDeviceResidentOrStreamed) {
  constexpr int64_t kIn = 320, kOut = 192, kRows = 33;
  StoredLinear stored{{}, {}, DType::kBF16, nullptr};
  for (uint64_t part = 0; part < 3; ++part) {
    stored.weights.push_back({random({kOut, kIn}, part == 1 ? DType::kF32 : DType::kBF16, 10 + part), "weight"});
    stored.biases.push_back({random({kOut}, DType::kF32, 20 + part), "bias"});
  }
  const auto plain =
      gpu->make_linear(stack_rows(stored.weights, DType::kBF16), stack_rows(stored.biases, DType::kF32), DType::kBF16);
  const auto resident = gpu->load_linear(stored);
  // Three groups of two layers: more than there are buffers on the device.
  std::vector<std::shared_ptr<StreamedWeights>> groups;
  std::vector<std::shared_ptr<const LinearLayer>> first, second;
  for (int group = 0; group < 3; ++group) {
    groups.push_back(gpu->make_streamed_weights(2 * Backend::streamed_bytes(3 * kOut, kIn, DType::kBF16)));
    stored.streamed = groups.back();
    first.push_back(gpu->load_linear(stored));
    std::swap(stored.weights[0], stored.weights[2]);  // the second layer, and the next group's first, are others
    second.push_back(gpu->load_linear(stored));
    groups.back()->seal();
  }
  const auto plain_swapped =  // three swaps: the other order
      gpu->make_linear(stack_rows(stored.weights, DType::kBF16), stack_rows(stored.biases, DType::kF32), DType::kBF16);

  const Tensor input = to_gpu(random({kRows, kIn}, DType::kBF16));
  const auto output_of = [&](const LinearLayer& layer) {
    Tensor out = gpu->empty(DType::kF32, {kRows, 3 * kOut});
    gpu->linear(layer, input, out);
    return gpu->to_host(out);
  };
  const Tensor expected = output_of(*plain), expected_swapped = output_of(*plain_swapped);
  EXPECT_NE(std::memcmp(expected.raw(), expected_swapped.raw(), expected.size_bytes()), 0);
  EXPECT_EQ(std::memcmp(output_of(*resident).raw(), expected.raw(), expected.size_bytes()), 0);
  for (int turn = 0; turn < 7; ++turn) {
    const size_t group = static_cast<size_t>(turn) % 3;
    const WeightsInUse in_use(groups[group], groups[(group + 1) % 3]);
    const bool swapped = group % 2 == 1;
    EXPECT_EQ(std::memcmp(output_of(*first[group]).raw(), (swapped ? expected_swapped : expected).raw(),
                          expected.size_bytes()),
              0)
        << "turn " << turn;
    EXPECT_EQ(std::memcmp(output_of(*second[group]).raw(), (swapped ? expected : expected_swapped).raw(),
                          expected.size_bytes()),
              0)
        << "turn " << turn;
  }
}

}  // namespace
}  // namespace calibatt::cuda
