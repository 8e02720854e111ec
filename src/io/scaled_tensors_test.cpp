// Scales beside matrices in fp8: what is read is in tests/golden/files_test.cpp, what is refused is here.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "io/atomic_file.h"
#include "io/safetensors.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class Scales : public testing::Test {
 protected:
  /// A file of tensors in a row; F8 ones hold the element 1 everywhere, F32 ones `scale`.
  struct Part {
    std::string name, dtype, shape;
    int count;
    float scale = 0.5f;
  };
  std::string refusal(const std::vector<Part>& parts) {
    std::string header, data;
    for (const Part& part : parts) {
      const size_t begin = data.size();
      for (int i = 0; i < part.count; ++i) {
        std::string value(part.dtype == "F32" ? sizeof(float) : 1, '\x38');
        if (part.dtype == "F32") std::memcpy(value.data(), &part.scale, sizeof(float));
        data += value;
      }
      header += (header.empty() ? "{\"" : ",\"") + part.name + R"(":{"dtype":")" + part.dtype + R"(","shape":)" +
                part.shape + R"(,"data_offsets":[)" + std::to_string(begin) + "," + std::to_string(data.size()) + "]}";
    }
    header += "}";
    const uint64_t size = header.size();
    write_text_file(path_, std::string(reinterpret_cast<const char*>(&size), sizeof(size)) + header + data);
    try {
      const Safetensors file = Safetensors::open(path_);
      EXPECT_FALSE(file.contains("scaled_fp8"));
      return "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kFormat);
      return error.what();
    }
  }
  static Part matrix(const std::string& name) { return {name, "F8_E4M3", "[2,2]", 4}; }
  TestFolder folder_;
  const std::string path_ = folder_ / "x.safetensors";
};

TEST_F(Scales, ThatAMatrixLacksAreMissed) {
  const Part marker{"scaled_fp8", "F8_E4M3", "[2]", 2}, scale{"b.scale_weight", "F32", "[]", 1};
  EXPECT_EQ(refusal({matrix("a.weight"), matrix("b.weight")}), "accepted") << "a plain cast";
  EXPECT_THAT(refusal({matrix("a.weight"), marker}), AllOf(HasSubstr("x.safetensors"), HasSubstr("\"a.weight\""),
                                                           HasSubstr("no scale"), HasSubstr("scaled_fp8")));
  EXPECT_THAT(refusal({matrix("a.weight"), matrix("b.weight"), scale}),
              AllOf(HasSubstr("\"a.weight\""), HasSubstr("b.scale_weight")));
  EXPECT_EQ(refusal({{"a.weight", "F8_E4M3", "[4]", 4}, matrix("b.weight"), scale, marker}), "accepted")
      << "a vector needs none";
}

TEST_F(Scales, ThatAreNoFactorsAreRefused) {
  for (const float scale : {0.0f, -1.0f, std::numeric_limits<float>::infinity(), std::nanf("")}) {
    EXPECT_THAT(refusal({matrix("a.weight"), {"a.weight_scale", "F32", "[]", 1, scale}}),
                AllOf(HasSubstr("\"a.weight_scale\""), HasSubstr("above 0")))
        << scale;
  }
}

TEST_F(Scales, AreOneOrOneOfEachRow) {
  const auto shaped = [&](const std::string& shape, int count) {
    return refusal({matrix("a.weight"), {"a.weight_scale", "F32", shape, count}});
  };
  for (const char* shape : {"[]", "[1]", "[1,1]"}) EXPECT_EQ(shaped(shape, 1), "accepted") << shape;
  for (const char* shape : {"[2]", "[2,1]"}) EXPECT_EQ(shaped(shape, 2), "accepted") << shape;
  EXPECT_THAT(shaped("[1,2]", 2), AllOf(HasSubstr("\"a.weight_scale\""), HasSubstr("[1, 2]"))) << "of each column";
  EXPECT_THAT(shaped("[2,2]", 4), HasSubstr("[2, 2]"));
}

}  // namespace
}  // namespace calibatt
