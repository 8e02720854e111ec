// GGUF files against the gguf library's own reading of them (tools/golden/ggml_forms.py).
#include "io/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <random>

#include "backend/cpu/make_backend.h"
#include "base/error.h"
#include "io/atomic_file.h"
#include "io/safetensors.h"
#include "io/test_folder.h"
#include "model_settings/wan_config.h"
#include "models/original_layout.h"
#include "models/t5/encoder.h"
#include "relative_error.h"

namespace calibatt {
namespace {

using testing::HasSubstr;

const std::string kGgufData = std::string(CALIBATT_GOLDEN_DATA) + "/gguf/";
const std::string kGgufModel = std::string(CALIBATT_GOLDEN_DATA) + "/experts/transformer";

void expect_values(const MappedTensors& found, const Safetensors& expected) {
  for (const auto& [name, entry] : expected.entries()) {
    const Tensor values = converted(found.get(name), DType::kF32), wanted = expected.get(name);
    ASSERT_EQ(values.shape(), wanted.shape()) << name;
    for (int64_t i = 0; i < wanted.size(); ++i) {
      ASSERT_EQ(values.f32()[i], wanted.f32()[i]) << name << " " << i;  // the same operations in float32
    }
  }
}

TEST(Gguf, EveryFormHasTheValuesThatItsLibraryGives) {
  const MappedTensors file = open_gguf(kGgufData + "forms.gguf");
  EXPECT_EQ(file.entries().size(), 6u);
  expect_values(file, Safetensors::open(kGgufData + "forms.safetensors"));
}

TEST(Gguf, OfATransformerIsThatTransformer) {
  const Component found = open_transformer(kGgufData + "wan.gguf", {.settings = kGgufModel}),
                  base = open_transformer(kGgufModel);
  EXPECT_EQ(WanTransformerConfig::from(found.config).fingerprint_settings(),
            WanTransformerConfig::from(base.config).fingerprint_settings());
  ASSERT_EQ(found.tensors.entries().size(), base.tensors.entries().size());
  for (const auto& [name, entry] : base.tensors.entries()) EXPECT_EQ(found.tensors.shape(name), entry.shape) << name;
  expect_values(found.tensors, Safetensors::open(kGgufData + "wan.safetensors"));
}

TEST(Gguf, OfATextEncoderIsThatTextEncoder) {
  const std::string folder = std::string(CALIBATT_GOLDEN_DATA) + "/t5/square";
  const Component found = open_text_encoder(kGgufData + "umt5.gguf", {.settings = folder});
  expect_values(found.tensors, Safetensors::open(kGgufData + "umt5.safetensors"));
  // Its embeddings are those of its values, and the model's but for their 8 bits.
  const std::unique_ptr<Backend> backend = make_backend("cpu");
  const Safetensors golden = Safetensors::open(folder + "/golden.safetensors");
  const Tensor ids = golden.get("long.ids");
  const std::span<const int32_t> tokens{ids.data<int32_t>(), static_cast<size_t>(ids.size())};
  const T5Encoder encoder = T5Encoder::open(*backend, kGgufData + "umt5.gguf", DType::kF32, {.settings = folder});
  const double error = relative_error(encoder.encode(tokens), golden.get("long.embeddings"));
  EXPECT_LT(error, 0.05);
  EXPECT_GT(error, 1e-5);
}

class DamagedGguf : public testing::Test {
 protected:
  /// Empty: it is read, and every tensor lies within it.
  std::string refusal(const std::string& bytes) {
    std::ofstream(folder_ / "x.gguf", std::ios::binary) << bytes;
    try {
      const MappedTensors file = open_gguf(folder_ / "x.gguf");
      for (const auto& [name, entry] : file.entries()) {
        EXPECT_LE(entry.size_bytes, bytes.size());
        file.get(name);
      }
      return "";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kFormat) << error.what();
      return error.what();
    }
  }
  TestFolder folder_;
  const std::string whole_ = read_text_file(kGgufData + "forms.gguf");
};

TEST_F(DamagedGguf, IsRefusedWhereverItEnds) {
  EXPECT_EQ(refusal(whole_), "");
  for (size_t size = 0; size < whole_.size(); size += size < 700 ? 3 : 997) {
    EXPECT_NE(refusal(whole_.substr(0, size)), "") << size;
  }
  EXPECT_THAT(refusal(whole_.substr(0, 60)), HasSubstr("not a complete file"));
  EXPECT_THAT(refusal("GGUF" + std::string("\1\0\0\0", 4) + std::string(16, '\0')), HasSubstr("version 1"));
}

TEST_F(DamagedGguf, WithOtherBytesIsRefusedOrRead) {
  std::mt19937 random(3);
  for (int i = 0; i < 1000; ++i) {
    std::string bytes = whole_;
    for (int change = 0; change < 1 + i % 3; ++change) bytes[random() % 700] = static_cast<char>(random());
    refusal(bytes);  // must end, in either way
  }
}

TEST_F(DamagedGguf, OtherFormsAreNamed) {
  std::string bytes = whole_;
  const size_t at = bytes.find("Q8_0");
  ASSERT_NE(at, std::string::npos);
  bytes[at + 4 + 4 + 16] = 2;  // name, number of axes, two axes; then ggml's number of the form
  EXPECT_THAT(refusal(bytes), HasSubstr("is Q4_0, which is not read; take the file in Q8_0"));
}

}  // namespace
}  // namespace calibatt
