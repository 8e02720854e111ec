// Means over the earlier prompts: each prompt's maps are read a fixed number of times, however many prompts follow.
#include "calibrate/record/earlier_means.h"

#include <gtest/gtest.h>

#include <numeric>

#include "backend/cpu/make_backend.h"
#include "base/half.h"
#include "base/random.h"
#include "calibrate/record/calibrator.h"
#include "calibrate/record/synthetic_attention.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

ProfileHeader small_header(int num_prompts) {
  ProfileHeader header;
  header.geometry.frames = 2, header.geometry.height = 4, header.geometry.width = 6;
  header.geometry.heads = 2, header.geometry.head_dim = 16;
  header.geometry.block_q = header.geometry.block_k = 16;
  header.num_layers = 2;
  header.sigmas = {1.0, 0.7, 0.3};
  header.anchor_rows = {1};
  header.provenance.num_prompts = num_prompts;
  return header;
}

TEST(RunningMeans, AMemberThatIsSettledIsReadOnce) {
  constexpr size_t kMembers = 50, kSize = 3;
  RunningMeans means(2);
  for (size_t count = 0; count <= kMembers; ++count) {
    const std::vector<float> mean = means.mean(1, kSize, count, count, [](size_t member, std::span<float> values) {
      std::iota(values.begin(), values.end(), static_cast<float>(member));
    });
    ASSERT_EQ(mean.size(), kSize);
    const float middle = count == 0 ? 0 : static_cast<float>(count - 1) / 2;
    for (size_t i = 0; i < kSize; ++i) EXPECT_NEAR(mean[i], count == 0 ? 0 : middle + static_cast<float>(i), 1e-4);
  }
  EXPECT_EQ(means.num_reads(), kMembers);
}

TEST(EarlierMeans, AreTheSameBitsWhateverIsKept) {
  const ProfileHeader header = small_header(5);
  const size_t num_heads = 3 * 2 * 2;
  EarlierPrompts prompts;
  for (int prompt = 0; prompt < 5; ++prompt) {
    PromptProfile profile = PromptProfile::allocate(header, prompt);
    TorchGenerator random(static_cast<uint64_t>(prompt));
    for (Tensor* halves : {&profile.energy, &profile.harm}) {
      const Tensor values = random.randn(halves->shape());
      for (int64_t i = 0; i < halves->size(); ++i) {
        halves->data<uint16_t>()[i] = float_to_half(std::abs(values.f32()[i]));
      }
    }
    for (int64_t i = 0; i < profile.harm_scale.size(); ++i) profile.harm_scale.f32()[i] = 0.1f * static_cast<float>(i);
    prompts.push_back(std::make_shared<PromptProfile>(std::move(profile)));
  }
  for (size_t settled = 1; settled <= prompts.size(); ++settled) {
    EarlierMeans plain(header), kept(header);
    kept.settle(settled);
    for (size_t count = settled; count <= prompts.size(); ++count) {
      const EarlierPrompts earlier(prompts.begin(), prompts.begin() + static_cast<int64_t>(count));
      for (size_t head = 0; head < num_heads; ++head) {
        EXPECT_EQ(kept.energy(earlier, head), plain.energy(earlier, head));
        for (const Skipped skipped : {Skipped::kDrop, Skipped::kSummary}) {
          EXPECT_EQ(kept.harm(earlier, skipped, head), plain.harm(earlier, skipped, head));
        }
      }
    }
  }
}

TEST(EarlierMeans, ACalibrationReadsEachPromptsMapsOnce) {
  const auto reads = [](int num_prompts) {
    const ProfileHeader header = small_header(num_prompts);
    const TestFolder folder;
    ProfileRecording recording(header, folder.path());
    const auto backend = make_backend("cpu");
    for (const int prompt : recording.missing()) {
      recording.measure(prompt, *backend, [&](int, SelfAttention& attention) {
        run_synthetic(header.geometry, header.num_steps(), header.num_layers, prompt, attention);
        return 0.0;
      });
    }
    return recording.means().num_reads();
  };
  const int64_t matrices = 3 * (3 * 2 * 2);  // energy, and harm of both kinds, of each step's, layer's and head's
  EXPECT_EQ(reads(1), 0);
  EXPECT_EQ(reads(3), 2 * matrices);  // nobody asks for the last
  EXPECT_EQ(reads(9), 8 * matrices);
}

}  // namespace
}  // namespace calibatt
