#include "io/input_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "base/error.h"
#include "io/atomic_file.h"
#include "io/json_config.h"
#include "io/mapped_file.h"
#include "io/safetensors.h"
#include "io/test_folder.h"
#include "io/torch_checkpoint.h"

namespace calibatt {
namespace {

using testing::AllOf;
using testing::HasSubstr;

template <class Action>
std::string message_of(ErrorKind kind, const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    return error.what();
  }
  return "no error";
}

/// Every reader of this floor, by name.
const std::map<std::string, std::function<void(const std::string&)>> kReaders = {
    {"InputFile", [](const std::string& path) { InputFile file(path); }},
    {"MappedFile", [](const std::string& path) { MappedFile::open(path); }},
    {"read_text_file", [](const std::string& path) { read_text_file(path); }},
    {"JsonConfig", [](const std::string& path) { JsonConfig::load(path); }},
    {"Safetensors", [](const std::string& path) { Safetensors::open(path); }},
    {"torch checkpoint", [](const std::string& path) { open_torch_checkpoint(path); }},
};

TEST(InputFile, WhatIsNoRegularFileIsRefusedAtOnceByEveryReader) {
  const TestFolder folder;
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  for (const auto& [name, read] : kReaders) {
    EXPECT_THAT(message_of(ErrorKind::kUnreadable, [&] { read(folder / "pipe"); }),
                AllOf(HasSubstr(folder / "pipe"), HasSubstr("a pipe, not a regular file")))
        << name;
    EXPECT_THAT(message_of(ErrorKind::kUnreadable, [&] { read("/dev/zero"); }), HasSubstr("/dev/zero: is a device"))
        << name;
    EXPECT_THAT(message_of(ErrorKind::kUnreadable, [&] { read(folder.path()); }), HasSubstr("is a folder")) << name;
    EXPECT_THAT(message_of(ErrorKind::kNotFound, [&] { read(folder / "absent"); }), HasSubstr("absent")) << name;
  }
}

TEST(InputFile, LinksInACircleAreAnErrorOfOneLine) {
  const TestFolder folder;
  std::filesystem::create_symlink("loop", folder / "loop");
  for (const auto& [name, read] : kReaders) {
    EXPECT_THAT(message_of(ErrorKind::kUnreadable, [&] { read(folder / "loop"); }), HasSubstr("/loop: cannot be read"))
        << name;
  }
  for (const std::string& path : {folder / "loop", folder / "loop/file"}) {
    EXPECT_THAT(message_of(ErrorKind::kUnreadable, [&] { path_exists(path); }), HasSubstr(path));
    EXPECT_THAT(message_of(ErrorKind::kUnreadable, [&] { is_folder(path); }), HasSubstr(path));
  }
}

TEST(InputFile, PathsAreToldApart) {
  const TestFolder folder;
  std::ofstream(folder / "file") << "x";
  EXPECT_TRUE(path_exists(folder / "file"));
  EXPECT_FALSE(is_folder(folder / "file"));
  EXPECT_FALSE(path_exists(folder / "file/below"));
  EXPECT_FALSE(path_exists(folder / "absent"));
  EXPECT_TRUE(is_folder(folder.path()));
  EXPECT_EQ(InputFile(folder / "file").size_bytes(), 1u);
}

TEST(ReadTextFile, ReadsAllOfItAndNoMore) {
  const TestFolder folder;
  const std::string text(200000, 'x');
  std::ofstream(folder / "file") << text;
  EXPECT_EQ(read_text_file(folder / "file"), text);
  EXPECT_THAT(message_of(ErrorKind::kFormat, [&] { read_text_file(folder / "file", 199999); }), HasSubstr("200000"));
  EXPECT_THAT(read_text_file("/proc/self/status"), HasSubstr("Name:")) << "of a file that says it has no bytes";
}

}  // namespace
}  // namespace calibatt
