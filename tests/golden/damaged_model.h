#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "backend/cpu/make_backend.h"
#include "base/error.h"
#include "io/safetensors.h"

namespace calibatt {

/// A copy of a golden model that a test may damage.
template <class Model>
struct DamagedModel : testing::Test {
  explicit DamagedModel(std::string model) : model(std::move(model)) {}

  void SetUp() override {
    std::filesystem::create_directories(folder);
    std::filesystem::copy(std::string(CALIBATT_GOLDEN_DATA) + "/" + model, folder,
                          std::filesystem::copy_options::recursive | std::filesystem::copy_options::overwrite_existing);
    std::filesystem::permissions(folder / "config.json", std::filesystem::perms::owner_write,
                                 std::filesystem::perm_options::add);
  }
  void TearDown() override { std::filesystem::remove_all(folder); }

  void edit_config(const std::string& from, const std::string& to) {
    std::string text = (std::stringstream() << std::ifstream(folder / "config.json").rdbuf()).str();
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos);
    std::ofstream(folder / "config.json") << text.replace(at, from.size(), to);
  }
  void edit_weights(const std::function<void(std::map<std::string, Tensor>&)>& edit) {
    const std::string path = folder / "diffusion_pytorch_model.safetensors";
    std::map<std::string, Tensor> tensors;
    {
      const Safetensors file = Safetensors::open(path);
      for (const auto& [name, entry] : file.entries()) tensors[name] = file.get(name).clone();
    }
    edit(tensors);
    write_safetensors(path, tensors);
  }
  void expect_error(ErrorKind kind, const std::vector<std::string>& parts) {
    try {
      Model::load(folder, *backend, DType::kF32);
      FAIL() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      for (const std::string& part : parts) EXPECT_THAT(error.what(), testing::HasSubstr(part));
    }
  }

  std::string model;  ///< its folder in the golden data
  std::filesystem::path folder =
      std::filesystem::path(testing::TempDir()) / ("damaged_model_" + std::to_string(::getpid()));
  std::unique_ptr<Backend> backend = make_backend("cpu");
};

}  // namespace calibatt
