// Calibration of joint attention: what is measured is the video's, whatever text stands behind it.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "backend/cpu/attention/reference/attention_reference.h"
#include "backend/cpu/make_backend.h"
#include "base/half.h"
#include "calibrate/profile/level_code.h"
#include "calibrate/record/calibrator.h"
#include "calibrate/record/fake_device_backend.h"
#include "calibrate/record/output_error.h"
#include "calibrate/record/synthetic_attention.h"
#include "calibrate/record/video_energy.h"
#include "io/test_folder.h"
#include "sparsity/intervals_builder.h"

namespace calibatt {
namespace {

AttentionGeometry video(int width) {
  AttentionGeometry geometry;
  geometry.frames = 3, geometry.height = 5, geometry.width = width;
  geometry.heads = 3, geometry.head_dim = 16;
  geometry.block_q = geometry.block_k = 16;
  return geometry;
}
AttentionGeometry with_text(AttentionGeometry geometry, int text_tokens) {
  geometry.text_tokens = text_tokens;
  return geometry;
}

AttentionCall call_of(const AttentionGeometry& geometry, const SyntheticAttention& inputs, Tensor& out) {
  AttentionCall call;
  call.q = inputs.view(inputs.q), call.k = inputs.view(inputs.k), call.v = inputs.view(inputs.v);
  call.out = inputs.output_view(out);
  call.num_heads = geometry.heads, call.head_dim = geometry.head_dim;
  call.scale = 1 / std::sqrt(static_cast<float>(geometry.head_dim));
  call.block_q = geometry.block_q, call.block_k = geometry.block_k;
  return call;
}

Tensor output_of(const AttentionGeometry& geometry) {
  return {DType::kF32, {geometry.num_tokens(), geometry.heads, geometry.head_dim}};
}

/// In obvious loops: of each query block, the mean mass on the video keys of each key block, and on all its keys.
struct Masses {
  std::vector<double> video, all;
};
Masses expected_masses(const AttentionGeometry& joint, const SyntheticAttention& inputs, int head, int row) {
  const int num_video = joint.num_video_tokens(), dim = joint.head_dim, width = joint.heads * dim;
  Masses masses{std::vector<double>(joint.num_key_blocks()), std::vector<double>(joint.num_key_blocks())};
  const int begin = row * joint.block_q, end = std::min(begin + joint.block_q, num_video);
  for (int query = begin; query < end; ++query) {
    std::vector<double> weight(joint.num_tokens());
    double sum = 0;
    for (int key = 0; key < joint.num_tokens(); ++key) {
      double dot = 0;
      for (int i = 0; i < dim; ++i) {
        dot += double{inputs.q.f32()[query * width + head * dim + i]} * inputs.k.f32()[key * width + head * dim + i];
      }
      sum += weight[key] = std::exp(dot / std::sqrt(static_cast<double>(dim)));
    }
    for (int key = 0; key < joint.num_tokens(); ++key) {
      const double share = weight[key] / sum / (end - begin);
      masses.all[key / joint.block_k] += share;
      if (key < num_video) masses.video[key / joint.block_k] += share;
    }
  }
  return masses;
}

TEST(VideoEnergy, IsThatOfTheVideosBlocksUnderASoftmaxOverEverything) {
  const auto backend = make_backend("cpu");
  for (const int width : {6, 16}) {  // 90 tokens, 10 of them in the last block; 240, which fill their blocks
    const AttentionGeometry geometry = video(width);
    for (const int text_tokens : {0, 1, 4, 23, 70}) {
      const AttentionGeometry joint = with_text(geometry, text_tokens);
      const SyntheticAttention inputs(joint, 0, 0, 0);
      Tensor dense = output_of(joint), out = output_of(joint);
      const AttentionCall call = call_of(joint, inputs, out);
      backend->attention(call_of(joint, inputs, dense));
      const int rows = geometry.num_query_blocks(), columns = geometry.num_key_blocks();
      Tensor energy(DType::kF32, {geometry.heads, rows, columns});
      VideoEnergy(*backend).attend(call, text_tokens, energy);
      for (int64_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out.f32()[i], dense.f32()[i], 1e-5);
      const bool shared_block = text_tokens > 0 && geometry.num_tokens() % geometry.block_k != 0;
      for (int head = 0; head < geometry.heads; ++head) {
        for (int row = 0; row < rows; ++row) {
          const Masses expected = expected_masses(joint, inputs, head, row);
          const float* found = energy.f32() + (head * rows + row) * columns;
          for (int c = 0; c < columns - (shared_block ? 1 : 0); ++c) {
            ASSERT_NEAR(found[c], expected.video[c], 1e-5) << width << " " << text_tokens << " " << head << " " << row;
          }
          if (!shared_block) continue;
          // An estimate: a product of means for the mean of a product. These queries differ a lot.
          const double last = expected.video[columns - 1], all = expected.all[columns - 1];
          EXPECT_NEAR(found[columns - 1], last, 0.5 * all) << text_tokens << " " << head << " " << row;
          EXPECT_LE(found[columns - 1], all + 1e-6);
        }
      }
    }
  }
}

/// Notes which key blocks the energy is asked of, as a GPU's kernels do that take multiples of 128 tokens.
class WatchedDevice : public FakeDeviceBackend {
 public:
  std::string_view attention(const AttentionCall& call) override {
    if (call.block_energy != nullptr) blocks.push_back(call.block_k);
    return FakeDeviceBackend::attention(call);
  }
  std::vector<int> blocks;
};

TEST(VideoEnergy, OnADeviceTheBlockWithTextHasAMultipleOf128KeysAndTheSameShare) {
  const auto host = make_backend("cpu");
  for (const int width : {6, 7}) {  // 10 and 9 tokens in the last block
    for (const int text_tokens : {1, 5, 70}) {
      const AttentionGeometry geometry = video(width), joint = with_text(geometry, text_tokens);
      SyntheticAttention inputs(joint, 0, 0, 0);
      const std::vector<int64_t> shape{geometry.heads, geometry.num_query_blocks(), geometry.num_key_blocks()};
      Tensor out = output_of(joint), expected(DType::kF32, shape);
      VideoEnergy(*host).attend(call_of(joint, inputs, out), text_tokens, expected);
      WatchedDevice device;
      AttentionCall call = call_of(joint, inputs, out);
      const Tensor q = device.from_host(inputs.q), k = device.from_host(inputs.k), v = device.from_host(inputs.v);
      Tensor there = device.empty(DType::kF32, out.shape()), energy = device.empty(DType::kF32, shape);
      call.q = inputs.view(q), call.k = inputs.view(k), call.v = inputs.view(v), call.out = inputs.output_view(there);
      VideoEnergy(device).attend(call, text_tokens, energy);
      ASSERT_EQ(device.blocks.size(), 2u);
      EXPECT_EQ(device.blocks[0] % 128, 0) << device.blocks[0];
      const Tensor found = device.to_host(energy), output = device.to_host(there);
      for (int64_t i = 0; i < found.size(); ++i) ASSERT_NEAR(found.f32()[i], expected.f32()[i], 1e-6) << i;
      for (int64_t i = 0; i < out.size(); ++i) ASSERT_EQ(output.f32()[i], out.f32()[i]) << i;
    }
  }
}

// Queries that all look alike: then the share of the last block is exact.
TEST(VideoEnergy, TheShareOfABlockWithTextIsExactWhereQueriesAgree) {
  const auto backend = make_backend("cpu");
  const AttentionGeometry geometry = video(6), joint = with_text(geometry, 5);
  SyntheticAttention inputs(joint, 0, 0, 0);
  const int width = geometry.heads * geometry.head_dim;
  for (int token = 1; token < joint.num_tokens(); ++token) {
    std::copy_n(inputs.q.f32(), width, inputs.q.f32() + token * width);
  }
  Tensor out = output_of(joint);
  Tensor energy(DType::kF32, {geometry.heads, geometry.num_query_blocks(), geometry.num_key_blocks()});
  VideoEnergy(*backend).attend(call_of(joint, inputs, out), 5, energy);
  const int columns = geometry.num_key_blocks();
  for (int head = 0; head < geometry.heads; ++head) {
    const Masses expected = expected_masses(joint, inputs, head, 2);
    const float* found = energy.f32() + (head * geometry.num_query_blocks() + 2) * columns;
    for (int c = 0; c < columns; ++c) EXPECT_NEAR(found[c], expected.video[c], 1e-6);
  }
}

// Masks made of the same rankings, text always kept, run by the reference kernel, must show the same errors.
TEST(MeasureHead, WithTextBehindLevelErrorsEqualThoseOfTheReferenceKernel) {
  const AttentionGeometry geometry = video(6), joint = with_text(geometry, 23);
  const SyntheticAttention inputs(joint, 0, 0, 0);
  const int rows = geometry.num_query_blocks(), columns = geometry.num_key_blocks(), all = joint.num_key_blocks();
  const int num_video = geometry.num_tokens(), first_text = num_video / geometry.block_k;
  Tensor dense = output_of(joint);
  cpu::attention_reference(call_of(joint, inputs, dense));
  Tensor energy(DType::kF32, {geometry.heads, rows, columns}), scratch = output_of(joint);
  const auto backend = make_backend("cpu");
  VideoEnergy(*backend).attend(call_of(joint, inputs, scratch), 23, energy);

  const OutputContext context;
  const std::vector<AnchorRows> anchors;
  const std::vector<int32_t> positions = geometry.raster_of_position();
  const MeasuredCall measured{geometry,
                              inputs.view(inputs.q),
                              inputs.view(inputs.k),
                              inputs.view(inputs.v),
                              inputs.view(dense),
                              1 / std::sqrt(static_cast<float>(geometry.head_dim)),
                              context,
                              geometry.block_q,  // every query: nothing is extrapolated
                              0.3,
                              anchors,
                              positions};
  const size_t levels = kEnergyLevels.size(), per_head = static_cast<size_t>(rows) * columns;
  SampledKeys keys;
  for (int head = 0; head < geometry.heads; ++head) {
    const std::span<const float> of_head{energy.f32() + head * per_head, per_head};
    const HeadErrors errors = measure_head(measured, head, {of_head, {of_head, of_head}}, keys);
    EXPECT_EQ(errors.harm[0].size(), per_head);
    InclusionLevels inclusion = energy_inclusion(of_head, rows, columns);
    keep_own_blocks(inclusion, geometry, nullptr);
    for (size_t level = 0; level < levels; level += 3) {
      const double limit = levels_of(Ranking::kEnergy)[level];
      IntervalsBuilder builder(all);
      for (int r = 0; r < rows; ++r) {
        builder.add_row([&](int c) { return c >= first_text || inclusion.at(r, c) < limit; });
      }
      const BlockIntervals intervals = builder.take();
      std::vector<HeadSchedule> schedule(3);
      schedule[head] = {&intervals, false, nullptr};
      Tensor sparse = output_of(joint);
      AttentionCall call = call_of(joint, inputs, sparse);
      call.q.num_tokens = call.out.num_tokens = num_video;
      call.heads = schedule;
      cpu::attention_reference(call);
      double expected = 0;
      for (int token = 0; token < num_video; ++token) {
        for (int i = 0; i < geometry.head_dim; ++i) {
          const int64_t at = (int64_t{token} * geometry.heads + head) * geometry.head_dim + i;
          expected += std::pow(double{sparse.f32()[at]} - dense.f32()[at], 2);
        }
      }
      const double actual = errors.level_error[static_cast<size_t>(Ranking::kEnergy) * 2 * levels + level];
      EXPECT_NEAR(actual, expected, 1e-3 * expected + 1e-9) << "head " << head << " level " << level;
    }
  }
}

enum class Kind : uint8_t { kMaps, kEnergyCodes, kHarmCodes };

void set_kind(Kind kind, ProfileHeader& header) {
  if (kind == Kind::kMaps) return;
  header.measured = Measured::kLevels;
  header.code_ranking = kind == Kind::kHarmCodes ? Ranking::kHarm : Ranking::kEnergy;
  for (int step = 0; step < header.num_steps(); ++step) header.recorded_steps.push_back(step);
}

class JointCalibration : public ::testing::TestWithParam<Kind> {
 protected:
  static constexpr int kPrompts = 3, kTokens[kPrompts] = {7, 1, 40};

  ProfileHeader header() const {
    ProfileHeader header;
    header.geometry = video(6);
    header.geometry.order = TokenOrder::tiles(2, 2, 2);
    header.num_layers = 2;
    header.sigmas = {1.0, 0.4};
    set_kind(GetParam(), header);
    header.provenance.num_prompts = kPrompts;
    header.provenance.guidance_scale = 5.0;
    header.sampled_blocks = 3;
    return header;
  }
};

TEST_P(JointCalibration, TakesPromptsOfEveryLength) {
  const ProfileHeader header = this->header();
  const auto backend = make_backend("cpu");
  TestFolder folder;
  const auto run = [&](int prompt, SelfAttention& attention) {
    run_synthetic(with_text(header.geometry, kTokens[prompt]), 2, 2, prompt, attention);
    return 0.0;
  };
  const RecordedProfile recorded = record_profile(*backend, header, folder.path(), run);
  ASSERT_EQ(recorded.profile.prompts.size(), size_t{kPrompts});
  EXPECT_EQ(load_profile(folder.path()).header.geometry, header.geometry);
  const bool maps = GetParam() == Kind::kMaps;
  for (const PromptProfile& prompt : recorded.profile.prompts) {
    const int64_t levels = prompt.level_error.dim(-1);
    const int64_t curves = prompt.level_error.size() / levels;
    for (int64_t curve = 0; curve < curves; ++curve) {
      const float* error = prompt.level_error.f32() + curve * levels;
      EXPECT_GE(error[0], error[levels / 2]);
      EXPECT_LE(error[levels - 1], 0.3f * error[0] + 1e-12f);
    }
    if (!maps) continue;
    const int64_t columns = header.geometry.num_key_blocks();
    for (int64_t row = 0; row < prompt.energy.size() / columns; ++row) {
      float sum = 0;  // without what the text draws
      for (int64_t c = 0; c < columns; ++c) sum += half_to_float(prompt.energy.data<uint16_t>()[row * columns + c]);
      EXPECT_GT(sum, 0.05f);
      EXPECT_LT(sum, 1.005f);  // of halves
    }
  }
}

// The same prompts in memory that the host cannot touch.
TEST_P(JointCalibration, NothingOnADeviceIsTouchedByTheHost) {
  ProfileHeader header = this->header();
  header.output_errors = GetParam() == Kind::kHarmCodes;
  TestFolder here, there;
  const auto on_host = make_backend("cpu");
  FakeDeviceBackend device(true);
  for (const bool fake : {false, true}) {
    const RecordingBackend backend = fake ? static_cast<RecordingBackend>(device) : RecordingBackend(*on_host);
    const auto run = [&](int prompt, SelfAttention& attention) {
      const AttentionGeometry joint = with_text(header.geometry, kTokens[prompt]);
      for (int step = 0; step < 2; ++step) {
        attention.begin_forward(step, GuidanceBranch::kConditional);
        for (int layer = 0; layer < 2; ++layer) {
          const SyntheticAttention inputs(joint, prompt, step, layer);
          Tensor out = backend.device.empty(DType::kF32, {joint.num_tokens(), joint.heads, joint.head_dim});
          attention.attend(layer, joint, inputs.view(backend.device.from_host(inputs.q)),
                           inputs.view(backend.device.from_host(inputs.k)),
                           inputs.view(backend.device.from_host(inputs.v)), inputs.output_view(out), {});
        }
      }
      return 0.0;
    };
    record_profile(backend, header, (fake ? there : here).path(), run);
  }
  const Profile a = load_profile(here.path()), b = load_profile(there.path());
  for (size_t prompt = 0; prompt < kPrompts; ++prompt) {
    const Tensor& of_a = GetParam() == Kind::kMaps ? a.prompts[prompt].energy : a.prompts[prompt].levels;
    const Tensor& of_b = GetParam() == Kind::kMaps ? b.prompts[prompt].energy : b.prompts[prompt].levels;
    ASSERT_EQ(of_a.size_bytes(), of_b.size_bytes());
    EXPECT_EQ(std::memcmp(of_a.raw(), of_b.raw(), of_a.size_bytes()), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Measured, JointCalibration, testing::Values(Kind::kMaps, Kind::kEnergyCodes, Kind::kHarmCodes),
                         [](const auto& info) {
                           return info.param == Kind::kMaps          ? "maps"
                                  : info.param == Kind::kEnergyCodes ? "energy_codes"
                                                                     : "harm_codes";
                         });

// Behind a norm a change weighs as much more as the norm makes of it.
TEST(JointAttention, ErrorsBehindANormAreMultipliedByItsGain) {
  const auto backend = make_backend("cpu");
  for (const Kind kind : {Kind::kMaps, Kind::kEnergyCodes, Kind::kHarmCodes}) {
    ProfileHeader header;
    header.geometry = video(6);
    header.num_layers = 1;
    header.sigmas = {1.0};
    set_kind(kind, header);
    header.sampled_blocks = 3;
    header.provenance.num_prompts = 1;
    std::vector<PromptProfile> profiles;
    for (const double gain : {1.0, 9.0}) {
      TestFolder folder;
      const SyntheticAttention inputs(header.geometry, 0, 0, 0);
      const auto run = [&](int, SelfAttention& attention) {
        attention.begin_forward(0, GuidanceBranch::kConditional);
        Tensor out = output_of(header.geometry);
        std::memset(out.raw(), 0, out.size_bytes());
        OutputContext context;
        context.residual_square_sum = 100;
        context.squared_gain = [&] {
          EXPECT_NE(out.f32()[0], 0.0f) << "the heads' outputs are there when the gain is asked for";
          return gain;
        };
        attention.attend(0, header.geometry, inputs.view(inputs.q), inputs.view(inputs.k), inputs.view(inputs.v),
                         inputs.output_view(out), context);
        return 0.0;
      };
      profiles.push_back(record_profile(*backend, header, folder.path(), run).profile.prompts[0]);
      profiles.back().level_error = profiles.back().level_error.clone();  // its file goes
    }
    for (int64_t i = 0; i < profiles[0].level_error.size(); ++i) {
      const double plain = profiles[0].level_error.f32()[i];
      EXPECT_NEAR(profiles[1].level_error.f32()[i], 9 * plain, 1e-4 * plain);
    }
  }
}

}  // namespace
}  // namespace calibatt
