#include "serve/job_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "calibatt/error.h"
#include "serve/test_service.h"

namespace calibatt::serve {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

Job example(uint64_t number) {
  Job job;
  job.id = new_job_id();
  job.number = number;
  job.request = test::example_request("number " + std::to_string(number));
  job.created_at = 123;
  return job;
}

std::vector<Job> loaded(JobStore& store, std::vector<std::string>* warnings = nullptr) {
  return store.load([&](const std::string& line) {
    if (warnings != nullptr) warnings->push_back(line);
  });
}

void write(const fs::path& path, const std::string& text) {
  std::ofstream(path) << text;
}

TEST(JobStore, RecordsComeBackAsTheyWere) {
  Job job = example(5);
  job.request.negative_prompt = "blur é \n";
  job.request.seed = 18446744073709551615U;
  job.request.guidance_scale_2 = 3.5;
  job.request.on_mismatch = OnMismatch::kWarn;
  job.request.plan = "fast";
  job.state = JobState::kFailed;
  job.completed_at = 130;
  job.expires_at = 140;
  job.error = {"plan_mismatch", "made for something else"};
  job.inference_seconds = 1.25;
  job.density = 0.375;
  job.warnings = {"one", "two"};
  const Job back = from_record(to_record(job), "job.json");
  EXPECT_EQ(to_record(back), to_record(job));
  EXPECT_EQ(back.request.seed, 18446744073709551615U);
  EXPECT_EQ(back.request.on_mismatch, OnMismatch::kWarn);
  EXPECT_EQ(back.error.message, "made for something else");
  EXPECT_EQ(back.warnings.size(), 2U);
}

TEST(JobStore, WhatRanIsQueuedToTheNextProcess) {
  Job job = example(1);
  job.state = JobState::kInProgress;
  EXPECT_EQ(from_record(to_record(job), "job.json").state, JobState::kQueued);
}

TEST(JobStore, KeepsJobsInTheOrderOfCreation) {
  const test::Folder folder;
  {
    JobStore store(folder.path);
    for (const uint64_t number : {3, 1, 2}) store.create(example(number), "");
  }
  JobStore store(folder.path);
  const std::vector<Job> jobs = loaded(store);
  ASSERT_EQ(jobs.size(), 3U);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(jobs[i].request.prompt, "number " + std::to_string(i + 1));
}

TEST(JobStore, KeepsThePicture) {
  const test::Folder folder;
  JobStore store(folder.path);
  Job job = example(1);
  job.request.has_picture = true;
  store.create(job, "bytes");
  std::ifstream file(store.picture_path(job.id));
  std::string text;
  file >> text;
  EXPECT_EQ(text, "bytes");
  EXPECT_TRUE(loaded(store).at(0).request.has_picture);
}

TEST(JobStore, ARemovedJobIsGoneBeforeItsFilesAre) {
  const test::Folder folder;
  const Job job = example(1);
  {
    JobStore store(folder.path);
    store.create(job, "");
    store.remove(job.id);
    EXPECT_THROW(store.save(job), Error);
  }  // killed here
  JobStore store(folder.path);
  EXPECT_TRUE(loaded(store).empty());
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()), 1) << "the lock alone";
}

TEST(JobStore, WhatAKilledProcessLeftHalfMadeGoesAndWhatIsNotItsOwnStays) {
  const test::Folder folder;
  const fs::path half = fs::path(folder.path) / new_job_id();
  fs::create_directory(half);
  write(half / "picture", "bytes");
  for (const char* other : {"mine", ".removed_mine", "video_"}) fs::create_directory(fs::path(folder.path) / other);
  JobStore store(folder.path);
  EXPECT_TRUE(loaded(store).empty());
  EXPECT_FALSE(fs::exists(half));
  for (const char* other : {"mine", ".removed_mine", "video_"}) EXPECT_TRUE(fs::exists(fs::path(folder.path) / other));
}

TEST(JobStore, AVideoWhoseRecordIsLostIsLeftAlone) {
  const test::Folder folder;
  const fs::path lost = fs::path(folder.path) / new_job_id(), link = fs::path(folder.path) / new_job_id();
  fs::create_directory(lost);
  write(lost / "video.mp4", "bytes");
  fs::create_directory_symlink(lost, link);
  JobStore store(folder.path);
  std::vector<std::string> warnings;
  EXPECT_TRUE(loaded(store, &warnings).empty());
  EXPECT_EQ(warnings.size(), 2U);
  EXPECT_TRUE(fs::exists(lost / "video.mp4"));
  EXPECT_TRUE(fs::is_symlink(link));
}

TEST(JobStore, ARecordThatCannotBeReadIsToldAndLeftAlone) {
  const test::Folder folder;
  JobStore store(folder.path);
  const Job good = example(1);
  store.create(good, "");
  const std::string whole = to_record(good);
  for (const std::string& text : {std::string("{"), whole.substr(0, whole.size() / 2), std::string("{\"version\": 2}"),
                                  whole, std::string("[]"), std::string(2 << 20, ' ')}) {
    const fs::path bad = fs::path(folder.path) / new_job_id();
    fs::create_directory(bad);
    write(bad / "job.json", text);
    std::vector<std::string> warnings;
    EXPECT_EQ(loaded(store, &warnings).size(), 1U);
    ASSERT_EQ(warnings.size(), 1U);
    EXPECT_THAT(warnings[0], HasSubstr(bad.string()));
    EXPECT_TRUE(fs::exists(bad / "job.json"));
    fs::remove_all(bad);
  }
}

TEST(JobStore, OneProcessAtATime) {
  const test::Folder folder;
  JobStore store(folder.path);
  try {
    JobStore second(folder.path);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("another calibatt serve"));
  }
}

TEST(JobStore, NamesAreNotGuessed) {
  EXPECT_NE(new_job_id(), new_job_id());
  EXPECT_TRUE(is_job_id(new_job_id()));
  for (const char* other : {"", "video_", "video_0123456789abcdef0123456789abcdeg", "../../../etc/passwd"}) {
    EXPECT_FALSE(is_job_id(other));
  }
}

}  // namespace
}  // namespace calibatt::serve
