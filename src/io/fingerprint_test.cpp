#include "io/fingerprint.h"

#include <gtest/gtest.h>

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

TEST(ModelFingerprint, ChangesWithWhatMatters) {
  const TestFolder folder;
  Tensor a = Tensor::zeros(DType::kF32, {2, 3}), b = Tensor::zeros(DType::kF32, {4});
  const auto fingerprint = [&](const std::string& json, const std::map<std::string, Tensor>& tensors) {
    write_safetensors(folder / "m.safetensors", tensors);
    return model_fingerprint(config(json), Safetensors::open(folder / "m.safetensors"));
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

TEST(ModelFingerprint, IsTheSameForShards) {
  const TestFolder folder;
  const Tensor a = Tensor::zeros(DType::kF32, {2, 3}), b = Tensor::zeros(DType::kF32, {4});
  write_safetensors(folder / "whole.safetensors", {{"a", a}, {"b", b}});
  write_safetensors(folder / "1.safetensors", {{"b", b}});
  write_safetensors(folder / "2.safetensors", {{"a", a}});
  write_text_file(folder / "i.json", R"({"weight_map": {"a": "2.safetensors", "b": "1.safetensors"}})");
  EXPECT_EQ(model_fingerprint(config("{}"), Safetensors::open(folder / "whole.safetensors")),
            model_fingerprint(config("{}"), Safetensors::open(folder / "i.json")));
}

TEST(ModelFingerprint, CanBeEndedByWhoHearsOfIt) {
  const TestFolder folder;
  write_safetensors(folder / "m.safetensors", {{"a", Tensor::zeros(DType::kF32, {2, 3})}});
  const Safetensors weights = Safetensors::open(folder / "m.safetensors");
  int calls = 0;
  const auto count = [&](int done, int total) {
    EXPECT_EQ(done, 0);
    EXPECT_EQ(total, 1);
    ++calls;
  };
  EXPECT_EQ(model_fingerprint(config("{}"), weights, count), model_fingerprint(config("{}"), weights));
  EXPECT_EQ(calls, 1);
  EXPECT_THROW(model_fingerprint(config("{}"), weights, [](int, int) { throw std::runtime_error("enough"); }),
               std::runtime_error);
}

}  // namespace
}  // namespace calibatt
