#include "io/fingerprint.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "io/atomic_file.h"
#include "io/safetensors.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

JsonConfig config(const std::string& text) {
  return {parse_json(text, "config.json"), "config.json"};
}

TEST(Hash, IsThePublishedOne) {
  EXPECT_EQ(hash_hex(""), "99aa06d3014798d86001c324468d497f");  // XXH3-128's published value of the empty input
  Hasher whole, parts, other;
  whole.update("abc", 3);
  parts.update("a", 1);
  parts.update("bc", 2);
  EXPECT_EQ(whole.hex(), parts.hex());
  EXPECT_EQ(whole.hex(), hash_hex("abc"));
  other.update(std::string_view("a"));
  other.update(std::string_view("bc"));
  Hasher another;
  another.update(std::string_view("ab"));
  another.update(std::string_view("c"));
  EXPECT_NE(other.hex(), another.hex());
}

TEST(StoredFingerprint, ChangesWithWhatMatters) {
  const TestFolder folder;
  Tensor a = Tensor::zeros(DType::kF32, {2, 3}), b = Tensor::zeros(DType::kF32, {4});
  const auto fingerprint = [&](const std::string& json, const std::map<std::string, Tensor>& tensors) {
    write_safetensors(folder / "m.safetensors", tensors);
    return stored_fingerprint(config(json), Safetensors::open(folder / "m.safetensors"));
  };
  const std::string settings = R"({"_class_name": "Wan", "layers": 2})";
  const std::string base = fingerprint(settings, {{"a", a}, {"b", b}});
  EXPECT_EQ(base.size(), 32u);
  EXPECT_EQ(fingerprint(R"({"layers": 2, "_class_name": "Wan", "_diffusers_version": "0.1"})", {{"a", a}, {"b", b}}),
            base);
  EXPECT_NE(fingerprint(R"({"_class_name": "Wan", "layers": 3})", {{"a", a}, {"b", b}}), base);
  EXPECT_NE(fingerprint(R"({"_class_name": "Won", "layers": 2})", {{"a", a}, {"b", b}}), base);
  EXPECT_NE(fingerprint(settings, {{"a", a.reshaped({3, 2})}, {"b", b}}), base);
  EXPECT_NE(fingerprint(settings, {{"a", a}, {"c", b}}), base);
  EXPECT_NE(fingerprint(settings, {{"a", a}}), base);
  b.f32()[3] = 1e-30f;
  EXPECT_NE(fingerprint(settings, {{"a", a}, {"b", b}}), base);
}

TEST(StoredFingerprint, IsTheSameForShards) {
  const TestFolder folder;
  const Tensor a = Tensor::zeros(DType::kF32, {2, 3}), b = Tensor::zeros(DType::kF32, {4});
  write_safetensors(folder / "whole.safetensors", {{"a", a}, {"b", b}});
  write_safetensors(folder / "1.safetensors", {{"b", b}});
  write_safetensors(folder / "2.safetensors", {{"a", a}});
  write_text_file(folder / "i.json", R"({"weight_map": {"a": "2.safetensors", "b": "1.safetensors"}})");
  EXPECT_EQ(stored_fingerprint(config("{}"), Safetensors::open(folder / "whole.safetensors")),
            stored_fingerprint(config("{}"), Safetensors::open(folder / "i.json")));
}

TEST(StoredFingerprint, CanBeEndedByWhoHearsOfIt) {
  const TestFolder folder;
  write_safetensors(folder / "m.safetensors", {{"a", Tensor::zeros(DType::kF32, {2, 3})}});
  const Safetensors weights = Safetensors::open(folder / "m.safetensors");
  int calls = 0;
  const auto count = [&](int done, int total) {
    EXPECT_EQ(done, 0);
    EXPECT_EQ(total, 1);
    ++calls;
  };
  EXPECT_EQ(stored_fingerprint(config("{}"), weights, count), stored_fingerprint(config("{}"), weights));
  EXPECT_EQ(calls, 1);
  EXPECT_THROW(stored_fingerprint(config("{}"), weights, [](int, int) { throw std::runtime_error("enough"); }),
               std::runtime_error);
}

/// Values that F32, BF16 and F16 all hold.
Tensor plain_values(int64_t count) {
  Tensor tensor(DType::kF32, {count / 4, 4});
  for (int64_t i = 0; i < count; ++i) tensor.f32()[i] = static_cast<float>(i % 251 - 125) * 0.125f;
  return tensor;
}

class ValuesFingerprint : public ::testing::Test {
 protected:
  std::string of(const std::map<std::string, Tensor>& tensors, const std::string& settings = "settings") const {
    write_safetensors(folder_ / "m.safetensors", tensors);
    return values_fingerprint(settings, Safetensors::open(folder_ / "m.safetensors"));
  }
  TestFolder folder_;
};

TEST_F(ValuesFingerprint, IsTheSameHoweverTheValuesAreStored) {
  const Tensor a = plain_values((1 << 20) + 400), b = plain_values(8);  // of two pieces, and of one
  const std::string base = of({{"a", a}, {"b", b}});
  EXPECT_EQ(base.size(), 8u + 32);
  EXPECT_EQ(fingerprint_scheme(base), FingerprintScheme::kValues);
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    EXPECT_EQ(of({{"a", converted(a, dtype)}, {"b", b}}), base) << dtype_name(dtype);
    EXPECT_EQ(of({{"a", converted(a, dtype)}, {"b", converted(b, DType::kBF16)}}), base) << dtype_name(dtype);
  }
  write_safetensors(folder_ / "1.safetensors", {{"b", converted(b, DType::kF16)}});
  write_safetensors(folder_ / "2.safetensors", {{"a", a}});
  write_text_file(folder_ / "i.json", R"({"weight_map": {"a": "2.safetensors", "b": "1.safetensors"}})");
  EXPECT_EQ(values_fingerprint("settings", Safetensors::open(folder_ / "i.json")), base);
  Tensor finer = a.clone();
  finer.f32()[5] *= 1.0005f;  // less than half of a bf16's last place
  EXPECT_EQ(of({{"a", finer}, {"b", b}}), base);
}

TEST_F(ValuesFingerprint, ChangesWithWhatMatters) {
  const Tensor a = plain_values((1 << 20) + 400), b = plain_values(8);
  const std::string base = of({{"a", a}, {"b", b}});
  EXPECT_NE(of({{"a", a}, {"b", b}}, "others"), base);
  EXPECT_NE(of({{"a", a}, {"c", b}}), base);
  EXPECT_NE(of({{"a", b}, {"b", a}}), base);
  EXPECT_NE(of({{"a", a}, {"b", b.reshaped({4, 2})}}), base);
  EXPECT_NE(of({{"a", a}}), base);
  for (const int64_t place : {int64_t{0}, int64_t{1} << 20, a.size() - 1}) {
    Tensor other = a.clone();
    other.f32()[place] += 1;
    EXPECT_NE(of({{"a", other}, {"b", b}}), base) << place;
  }
}

TEST(MergedFingerprint, IsOfTheSameWeightsByValuesOrBySources) {
  const std::string a = merged_fingerprint("values1:aa", "11");
  EXPECT_EQ(a, "values1:aa+from1:11");
  EXPECT_EQ(fingerprint_scheme(a), FingerprintScheme::kValues);
  EXPECT_EQ(parts_of_fingerprint(a).values, "values1:aa");
  EXPECT_EQ(parts_of_fingerprint(a).sources, "11");
  EXPECT_TRUE(same_weights(a, "values1:aa"));
  EXPECT_TRUE(same_weights(a, merged_fingerprint("values1:bb", "11")));
  EXPECT_TRUE(same_weights(a, merged_fingerprint("values1:aa", "22")));
  EXPECT_FALSE(same_weights(a, merged_fingerprint("values1:bb", "22")));
  EXPECT_FALSE(same_weights("values1:aa", "values1:bb"));
}

TEST(FileHash, OfALargeFileSeesItsLengthAndPiecesEverywhere) {
  TestFolder folder;
  const std::string path = folder / "large";
  const uint64_t size = (uint64_t{64} << 20) + 5000;
  std::ofstream(path).close();
  std::filesystem::resize_file(path, size);  // zeros that take no room
  const std::string before = sampled_file_hash(path);
  EXPECT_EQ(sampled_file_hash(path), before);
  const auto hash_with = [&](uint64_t at) {
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(at)).put('x');
    file.close();
    const std::string hash = sampled_file_hash(path);
    file.open(path, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(at)).put('\0');
    return hash;
  };
  for (const uint64_t at : {uint64_t{0}, uint64_t{4095}, size - 4096, (size - 4096) / 255 * 100}) {
    EXPECT_NE(hash_with(at), before) << at;
  }
  std::filesystem::resize_file(path, size + 1);
  EXPECT_NE(sampled_file_hash(path), before);
  std::filesystem::resize_file(path, 1000);
  EXPECT_EQ(sampled_file_hash(path), hash_hex(std::string(1000, '\0')));
  EXPECT_EQ(file_hash(path), hash_hex(std::string(1000, '\0')));
}

TEST_F(ValuesFingerprint, IsAsItWasFirstPublished) {
  EXPECT_EQ(of({{"a", plain_values(400)}, {"b", plain_values(8)}}), "values1:f386d9415d8cd85e9f001365b4491191");
  EXPECT_EQ(fingerprint_scheme("5c7238eec20bafb116948325c56f3a0a"), FingerprintScheme::kStored);
  EXPECT_EQ(fingerprint_scheme(""), FingerprintScheme::kValues);
}

}  // namespace
}  // namespace calibatt
