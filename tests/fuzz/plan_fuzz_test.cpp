// Deterministic fuzzing: whatever is done to the bytes of a sound plan, loading it gives an Error(kFormat) of one line
// or a plan that is sound in itself. The sanitizer build turns any read past the end into a failure.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "io/atomic_file.h"
#include "io/safetensors.h"
#include "io/test_folder.h"
#include "plan/plan_file.h"
#include "plan/test_plan_files.h"
#include "plan/test_plans.h"

namespace calibatt {
namespace {

using Json = nlohmann::ordered_json;

// The plan, when `load` accepts its input.
std::optional<Plan> outcome(const std::function<Plan()>& load) {
  try {
    Plan plan = load();
    EXPECT_TRUE(plan.density() > 0 && plan.density() <= 1);
    // What was accepted can be written and is then read as the same.
    EXPECT_TRUE(test::same_plan(decode_plan(test::encode(plan), "again"), plan));
    return plan;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kFormat) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return std::nullopt;
  }
}

class PlanFuzz : public ::testing::Test {
 protected:
  unsigned below(size_t limit) { return static_cast<unsigned>(random_() % limit); }

  std::string bytes_of(const Plan& plan) {
    save_plan(plan, folder_ / "sound");
    return read_text_file(folder_ / "sound");
  }
  std::optional<Plan> load(const std::string& bytes) {
    const std::string path = folder_ / "plan";
    std::filesystem::remove(path);
    std::ofstream(path, std::ios::binary) << bytes;
    return outcome([&] { return *load_plan(path); });
  }
  // A changed file that is accepted must mean what it meant: the checksum covers everything that has a meaning.
  void expect_refused_or_equal(const std::string& bytes, const Plan& plan) {
    const auto loaded = load(bytes);
    if (loaded) {
      EXPECT_TRUE(test::same_plan(*loaded, plan));
      ++num_accepted_;
    }
    ++num_cases_;
  }

  // A number that programs tend to trip over, or any.
  int64_t hostile_number() {
    constexpr int64_t kNumbers[] = {0,   1,   2,     3,     63,      64,        127,        128,
                                    255, 256, 65535, 65536, 1 << 24, INT32_MAX, UINT32_MAX, -1};
    return below(2) == 0 ? kNumbers[below(std::size(kNumbers))] : static_cast<int64_t>(below(300));
  }

  void edit_json(PlanFile& file) {
    Json json = Json::parse(file.metadata["plan"], nullptr, false);
    if (json.is_discarded()) return;  // an earlier change
    const auto any_key = [this](const Json& object) {
      return std::next(object.items().begin(), below(object.size())).key();
    };
    if (below(20) == 0) {
      std::string& text = file.metadata["plan"];
      text[below(text.size())] = static_cast<char>(below(256));
      return;
    }
    const char* const section[] = {"", "geometry", "provenance"};
    const char* const chosen = section[below(3)];
    Json& object = *chosen == '\0' ? json : json[chosen];
    if (!object.is_object() || object.empty()) return;  // likewise
    const std::string key = any_key(object);
    switch (below(8)) {
      case 0:
        object.erase(key);
        break;
      case 1:
        object[key] = below(2) == 0 ? Json(nullptr) : Json::array({1, 2});
        break;
      case 2:
        object[key] = below(2) == 0 ? "tiles:1x2x2" : "raster";
        break;
      case 3:
        object[key] = 0.5 + below(3);
        break;
      default:
        object[key] = hostile_number();
    }
    file.metadata["plan"] = json.dump();
  }

  void edit_tensor(PlanFile& file) {
    if (file.tensors.empty()) return;
    const auto chosen = std::next(file.tensors.begin(), below(file.tensors.size()));
    Tensor& tensor = chosen->second;
    const int64_t size = tensor.size();
    switch (size == 0 ? 1 : below(8)) {
      case 0:
        tensor = tensor.reshaped({size, 1});
        return;
      case 1:
        file.tensors.erase(chosen);
        return;
      case 2: {  // cut short
        Tensor shorter(tensor.dtype(), {static_cast<int64_t>(below(static_cast<size_t>(size)))});
        std::memcpy(shorter.raw(), tensor.raw(), shorter.size_bytes());
        tensor = shorter;
        return;
      }
      case 3:  // another type for the same bytes
        tensor = Tensor(DType::kU8, {static_cast<int64_t>(tensor.size_bytes())}, tensor.storage());
        return;
      default:
        break;
    }
    tensor = tensor.clone();
    const size_t at = below(static_cast<size_t>(size)), width = dtype_size(tensor.dtype());
    if (tensor.dtype() == DType::kF64) {
      constexpr double kHostile[] = {std::numeric_limits<double>::quiet_NaN(),
                                     std::numeric_limits<double>::infinity(),
                                     -1,
                                     0,
                                     0.3,
                                     1,
                                     1e300,
                                     -0.0};
      tensor.data<double>()[at] = kHostile[below(std::size(kHostile))];
    } else {
      const int64_t number = below(3) == 0 ? hostile_number() : static_cast<int64_t>(below(8));
      std::memcpy(static_cast<char*>(tensor.raw()) + at * width, &number, width);
    }
  }

  const std::string& bytes_of_cached(int index, const Plan& plan) {
    std::string& bytes = cached_[index];
    if (bytes.empty()) bytes = bytes_of(plan);
    return bytes;
  }

  TestFolder folder_;
  std::map<int, std::string> cached_;
  std::mt19937 random_{20260305};
  int num_cases_ = 0, num_accepted_ = 0;
};

TEST_F(PlanFuzz, EveryTruncationIsRefused) {
  const std::string sound = bytes_of(Plan(test::fixture_parts("tiles")));
  for (size_t size = 0; size < sound.size(); size += 1 + below(3)) {
    ASSERT_FALSE(load(sound.substr(0, size)).has_value()) << size << " bytes";
  }
}

TEST_F(PlanFuzz, EveryFlippedBitIsRefusedOrMeansNothing) {
  const Plan plan(test::example_parts());
  const std::string sound = bytes_of(plan);
  for (size_t at = 0; at < sound.size(); ++at) {
    std::string bytes = sound;
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << (at % 8)));
    const int before = num_accepted_;
    expect_refused_or_equal(bytes, plan);
    const bool is_padding = sound[at] == ' ' || sound[at] == '\0';  // of the header, or behind the sections
    EXPECT_TRUE(num_accepted_ == before || is_padding) << "byte " << at;
  }
  EXPECT_LT(num_accepted_, num_cases_ / 10);
}

TEST_F(PlanFuzz, OverwrittenMovedAndRepeatedBytes) {
  for (int round = 0; round < 1200; ++round) {
    const Plan plan(test::random_parts(static_cast<unsigned>(round % 5)));
    std::string bytes = bytes_of_cached(round % 5, plan);
    const size_t from = below(bytes.size()), length = 1 + below(16);
    switch (round % 4) {
      case 0:
        for (size_t i = from; i < std::min(from + length, bytes.size()); ++i) bytes[i] = static_cast<char>(below(256));
        break;
      case 1:
        bytes.erase(from, length);
        break;
      case 2:
        bytes.insert(from, bytes.substr(below(bytes.size()), length));
        break;
      default:
        std::memset(bytes.data() + from, round % 8 == 3 ? 0xff : 0, std::min(length, bytes.size() - from));
    }
    expect_refused_or_equal(bytes, plan);
  }
}

// Dimensions and offsets of the safetensors header, one at a time.
TEST_F(PlanFuzz, EditedHeaders) {
  const Plan plan(test::fixture_parts("tiles"));
  const std::string sound = bytes_of(plan);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, sound.data(), 8);
  const Json header = Json::parse(sound.substr(8, header_bytes));
  const Json values[] = {0,         1,          -1,    255,   65536, 4294967295u, 4294967296u,
                         INT64_MAX, UINT64_MAX, 1e308, 0.5,   "1",   nullptr,     Json::array(),
                         "F64",     "U8",       "U16", "U32", "F32"};
  const auto write = [&](const Json& changed) {
    const std::string text = changed.dump();
    const uint64_t size = text.size();
    return std::string(reinterpret_cast<const char*>(&size), 8) + text + sound.substr(8 + header_bytes);
  };
  ASSERT_TRUE(load(write(header)).has_value()) << "the unchanged header is sound";
  for (const auto& [name, entry] : header.items()) {
    for (const Json& value : values) {
      for (const auto& [key, old] : entry.items()) {
        Json changed = header;
        if (!old.is_array()) {
          changed[name][key] = value;
          expect_refused_or_equal(write(changed), plan);
          continue;
        }
        for (size_t i = 0; i < old.size(); ++i) {
          changed = header;
          changed[name][key][i] = value;
          expect_refused_or_equal(write(changed), plan);
        }
      }
    }
    Json without = header;
    without.erase(name);
    expect_refused_or_equal(write(without), plan);
  }
  EXPECT_GT(num_cases_, 400);
}

// Sections whose content is hostile: what is decompressed is any bytes, filters among them.
TEST_F(PlanFuzz, HostileMasksUnderRightChecksums) {
  std::vector<PlanFile> all_sound{test::encode(Plan(test::fixture_parts("drift")))};
  for (unsigned seed = 0; seed < 29; ++seed) all_sound.push_back(test::encode(Plan(test::random_parts(seed))));
  int num_refused = 0;
  for (int round = 0; round < 900; ++round) {
    const PlanFile& sound = all_sound[static_cast<size_t>(round) % all_sound.size()];
    PlanFile file = sound;
    const Tensor& ends = sound.tensors.at("section_end");
    const auto site = static_cast<int64_t>(below(static_cast<size_t>(ends.size())));
    const int64_t begin = site == 0 ? 0 : ends.data<int64_t>()[site - 1], end = ends.data<int64_t>()[site];
    if (begin == end) continue;
    const uint8_t* const old = sound.tensors.at("sections").data<uint8_t>();
    std::vector<uint8_t> content = test::frame_content({old + begin, static_cast<size_t>(end - begin)});
    for (int change = 0; change < 2; ++change) {
      content[below(below(2) == 0 ? 4 : content.size()) % content.size()] = static_cast<uint8_t>(below(256));
    }
    if (below(10) == 0) content.resize(content.size() + below(3) - 1);
    const std::string frame = test::zstd_frame(content);
    std::vector<uint8_t> bytes(old, old + begin);
    bytes.insert(bytes.end(), frame.begin(), frame.end());
    bytes.insert(bytes.end(), old + end, old + ends.data<int64_t>()[ends.size() - 1]);
    Tensor sections(DType::kU8, {static_cast<int64_t>(bytes.size())});
    std::copy(bytes.begin(), bytes.end(), sections.data<uint8_t>());
    file.tensors["sections"] = sections;
    file.tensors["section_end"] = ends.clone();
    for (int64_t later = site; later < ends.size(); ++later) {
      file.tensors["section_end"].data<int64_t>()[later] += static_cast<int64_t>(frame.size()) - (end - begin);
    }
    test::repair_checksums(file);
    num_refused += !outcome([&] { return decode_plan(file, "file"); }).has_value();
  }
  EXPECT_GT(num_refused, 300);
}

// Behind a checksum that is right, everything can be hostile: numbers of any tensor, its dtype and shape, the JSON
// text.
TEST_F(PlanFuzz, HostileContentUnderARightChecksum) {
  std::vector<PlanFile> sound;
  for (unsigned seed = 0; seed < 8; ++seed) {
    sound.push_back(test::encode_v1(Plan(test::random_parts(seed))));
    sound.push_back(test::encode_v2(Plan(test::random_parts(seed))));
    sound.push_back(test::encode(Plan(test::random_parts(seed))));
  }
  sound.push_back(test::encode_v1(Plan(test::fixture_parts("tiles"))));
  sound.push_back(test::encode_v2(Plan(test::fixture_parts("tiles"))));
  sound.push_back(test::encode(Plan(test::fixture_parts("experts"))));
  int num_refused = 0;
  for (int round = 0; round < 4000; ++round) {
    PlanFile file = sound[static_cast<size_t>(round) % sound.size()];
    const int num_changes = 1 + static_cast<int>(below(3));
    for (int change = 0; change < num_changes; ++change) {
      if (below(3) == 0) {
        edit_json(file);
      } else {
        edit_tensor(file);
      }
    }
    test::repair_checksums(file);
    num_refused += !outcome([&] { return decode_plan(file, "file"); }).has_value();
  }
  EXPECT_GT(num_refused, 2000) << "most of these changes make no sense";
  EXPECT_LT(num_refused, 4000) << "some of them (another energy target, an interval moved) do";
}

}  // namespace
}  // namespace calibatt
