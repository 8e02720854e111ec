// Decoders whose rows several ranks share, against one alone. On a machine with fewer GPUs than ranks some share one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>

#include "backend/thread_ranks.h"
#include "base/error.h"
#include "decoder_golden.h"
#include "golden_rank.h"
#include "models/mochi/vae.h"
#include "models/wan/vae.h"

namespace calibatt {
namespace {

using ::testing::HasSubstr;

template <class Vae>
struct DecoderRanks : DecoderGolden<Vae> {
  using Golden = DecoderGolden<Vae>;
  using Load = std::function<Vae(const std::string& folder, Backend& backend)>;
  using Golden::Golden;

  std::string backend_name() const { return std::get<1>(this->GetParam()); }
  /// body(vae, ranks) on each rank.
  template <class Body>
  void on_ranks(int num_ranks, const Load& load, const Body& body) const {
    run_ranks(num_ranks, [&](Communicator& hosts) {
      const auto backend = make_backend(backend_name(), backend_name() == "cpu" ? 0 : device_of(hosts.rank()));
      const std::unique_ptr<Communicator> on_device = backend->join(hosts);
      body(load(this->folder, *backend), on_device ? *on_device : hosts);
    });
  }
  Tensor decoded_on(int num_ranks, const Load& load, const Tensor& latents) const {
    Tensor result;
    on_ranks(num_ranks, load, [&](const Vae& vae, Communicator& ranks) {
      Tensor decoded = vae.decode_to_float(latents, &ranks);
      EXPECT_EQ(decoded.empty(), ranks.rank() > 0);
      if (ranks.rank() == 0) result = std::move(decoded);
    });
    return result;
  }
  static Vae in_float(const std::string& folder, Backend& backend) { return Vae::load(folder, backend, DType::kF32); }

  void expect_same_on_any_number_of_ranks() const {
    for (const Load& load : {Load(in_float), Load([](const std::string&folder, Backend&backend) {
                               return Vae::load(folder, backend, DType::kF32,
                                                {.defers_bias = true, .latent_frames_at_once = 3});
                             })}) {
      const Vae alone = load(this->folder, *this->backend);
      for (const std::string& name : this->cases()) {
        const Tensor latents = this->golden.get(name + ".latents"), expected = alone.decode_to_float(latents);
        for (int num_ranks = 1; num_ranks <= latents.dim(2); ++num_ranks) {  // up to a row each
          const Tensor found = decoded_on(num_ranks, load, latents);
          ASSERT_EQ(found.shape(), expected.shape());
          // Products of fewer rows may be summed in another order, on a GPU by another of cuDNN's engines.
          EXPECT_LT(relative_error(found, expected), backend_name() == "cpu" ? 2e-6 : 1e-5)
              << name << ", " << num_ranks << " ranks";
        }
      }
    }
  }

  void expect_bfloat16_close_on_ranks() const {
    for (const std::string& name : this->cases()) {
      const Tensor latents = this->golden.get(name + ".latents"), expected = this->golden.get(name + ".decoded");
      const int num_ranks = static_cast<int>(std::min<int64_t>(2, latents.dim(2)));
      const Tensor found = decoded_on(
          num_ranks,
          [](const std::string& folder, Backend& backend) { return Vae::load(folder, backend, DType::kBF16); },
          latents);
      EXPECT_GT(psnr_db(found, expected), 40) << name;
    }
  }

  /// A clip of as many rows.
  Tensor latents_of_rows(int64_t rows) const {
    for (const std::string& name : this->cases()) {
      const Tensor latents = this->golden.get(name + ".latents");
      if (latents.dim(2) >= rows) return latents;
    }
    return {};
  }

  void expect_frames_as_bytes_on_ranks() const {
    const Tensor latents = latents_of_rows(3);
    ASSERT_FALSE(latents.empty());
    const VideoFrames expected = in_float(this->folder, *this->backend).decode(latents);
    VideoFrames found;
    on_ranks(3, in_float, [&](const Vae& vae, Communicator& ranks) {
      std::vector<double> done;
      VideoFrames video = vae.decode(
          latents, [&](int frames, int all, double within) { done.push_back((frames + within) / all); }, &ranks);
      EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
      EXPECT_EQ(done.front(), 0);
      EXPECT_EQ(done.back(), 1);
      if (ranks.rank() == 0) {
        found = std::move(video);
      } else {
        EXPECT_TRUE(video.rgb.empty());
      }
    });
    EXPECT_EQ(std::vector({found.frames, found.height, found.width}),
              std::vector({expected.frames, expected.height, expected.width}));
    ASSERT_EQ(found.rgb.size(), expected.rgb.size());
    size_t tipped = 0;  // by rounding, here and there
    for (size_t i = 0; i < found.rgb.size(); ++i) {
      EXPECT_LE(std::abs(int{found.rgb[i]} - int{expected.rgb[i]}), 1) << i;
      tipped += found.rgb[i] != expected.rgb[i];
    }
    EXPECT_LE(tipped, found.rgb.size() / 1000);
  }

  /// Each rank in turn, before each of its layers.
  void expect_that_a_failure_anywhere_ends_all() const {
    const Tensor latents = latents_of_rows(3);
    ASSERT_FALSE(latents.empty());
    int layers = 0;
    in_float(this->folder, *this->backend).decode(latents, [&](int, int, double) { ++layers; });
    for (int failing = 0; failing < 3; ++failing) {
      const int step = 1 + failing + (backend_name() == "cpu" ? 0 : 9);  // starting cuDNN takes its time
      for (int layer = 0; layer < layers; layer += step) {
        try {
          on_ranks(3, in_float, [&](const Vae& vae, Communicator& ranks) {
            int calls = 0;
            vae.decode(
                latents,
                [&](int, int, double) {
                  if (ranks.rank() == failing && calls++ == layer) throw Error(ErrorKind::kDevice, "lost");
                },
                &ranks);
          });
          ADD_FAILURE() << "it was decoded";
        } catch (const Error& error) {
          EXPECT_EQ(error.what(), "rank " + std::to_string(failing) + " of 3: lost") << layer;
        }
      }
    }
  }

  /// In the rows of any rank; the first, which looks at them, says so.
  void expect_nan_to_be_found() const {
    const Tensor latents = latents_of_rows(3);
    ASSERT_FALSE(latents.empty());
    for (const int64_t row : {int64_t{0}, latents.dim(2) - 1}) {
      try {
        on_ranks(3, in_float, [&](const Vae& vae, Communicator& ranks) {
          Tensor broken(DType::kF32, latents.shape());
          std::copy_n(latents.f32(), latents.size(), broken.f32());
          const int64_t plane = latents.dim(2) * latents.dim(3);
          for (int64_t channel = 0; channel < latents.dim(0); ++channel) {  // finite, and too much for what follows
            std::fill_n(broken.f32() + channel * latents.dim(1) * plane + row * latents.dim(3), latents.dim(3), 3e38f);
          }
          vae.decode(broken, {}, &ranks);
        });
        ADD_FAILURE() << "nobody saw it";
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kNumeric);
        EXPECT_THAT(error.what(), HasSubstr("the decoded video holds NaN from frame 0"));
      }
    }
  }
};

struct WanDecoderRanks : DecoderRanks<WanVae> {
  WanDecoderRanks() : DecoderRanks("vae") {}
};
struct MochiDecoderRanks : DecoderRanks<MochiVae> {
  MochiDecoderRanks() : DecoderRanks("mochi_vae") {}
};

TEST_P(WanDecoderRanks, DecodeWhatOneDoes) {
  expect_same_on_any_number_of_ranks();
}
TEST_P(MochiDecoderRanks, DecodeWhatOneDoes) {
  expect_same_on_any_number_of_ranks();
}
TEST_P(WanDecoderRanks, InBfloat16StayClose) {
  expect_bfloat16_close_on_ranks();
}
TEST_P(MochiDecoderRanks, InBfloat16StayClose) {
  expect_bfloat16_close_on_ranks();
}

INSTANTIATE_TEST_SUITE_P(Models, WanDecoderRanks,
                         testing::Combine(testing::Values("wan21", "tiny", "odd", "wan22", "wan22_odd"), kBackends),
                         model_and_backend);
INSTANTIATE_TEST_SUITE_P(Models, MochiDecoderRanks, testing::Combine(testing::Values("mochi1", "odd"), kBackends),
                         model_and_backend);

struct OneWanDecoderOnRanks : WanDecoderRanks {};
struct OneMochiDecoderOnRanks : MochiDecoderRanks {};

TEST_P(OneWanDecoderOnRanks, GivesFramesAsBytes) {
  expect_frames_as_bytes_on_ranks();
}
TEST_P(OneMochiDecoderOnRanks, GivesFramesAsBytes) {
  expect_frames_as_bytes_on_ranks();
}
TEST_P(OneWanDecoderOnRanks, EndsWhereverOneFails) {
  expect_that_a_failure_anywhere_ends_all();
}
TEST_P(OneMochiDecoderOnRanks, EndsWhereverOneFails) {
  expect_that_a_failure_anywhere_ends_all();
}
TEST_P(OneWanDecoderOnRanks, FindsNaN) {
  expect_nan_to_be_found();
}
TEST_P(OneMochiDecoderOnRanks, FindsNaN) {
  expect_nan_to_be_found();
}

INSTANTIATE_TEST_SUITE_P(Models, OneWanDecoderOnRanks, testing::Combine(testing::Values("odd"), kBackends),
                         model_and_backend);
INSTANTIATE_TEST_SUITE_P(Models, OneMochiDecoderOnRanks, testing::Combine(testing::Values("odd"), kBackends),
                         model_and_backend);

}  // namespace
}  // namespace calibatt
