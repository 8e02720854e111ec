// The text encoders against transformers' UMT5EncoderModel and T5EncoderModel (tools/golden/t5.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backend/cpu/make_backend.h"
#include "backends.h"
#include "io/safetensors.h"
#include "models/t5/encoder.h"
#include "relative_error.h"

namespace calibatt {
namespace {

const std::string kT5Data = std::string(CALIBATT_GOLDEN_DATA) + "/t5/";

class T5Golden : public testing::TestWithParam<std::tuple<std::string, std::string>> {
 protected:
  void SetUp() override {
    if (backend_ == nullptr) GTEST_SKIP() << kNoDevice;
  }

  std::unique_ptr<Backend> backend_ = backend_or_null(std::get<0>(GetParam()));
  std::string folder_ = kT5Data + std::get<1>(GetParam());
  Safetensors golden_ = Safetensors::open(folder_ + "/golden.safetensors");

  Tensor encode(const T5Encoder& encoder, const std::string& name) const {
    const Tensor ids = golden_.get(name + ".ids");
    return encoder.encode({ids.data<int32_t>(), static_cast<size_t>(ids.size())});
  }
};

TEST_P(T5Golden, EmbeddingsOfThePaddedPromptComeFromItsRealTokensAlone) {
  const T5Encoder encoder = T5Encoder::open(*backend_, folder_, DType::kF32);
  for (const char* name : {"one", "short", "long"}) {
    const double error = relative_error(encode(encoder, name), golden_.get(std::string(name) + ".embeddings"));
    EXPECT_LT(error, 1e-5) << name;
    RecordProperty(name, std::to_string(error));
  }
}

TEST_P(T5Golden, Bfloat16StaysWithinItsRounding) {
  const T5Encoder encoder = T5Encoder::open(*backend_, folder_, DType::kBF16);
  // Rounding to 8 bits has a relative error of 2⁻⁹/√3 rms. Each layer rounds four times (the normalised input of either
  // half, the attended values, the gated hidden layer); independent, they add in squares. Twice that is allowed.
  const double one_rounding = std::ldexp(1.0, -9) / std::sqrt(3.0);
  const double allowed = 2 * one_rounding * std::sqrt(4.0 * encoder.config().num_layers);
  for (const char* name : {"one", "short", "long"}) {
    EXPECT_LT(relative_error(encode(encoder, name), golden_.get(std::string(name) + ".embeddings")), allowed) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, T5Golden,
                         testing::Combine(kBackends, testing::Values(std::string("square"), std::string("narrow"),
                                                                     std::string("wide"), std::string("first"))),
                         [](const auto& info) { return std::get<0>(info.param) + "_" + std::get<1>(info.param); });

TEST(T5Encoder, RefusesATokenOutsideItsVocabulary) {
  const std::unique_ptr<Backend> backend = make_backend("cpu");
  const T5Encoder encoder = T5Encoder::open(*backend, kT5Data + "square", DType::kF32);
  const std::vector<int32_t> ids{5, 96};
  try {
    encoder.encode(ids);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("96"), testing::HasSubstr("vocabulary")));
  }
  EXPECT_THROW(encoder.encode({}), Error);
}

}  // namespace
}  // namespace calibatt
