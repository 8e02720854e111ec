#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "io/test_folder.h"
#include "models/registry.h"

namespace calibatt {

/// A model's folder by links, so that a test may change its settings.
class LinkedModelTest : public testing::Test {
 protected:
  explicit LinkedModelTest(const std::string& model) {
    namespace fs = std::filesystem;
    for (const auto& entry : fs::recursive_directory_iterator(model)) {
      const fs::path target = fs::path(folder_.path()) / fs::relative(entry.path(), model);
      if (entry.is_directory()) {
        fs::create_directories(target);
      } else if (entry.path().extension() == ".json") {
        fs::copy_file(entry.path(), target);
        fs::permissions(target, fs::perms::owner_write, fs::perm_options::add);
      } else {
        fs::create_symlink(entry.path(), target);
      }
    }
  }
  void edit(const std::string& file, const std::function<void(nlohmann::json&)>& change) {
    auto json = nlohmann::json::parse(std::ifstream(folder_ / file));
    change(json);
    std::ofstream(folder_ / file) << json;
  }
  /// Returns what was there.
  nlohmann::json set(const std::string& file, const std::string& key, const nlohmann::json& value) {
    nlohmann::json before;
    edit(file, [&](nlohmann::json& json) {
      before = json.value(key, nlohmann::json());
      json[key] = value;
    });
    return before;
  }
  void expect_refused(ErrorKind kind, const std::vector<std::string>& parts) {
    try {
      open_model(folder_.path());
      FAIL() << "accepted; expected " << parts[0];
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      for (const std::string& part : parts) EXPECT_THAT(error.what(), testing::HasSubstr(part));
    }
  }
  TestFolder folder_;
};

}  // namespace calibatt
