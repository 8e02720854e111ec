#include "io/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "base/error.h"
#include "io/atomic_file.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

Tensor counting(DType dtype, std::vector<int64_t> shape) {
  Tensor tensor(dtype, std::move(shape));
  for (size_t i = 0; i < tensor.size_bytes(); ++i)
    static_cast<unsigned char*>(tensor.raw())[i] = static_cast<unsigned char>(i + 1);
  return tensor;
}

std::string file_of(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + data;
}

std::string refusal_of_bytes(const std::string& bytes) {
  const TestFolder folder;
  write_text_file(folder / "x.safetensors", bytes);
  try {
    Safetensors::open(folder / "x.safetensors");
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kFormat) << error.what();
    EXPECT_THAT(error.what(), HasSubstr("x.safetensors"));
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.what();
  }
  return "accepted";
}

std::string refusal(const std::string& header, const std::string& data = "") {
  return refusal_of_bytes(file_of(header, data));
}

TEST(Safetensors, WritesAndReadsEveryType) {
  const TestFolder folder;
  std::map<std::string, Tensor> tensors;
  for (const DType dtype : {DType::kF64, DType::kF32, DType::kF16, DType::kBF16, DType::kI64, DType::kI32, DType::kI16,
                            DType::kI8, DType::kU32, DType::kU16, DType::kU8, DType::kBool}) {
    tensors["t." + std::string(dtype_name(dtype))] = counting(dtype, {3, 5});
  }
  tensors["scalar"] = counting(DType::kF32, {});
  tensors["none"] = counting(DType::kF32, {0, 7});
  tensors["näme \"quoted\""] = counting(DType::kU8, {1});
  write_safetensors(folder / "a.safetensors", tensors, {{"format", "pt"}, {"note", "two\nlines"}});

  const Safetensors file = Safetensors::open(folder / "a.safetensors");
  EXPECT_EQ(file.entries().size(), tensors.size());
  EXPECT_EQ(file.metadata().at("note"), "two\nlines");
  for (const auto& [name, expected] : tensors) {
    const Tensor found = file.get(name);
    EXPECT_EQ(found.describe(), expected.describe());
    EXPECT_EQ(std::memcmp(found.raw(), expected.raw(), expected.size_bytes()), 0) << name;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(found.raw()) % dtype_size(found.dtype()), 0u) << name;
  }

  write_safetensors(folder / "b.safetensors", tensors, {{"note", "two\nlines"}, {"format", "pt"}});
  EXPECT_EQ(read_text_file(folder / "a.safetensors"), read_text_file(folder / "b.safetensors"));
}

TEST(Safetensors, TensorsOutliveTheReader) {
  const TestFolder folder;
  write_safetensors(folder / "a.safetensors", {{"x", counting(DType::kU8, {4})}});
  Tensor tensor;
  {
    const Safetensors file = Safetensors::open(folder / "a.safetensors");
    tensor = file.get("x");
  }
  EXPECT_EQ(tensor.data<uint8_t>()[3], 4);
}

TEST(Safetensors, ReadsUnalignedData) {
  const TestFolder folder;
  float values[2] = {1.5f, -2.5f};
  std::string data = "z" + std::string(reinterpret_cast<const char*>(values), sizeof(values));
  write_text_file(
      folder / "u.safetensors",
      file_of(
          R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"f":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})",
          data));
  const Tensor tensor = Safetensors::open(folder / "u.safetensors").get("f");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.raw()) % 4, 0u);
  EXPECT_EQ(tensor.f32()[0], 1.5f);
  EXPECT_EQ(tensor.f32()[1], -2.5f);
}

TEST(Safetensors, ChecksTheShapeThatTheModelNeeds) {
  const TestFolder folder;
  write_safetensors(folder / "a.safetensors", {{"w", counting(DType::kF32, {2, 3})}});
  const Safetensors file = Safetensors::open(folder / "a.safetensors");
  EXPECT_EQ(file.get("w", {2, 3}).size(), 6);
  try {
    file.get("w", {3, 2});
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("\"w\""), HasSubstr("F32 [2, 3]"), HasSubstr("[3, 2]")));
  }
  EXPECT_THROW(file.get("v"), Error);
}

TEST(Safetensors, ReadsShards) {
  const TestFolder folder;
  write_safetensors(folder / "model-00001-of-00002.safetensors", {{"a", counting(DType::kU8, {2})}});
  write_safetensors(folder / "model-00002-of-00002.safetensors",
                    {{"b", counting(DType::kF32, {2})}, {"c", counting(DType::kU8, {9})}});
  const std::string index = folder / "model.safetensors.index.json";
  const auto write_index = [&](const std::string& map) {
    write_text_file(index, R"({"metadata":{},"weight_map":)" + map + "}");
  };
  write_index(
      R"({"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors","c":"model-00002-of-00002.safetensors"})");
  const Safetensors file = Safetensors::open_folder(folder.path());
  EXPECT_EQ(file.entries().size(), 3u);
  EXPECT_EQ(file.get("a").size(), 2);
  EXPECT_EQ(file.get("c").data<uint8_t>()[8], 9);

  const auto refusal = [&] {
    try {
      Safetensors::open(index);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  write_index(R"({"a":"model-00002-of-00002.safetensors"})");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("\"a\""), HasSubstr("is not in")));
  write_index(R"({"a":"../x.safetensors"})");
  EXPECT_THAT(refusal(), HasSubstr("beside the index"));
  write_index(R"({"a":"gone.safetensors"})");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("gone.safetensors"), HasSubstr("no such file")));
  write_index(R"([1])");
  EXPECT_THAT(refusal(), HasSubstr("expected an object"));
}

TEST(Safetensors, FindsTheWeightsOfAFolder) {
  const TestFolder folder;
  try {
    Safetensors::open_folder(folder.path());
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kNotFound);
    EXPECT_THAT(error.what(), HasSubstr("diffusion_pytorch_model.safetensors"));
  }
  write_safetensors(folder / "model.safetensors", {{"m", counting(DType::kU8, {1})}});
  EXPECT_TRUE(Safetensors::open_folder(folder.path()).contains("m"));
  write_safetensors(folder / "diffusion_pytorch_model.safetensors", {{"d", counting(DType::kU8, {1})}});
  EXPECT_TRUE(Safetensors::open_folder(folder.path()).contains("d"));
}

TEST(Safetensors, RefusesBrokenFraming) {
  EXPECT_THAT(refusal_of_bytes(""), HasSubstr("is empty"));
  EXPECT_THAT(refusal_of_bytes("1234567"), HasSubstr("only 7 bytes"));
  EXPECT_THAT(refusal_of_bytes(std::string(8, '\xff') + "{}"), HasSubstr("header is said to have"));
  EXPECT_THAT(refusal_of_bytes(std::string("\x03\0\0\0\0\0\0\0{}", 10)), HasSubstr("header is said to have"));
  EXPECT_THAT(refusal_of_bytes(std::string(8, '\0')), HasSubstr("nothing but zeros"));
  EXPECT_THAT(refusal_of_bytes("\x89PNG\r\n\x1a\n, a picture"),
              AllOf(HasSubstr("this is not a safetensors file"), Not(HasSubstr("copy it anew"))));
  EXPECT_THAT(refusal("[1]"), HasSubstr("does not begin"));
  EXPECT_THAT(refusal("{"), HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal("{\"a\":" + std::string(1000, '[') + std::string(1000, ']') + "}"), HasSubstr("nested deeper"));
  EXPECT_THAT(refusal("{}", "xyz"), HasSubstr("belong to no tensor"));
  EXPECT_EQ(refusal("{}"), "accepted");
  EXPECT_EQ(refusal("{}   "), "accepted");
}

TEST(Safetensors, RefusesBrokenEntries) {
  const auto entry = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"({"x":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
  };
  const std::string four = "abcd";
  EXPECT_EQ(refusal(entry("U8", "[4]", "[0,4]"), four), "accepted");
  EXPECT_THAT(refusal(entry("U8", "[5]", "[0,5]"), four), AllOf(HasSubstr("\"x\""), HasSubstr("outside")));
  EXPECT_THAT(refusal(entry("U8", "[4]", "[4,0]"), four), HasSubstr("outside"));
  EXPECT_THAT(refusal(entry("U8", "[4]", "[1,4]"), four), HasSubstr("span 3 bytes"));
  EXPECT_THAT(refusal(entry("F32", "[4]", "[0,4]"), four), HasSubstr("need 16"));
  EXPECT_THAT(refusal(entry("U8", "[4]", "[0,-4]"), four), HasSubstr("not two sizes"));
  EXPECT_THAT(refusal(entry("U8", "[4]", "[0.0,4]"), four), HasSubstr("not two sizes"));
  EXPECT_THAT(refusal(entry("U8", "[4]", "[0,4,4]"), four), HasSubstr("not two sizes"));
  EXPECT_THAT(refusal(entry("U8", "[-4]", "[0,4]"), four), HasSubstr("not a size"));
  EXPECT_THAT(refusal(entry("U8", "[4.5]", "[0,4]"), four), HasSubstr("not a size"));
  EXPECT_THAT(refusal(entry("U8", "4", "[0,4]"), four), HasSubstr("no shape"));
  EXPECT_THAT(refusal(entry("U8", "[4294967296,4294967296,1]", "[0,4]"), four), HasSubstr("impossibly large"));
  EXPECT_THAT(refusal(entry("U8", "[0,9223372036854775807,9223372036854775807]", "[0,0]")),
              HasSubstr("impossibly large"));
  EXPECT_EQ(refusal(entry("F8_E4M3", "[4]", "[0,4]"), four), "accepted");
  EXPECT_THAT(refusal(entry("F8_E5M2", "[2]", "[0,4]"), four), HasSubstr("need 2"));
  EXPECT_THAT(refusal(entry("F8_E8M0", "[4]", "[0,4]"), four), AllOf(HasSubstr("F8_E8M0"), HasSubstr("not supported")));
  EXPECT_THAT(refusal(R"({"x":3})"), HasSubstr("not an object"));
  EXPECT_THAT(refusal(R"({"x":{"shape":[],"data_offsets":[0,0]}})"), HasSubstr("no dtype"));
  EXPECT_THAT(refusal(R"({"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"more":1}})"), HasSubstr("unknown key"));
  EXPECT_THAT(refusal(R"({"__metadata__":{"a":1}})"), HasSubstr("not a string"));
  EXPECT_THAT(refusal(R"({"__metadata__":[]})"), HasSubstr("__metadata__"));
}

TEST(Safetensors, RefusesTensorsThatDoNotTileTheData) {
  const auto two = [](const std::string& first, const std::string& second) {
    return R"({"x":{"dtype":"U8","shape":[2],"data_offsets":)" + first +
           R"(},"y":{"dtype":"U8","shape":[2],"data_offsets":)" + second + "}}";
  };
  EXPECT_EQ(refusal(two("[0,2]", "[2,4]"), "abcd"), "accepted");
  EXPECT_THAT(refusal(two("[0,2]", "[1,3]"), "abc"), HasSubstr("overlaps"));
  EXPECT_THAT(refusal(two("[0,2]", "[0,2]"), "ab"), HasSubstr("overlaps"));
  EXPECT_THAT(refusal(two("[0,2]", "[3,5]"), "abcde"), HasSubstr("gap"));
  EXPECT_THAT(
      refusal(
          R"({"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})"),
      HasSubstr("appears twice"));
}

// A reader that looks at all earlier tensors for each one takes more than ten minutes here.
TEST(Safetensors, HeadersOfManyTensorsAreReadInLinearTime) {
  const TestFolder folder;
  constexpr int kTensors = 200000;
  std::string header = "{";
  for (int i = 0; i < kTensors; ++i) {
    header += (i > 0 ? ",\"" : "\"") + std::to_string(i) + R"(":{"dtype":"F32","shape":[0],"data_offsets":[0,0]})";
  }
  header += "}";
  std::ofstream file(folder / "x.safetensors", std::ios::binary);
  const uint64_t size = header.size();
  file.write(reinterpret_cast<const char*>(&size), sizeof(size));
  file << header;
  file.close();
  EXPECT_EQ(Safetensors::open(folder / "x.safetensors").entries().size(), size_t{kTensors});
}

}  // namespace
}  // namespace calibatt
