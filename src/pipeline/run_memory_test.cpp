#include "pipeline/run_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "io/test_folder.h"
#include "models/registry.h"

namespace calibatt {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

const std::string kTiny = CALIBATT_MODELS_DIR "/tiny-wan";
constexpr uint64_t kForward = 6 * 256 * 256 + 2 * 256 * 1024;  // elements of a block's layers that may be in 8 bits
constexpr uint64_t kBF16 = 2, kBlocks = 8;

GenerateOptions run_of(const ModelFiles& files, int kept_steps) {
  GenerateOptions options;
  options.kept_steps = kept_steps;
  return resolve_options(options, files.description());
}

Arithmetic in_eight_bits(bool offload = false) {
  Arithmetic loaded{DType::kBF16, true};
  loaded.offload = offload;
  return loaded;
}

TEST(RunMemory, CountsTheBuffersOfStepsWithout8Bits) {
  const auto files = open_model(kTiny);
  const MemoryEstimate all = run_memory(*files, run_of(*files, 0), {}, in_eight_bits()),
                       some = run_memory(*files, run_of(*files, 1), {}, in_eight_bits());
  EXPECT_EQ(some.weights, all.weights);
  EXPECT_EQ(some.activations, all.activations + 2 * kBF16 * kForward);
  EXPECT_EQ(some.host_weights, kBlocks * kBF16 * kForward);
  EXPECT_EQ(all.host_weights, 0U);
  const Arithmetic wide(DType::kBF16);
  EXPECT_EQ(run_memory(*files, run_of(*files, 1), {}, wide).activations,
            run_memory(*files, run_of(*files, 0), {}, wide).activations)
      << "nothing is in 8 bits";
}

// A run that has the largest memory of any is warned of with the next thing to try.
TEST(RunMemory, TheWarningAdvisesWhatIsNotDoneYet) {
  const auto files = open_model(kTiny);
  const GenerateOptions run = run_of(*files, 1);
  const auto warning = [&](const Arithmetic& loaded, uint64_t device) {
    return run_memory_warning(*files, run, {}, loaded, {uint64_t{1} << 40, device});
  };
  const uint64_t needed = run_memory(*files, run, {}, in_eight_bits()).beside_weights();
  EXPECT_EQ(warning(in_eight_bits(), needed), "");
  EXPECT_THAT(warning(in_eight_bits(), needed - 1), HasSubstr("of the GPU's memory"));
  EXPECT_THAT(warning(in_eight_bits(), needed - 1), HasSubstr("or give --offload"));
  EXPECT_THAT(warning(in_eight_bits(true), 1), HasSubstr("choose a smaller size"));
  EXPECT_THAT(warning(in_eight_bits(true), 1), Not(HasSubstr("--offload")));
}

TEST(RunMemory, OfTwoTransformersThatStayEachHasItsStepsWithout8Bits) {
  const TestFolder folder;
  fs::copy(kTiny, folder.path(), fs::copy_options::recursive);
  fs::copy(folder / "transformer", folder / "transformer_2", fs::copy_options::recursive);
  auto index = nlohmann::json::parse(std::ifstream(folder / "model_index.json"));
  index["transformer_2"] = index["transformer"];
  index["boundary_ratio"] = 0.875;
  std::ofstream(folder / "model_index.json") << index;
  const auto files = open_model(folder.path());
  const int steps = *run_of(*files, 0).steps;
  const auto host_weights = [&](int kept_steps, bool offload) {
    return run_memory(*files, run_of(*files, kept_steps), {}, in_eight_bits(offload)).host_weights;
  };
  constexpr uint64_t kWide = kBlocks * kBF16 * kForward;
  EXPECT_EQ(transformers_without_8_bits(run_of(*files, 0), files->description()), 0);
  EXPECT_EQ(transformers_without_8_bits(run_of(*files, 1), files->description()), 1);
  EXPECT_EQ(transformers_without_8_bits(run_of(*files, steps), files->description()), 2);
  EXPECT_EQ(host_weights(1, true), host_weights(0, true) + kWide);
  EXPECT_EQ(host_weights(steps, true), host_weights(0, true) + 2 * kWide);
  EXPECT_EQ(host_weights(steps, false), kWide) << "the first goes before the second comes";
}

}  // namespace
}  // namespace calibatt
