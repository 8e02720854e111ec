#include "io/torch_checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <functional>

#include "base/error.h"
#include "io/safetensors.h"
#include "io/test_folder.h"
#include "io/test_torch_file.h"

namespace calibatt {
namespace {

using test::pickled;
using test::TorchTensor;
using test::ZipPart;
using testing::AllOf;
using testing::HasSubstr;

std::string refusal_of(const std::string& bytes) {
  const TestFolder folder;
  test::write_bytes(folder / "x.pth", bytes);
  try {
    open_torch_checkpoint(folder / "x.pth");
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kFormat) << error.what();
    EXPECT_THAT(error.what(), HasSubstr("x.pth: "));
    EXPECT_THAT(error.what(), HasSubstr("; "));  // what to do
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.what();
  }
  return "accepted";
}

constexpr const char* kSixFloats = "aaaabbbbccccddddeeeeffff";

std::string refusal_of_pickle(const std::string& pickle, const std::string& data = kSixFloats) {
  return refusal_of(test::zip_of({{"a/data.pkl", pickle}, {"a/data/0", data}}));
}

TorchTensor sound() {
  return {"FloatStorage", "0", 6, 0, {2, 3}, {3, 1}};
}

std::string refusal_of_tensor(const TorchTensor& tensor, const std::string& data = kSixFloats) {
  return refusal_of_pickle(test::pickled_dict(pickled("w") + tensor.pickle()), data);
}

// Written by torch itself: tools/golden/original_layout.py.
TEST(TorchCheckpoint, ReadsWhatTorchWrites) {
  const MappedTensors file = open_torch_checkpoint(CALIBATT_GOLDEN_DIR "/original/state_dict.pth");
  EXPECT_EQ(file.entries().size(), 15u);
  const auto expect_counting = [&](const std::string& name, DType dtype, auto one) {
    const Tensor tensor = file.get(name, {2, 3});
    ASSERT_EQ(tensor.dtype(), dtype);
    for (int i = 0; i < 6; ++i) EXPECT_EQ(tensor.data<decltype(one)>()[i], static_cast<decltype(one)>(i)) << name;
  };
  expect_counting("torch.float32", DType::kF32, 1.0f);
  expect_counting("torch.float64", DType::kF64, 1.0);
  expect_counting("torch.int64", DType::kI64, int64_t{1});
  expect_counting("torch.int32", DType::kI32, int32_t{1});
  expect_counting("torch.int16", DType::kI16, int16_t{1});
  expect_counting("torch.int8", DType::kI8, int8_t{1});
  expect_counting("torch.uint8", DType::kU8, uint8_t{1});
  for (const auto& [name, dtype] :
       {std::pair("torch.bfloat16", DType::kBF16), std::pair("torch.float16", DType::kF16)}) {
    const Tensor tensor = file.get(name, {2, 3});
    ASSERT_EQ(tensor.dtype(), dtype);
    const Tensor wide = converted(tensor, DType::kF32);
    for (int i = 0; i < 6; ++i) EXPECT_EQ(wide.f32()[i], static_cast<float>(i)) << name;
  }
  const Tensor whole = file.get("whole", {300}), part = file.get("part", {4, 11});
  EXPECT_EQ(part.raw(), whole.f32() + 256);  // views of one storage, in place
  EXPECT_EQ(part.f32()[43], 299);
  EXPECT_EQ(file.get("parameter", {4}).f32()[3], 3);
  EXPECT_EQ(file.get("scalar", {}).f32()[0], 7);
  EXPECT_EQ(file.get("none", {0, 3}).size(), 0);
  EXPECT_EQ(file.get("flags").dtype(), DType::kBool);
  EXPECT_EQ(file.get("flags").data<uint8_t>()[1], 1);
}

TEST(TorchCheckpoint, ReadsPlainAndZip64Archives) {
  const TestFolder folder;
  Tensor weight = Tensor::zeros(DType::kF32, {2, 3}), bias = Tensor::zeros(DType::kBF16, {5});
  for (int i = 0; i < 6; ++i) weight.f32()[i] = static_cast<float>(i);
  for (const bool zip64 : {false, true}) {
    test::write_bytes(folder / "x.pth", test::torch_file_of({{"weight", weight}, {"bias", bias}}, zip64));
    Tensor found;
    {
      const MappedTensors file = open_torch_checkpoint(folder / "x.pth");
      EXPECT_EQ(file.entries().size(), 2u);
      found = file.get("weight", {2, 3});
      EXPECT_THAT(file.describe("bias"), AllOf(HasSubstr("x.pth"), HasSubstr("\"bias\"")));
      EXPECT_EQ(file.get("bias").size_bytes(), 10u);
    }
    EXPECT_EQ(found.f32()[5], 5);  // outlives the reader
  }
}

// The public text encoder has 11 GB. Here most of a file is a hole, which takes no room on the disk.
TEST(TorchCheckpoint, OpensFilesOfManyGigabytesByWhatDescribesThem) {
  constexpr uint64_t kHole = uint64_t{5} << 30;
  const std::string marked(64, 'm');
  const TorchTensor large{
      "ByteStorage", "0", static_cast<int64_t>(kHole + 64), 0, {static_cast<int64_t>(kHole + 64)}, {1}};
  TorchTensor small = sound();
  small.key = "1";
  std::string zip = test::zip_of(
      {{"a/data.pkl", test::pickled_dict(pickled("large") + large.pickle() + pickled("small") + small.pickle())},
       {"a/data/0", marked},
       {"a/data/1", kSixFloats}},
      true);
  const auto behind_the_hole = [&](size_t at) {
    uint64_t value = 0;
    std::memcpy(&value, zip.data() + at, sizeof(value));
    zip.replace(at, sizeof(value), test::number(value + kHole));
  };
  const size_t of_large = zip.rfind("a/data/0") + 12, of_small = zip.rfind("a/data/1") + 12;  // their ZIP64 fields
  behind_the_hole(of_large);
  behind_the_hole(of_large + 8);
  behind_the_hole(of_small + 16);
  behind_the_hole(zip.rfind("PK\x06\x06") + 48);
  behind_the_hole(zip.rfind("PK\x06\x07") + 8);
  const size_t cut = zip.find(marked) + marked.size();

  const TestFolder folder;
  std::ofstream file(folder / "x.pth", std::ios::binary);
  file << zip.substr(0, cut);
  file.seekp(static_cast<std::streamoff>(cut + kHole));
  file << zip.substr(cut);
  file.close();
  const MappedTensors tensors = open_torch_checkpoint(folder / "x.pth");
  EXPECT_EQ(tensors.get("large").size_bytes(), kHole + 64);
  EXPECT_EQ(static_cast<const char*>(tensors.get("large").raw())[63], 'm');
  EXPECT_EQ(std::memcmp(tensors.get("small", {2, 3}).raw(), kSixFloats, 24), 0);
}

TEST(TorchCheckpoint, NamesFilesThatAreNotOne) {
  EXPECT_THAT(refusal_of(""), HasSubstr("is empty"));
  EXPECT_THAT(refusal_of(std::string(100, 'x')), AllOf(HasSubstr("cut short"), HasSubstr("copy it anew")));
  const std::string old("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02", 17);
  EXPECT_THAT(refusal_of(old + std::string(100, 'x')), AllOf(HasSubstr("before 1.6"), HasSubstr("save it again")));
  EXPECT_THAT(refusal_of(test::zip_of({{"word/document.xml", "<a/>"}})), HasSubstr("without data.pkl"));
  EXPECT_THAT(refusal_of(test::zip_of({{"a/data.pkl", "."}, {"b/data.pkl", "."}})), HasSubstr("more than one"));
  EXPECT_THAT(refusal_of(test::zip_of({{"a/data.pkl", "."}, {"a/data.pkl", "."}})), HasSubstr("twice"));
  EXPECT_THAT(refusal_of(test::zip_of({{"a/data.pkl", ".", 8}})),
              AllOf(HasSubstr("compressed"), HasSubstr("data.pkl")));
  EXPECT_THAT(refusal_of(test::zip_of({{"a/data.pkl", test::pickled_dict("")}, {"a/byteorder", "big"}})),
              AllOf(HasSubstr("byte order"), HasSubstr("\"big\"")));
  const TestFolder folder;
  try {
    open_torch_checkpoint(folder / "gone.pth");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kNotFound);
  }
}

TEST(TorchCheckpoint, RefusesRecordsThatCannotBe) {
  const std::string zip = test::zip_of({{"a/data.pkl", test::pickled_dict("")}, {"a/data/0", kSixFloats}});
  ASSERT_EQ(refusal_of(zip), "accepted");
  const size_t end = zip.rfind("PK\x05\x06"), second = zip.rfind("PK\x01\x02"), first = zip.find("PK\x01\x02");
  const auto changed = [&](size_t at, const std::string& bytes) {
    return refusal_of(std::string(zip).replace(at, bytes.size(), bytes));
  };
  EXPECT_THAT(changed(end + 10, test::u16(3)), HasSubstr("said to list 3 records"));
  EXPECT_THAT(changed(second, "PK??"), HasSubstr("record 1 of its directory is not there"));
  EXPECT_THAT(changed(end + 16, test::u32(zip.size())), HasSubstr("which it cannot be"));
  EXPECT_THAT(changed(end + 4, test::u16(1)), HasSubstr("several files"));
  EXPECT_THAT(changed(second + 20, test::u32(4000) + test::u32(4000)),
              AllOf(HasSubstr("a/data/0"), HasSubstr("4000 bytes reaches beyond")));
  EXPECT_THAT(changed(second + 20, test::u32(0xffffffff) + test::u32(0xffffffff)), HasSubstr("ZIP64"));
  EXPECT_THAT(changed(second + 42, test::u32(1)), HasSubstr("no header at byte 1"));
  EXPECT_THAT(changed(second + 42, test::u32(0)), HasSubstr("another name"));
  EXPECT_THAT(changed(second + 28, test::u16(60000)), HasSubstr("beyond the directory"));
  const size_t data = zip.find(kSixFloats) - zip.find("\x80\x02");  // from one record's data into the other's
  EXPECT_THAT(changed(first + 20, test::u32(data + 1) + test::u32(data + 1)), HasSubstr("overlap"));
}

TEST(TorchCheckpoint, RunsNothing) {
  const auto of = [](const std::string& pickle) { return refusal_of_pickle("\x80\x02" + pickle + "."); };
  EXPECT_THAT(of(test::pickled_global("os", "system") + "(" + pickled("true") + "tR"),
              AllOf(HasSubstr("\"os system\""), HasSubstr("safetensors")));
  EXPECT_THAT(of("(lp0\n"), AllOf(HasSubstr("0x6c"), HasSubstr("at byte 3")));
  EXPECT_THAT(of(pickled("text") + ")R"), HasSubstr("no function"));
  EXPECT_THAT(of("\x80\x04}"), HasSubstr("protocol 4"));
  EXPECT_THAT(of(pickled("text")), HasSubstr("no dictionary"));
  EXPECT_THAT(of("}}"), HasSubstr("2 values"));
  EXPECT_THAT(of("}" + pickled("a") + pickled("b") + "s"), AllOf(HasSubstr("\"a\""), HasSubstr("not a tensor")));
  EXPECT_THAT(of("}" + pickled(3) + pickled("b") + "s"), HasSubstr("not a name"));
  EXPECT_THAT(of("}(" + pickled("a") + "u"), HasSubstr("without a value"));
  EXPECT_THAT(of("h\x07"), HasSubstr("never remembered"));
  EXPECT_THAT(of("s"), HasSubstr("not there"));
  EXPECT_THAT(of("}}b" + pickled("a") + "b"), HasSubstr("state of its own"));
  EXPECT_THAT(of("X" + test::u32(1000) + "abc"), HasSubstr("ends within"));
  EXPECT_THAT(of("ctorch"), HasSubstr("name without an end"));
  EXPECT_THAT(refusal_of_pickle(""), HasSubstr("ends within"));
  EXPECT_THAT(refusal_of_pickle(std::string(9 << 20, 'N')), HasSubstr("more than"));

  EXPECT_THAT(of("}q\x01(h\x01h\x01u"), HasSubstr("not a name"));  // a dictionary in itself
}

TEST(TorchCheckpoint, RefusesTensorsThatDoNotFitTheirStorage) {
  ASSERT_EQ(refusal_of_tensor(sound()), "accepted");
  const auto changed = [&](const std::function<void(TorchTensor&)>& change) {
    TorchTensor tensor = sound();
    change(tensor);
    return refusal_of_tensor(tensor);
  };
  EXPECT_THAT(changed([](auto& t) {
                t.strides = {1, 2};
              }),
              AllOf(HasSubstr("\"w\""), HasSubstr("not contiguous"), HasSubstr(".contiguous()")));
  EXPECT_EQ(changed([](auto& t) { t.shape = {1, 6}, t.strides = {77, 1}; }), "accepted");  // what is never stepped
  EXPECT_THAT(changed([](auto& t) { t.strides = {1}; }), HasSubstr("one stride"));
  EXPECT_THAT(changed([](auto& t) { t.offset = 1; }), HasSubstr("outside of its storage"));
  EXPECT_THAT(changed([](auto& t) { t.offset = INT64_MAX; }), HasSubstr("outside of its storage"));
  EXPECT_THAT(changed([](auto& t) { t.offset = -1; }), HasSubstr("outside of its storage"));
  EXPECT_THAT(changed([](auto& t) { t.capacity = 7; }), AllOf(HasSubstr("7 elements"), HasSubstr("24 bytes")));
  EXPECT_THAT(changed([](auto& t) { t.capacity = -1; }), HasSubstr("not described"));
  EXPECT_THAT(changed([](auto& t) { t.key = "1"; }), AllOf(HasSubstr("\"1\""), HasSubstr("not in the file")));
  EXPECT_THAT(changed([](auto& t) { t.key = "../data.pkl"; }), HasSubstr("not in the file"));
  EXPECT_THAT(changed([](auto& t) { t.storage = "Float8_e4m3fnStorage"; }), HasSubstr("Float8_e4m3fnStorage"));
  EXPECT_THAT(changed([](auto& t) { t.storage = "DoubleStorage"; }), HasSubstr("6 elements"));
  EXPECT_THAT(changed([](auto& t) { t.shape = {-2, -3}; }), HasSubstr("not a size"));
  EXPECT_THAT(changed([](auto& t) { t.shape = {INT64_MAX, INT64_MAX}; }), HasSubstr("impossibly large"));
  EXPECT_THAT(changed([](auto& t) { t.shape = {INT64_MAX, 0}; }), HasSubstr("impossibly large"));
  EXPECT_THAT(refusal_of_pickle(test::pickled_dict(pickled("w") + sound().pickle() + pickled("w") + sound().pickle())),
              HasSubstr("twice"));
}

TEST(MappedTensors, RenamedTensorsKeepTheirStoredNameForMessages) {
  const TestFolder folder;
  write_safetensors(folder / "a.safetensors",
                    {{"x", Tensor::zeros(DType::kF32, {2})}, {"y", Tensor::zeros(DType::kF32, {1})}});
  const Safetensors file = Safetensors::open(folder / "a.safetensors");
  const MappedTensors renamed = file.renamed([](const std::string& name) { return "layer." + name; });
  EXPECT_FALSE(renamed.contains("x"));
  EXPECT_EQ(renamed.get("layer.x", {2}).raw(), file.get("x").raw());
  EXPECT_THAT(renamed.describe("layer.x"), AllOf(HasSubstr("a.safetensors"), HasSubstr("\"x\"")));
  EXPECT_THROW(file.renamed([](const std::string&) { return std::string("one"); }), Error);
}

}  // namespace
}  // namespace calibatt
