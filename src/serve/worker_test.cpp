#include "serve/worker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <thread>

#include "calibatt/error.h"
#include "serve/test_service.h"

namespace calibatt::serve {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

/// Does what a test says in place of making a video.
class FakeMaker : public VideoMaker {
 public:
  explicit FakeMaker(std::function<RunFigures(const Job&, const RunProgress&)> act) : act_(std::move(act)) {}
  RunFigures make(const Job& job, const RunProgress& progress) override { return act_(job, progress); }

 private:
  std::function<RunFigures(const Job&, const RunProgress&)> act_;
};

/// Runs one job and ends; the lines of the log.
std::vector<std::string> run_one(test::Service& service, FakeMaker& maker) {
  std::vector<std::string> lines;
  run_jobs(service.jobs, maker, [&](const std::string& line) {
    lines.push_back(line);
    service.jobs.stop();
  });
  return lines;
}

TEST(Worker, ReportsProgressAndFigures) {
  const test::Folder folder;
  test::Service service(folder.path);
  const std::string id = service.jobs.create(test::example_job()).id;
  FakeMaker maker([&](const Job& job, const RunProgress& progress) {
    EXPECT_EQ(job.id, id);
    EXPECT_EQ(service.jobs.find(id)->stage, "load");
    progress("denoise", 0.25);
    EXPECT_EQ(service.jobs.find(id)->stage, "denoise");
    EXPECT_EQ(service.jobs.find(id)->progress, 0.25);
    return RunFigures{1.5, 0.4, {}};
  });
  EXPECT_THAT(run_one(service, maker), testing::ElementsAre(id + ": made in 1.5 s"));
  EXPECT_EQ(service.jobs.find(id)->state, JobState::kCompleted);
  EXPECT_EQ(service.jobs.find(id)->inference_seconds, 1.5);
}

TEST(Worker, AnErrorFailsItsJobInTheWordsOfRequests) {
  const test::Folder folder;
  test::Service service(folder.path);
  const std::string id = service.jobs.create(test::example_job()).id;
  FakeMaker maker([](const Job&, const RunProgress&) -> RunFigures {
    throw Error(ErrorKind::kMismatch, "the plan is for --video-frames 81");
  });
  run_one(service, maker);
  EXPECT_EQ(service.jobs.find(id)->error.code, "plan_mismatch");
  EXPECT_EQ(service.jobs.find(id)->error.message, "the plan is for num_frames 81");
}

TEST(Worker, MemoryThatIsOutFailsItsJobAlone) {
  const test::Folder folder;
  test::Service service(folder.path);
  const std::string first = service.jobs.create(test::example_job()).id;
  const std::string second = service.jobs.create(test::example_job()).id;
  FakeMaker maker([&](const Job& job, const RunProgress&) -> RunFigures {
    if (job.id == first) throw std::bad_alloc();
    return {};
  });
  run_jobs(service.jobs, maker, [&](const std::string& line) {
    if (line.starts_with(second)) service.jobs.stop();
  });
  EXPECT_EQ(service.jobs.find(first)->error.code, "out_of_memory");
  EXPECT_EQ(service.jobs.find(second)->state, JobState::kCompleted);
}

TEST(Worker, ARemovedJobEndsItsRunAndLeavesNothing) {
  const test::Folder folder;
  test::Service service(folder.path);
  const std::string id = service.jobs.create(test::example_job()).id;
  bool went_on = false;
  FakeMaker maker([&](const Job&, const RunProgress& progress) {
    service.jobs.remove(id);
    progress("denoise", 0.5);
    went_on = true;
    return RunFigures{};
  });
  EXPECT_THAT(run_one(service, maker), testing::ElementsAre(HasSubstr("removed while it was made")));
  EXPECT_FALSE(went_on);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()), 1) << "the lock alone";
}

TEST(Worker, AJobThatIsRemovedAsItsVideoIsWrittenLeavesNothingEither) {
  const test::Folder folder;
  test::Service service(folder.path);
  const std::string id = service.jobs.create(test::example_job()).id;
  FakeMaker maker([&](const Job&, const RunProgress&) -> RunFigures {
    service.jobs.remove(id);
    throw Error(ErrorKind::kIo, "the folder is gone");
  });
  EXPECT_THAT(run_one(service, maker), testing::ElementsAre(HasSubstr("removed while it was made")));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()), 1);
}

TEST(Worker, StoppingPutsTheRunningJobBack) {
  const test::Folder folder;
  test::Service service(folder.path);
  const std::string id = service.jobs.create(test::example_job()).id;
  FakeMaker maker([&](const Job&, const RunProgress& progress) {
    service.jobs.stop();
    progress("denoise", 0.5);
    return RunFigures{};
  });
  EXPECT_THAT(run_one(service, maker), testing::ElementsAre(HasSubstr("interrupted")));
  EXPECT_EQ(service.jobs.find(id)->state, JobState::kQueued);
  EXPECT_EQ(service.jobs.counts().queued, 1U);
}

TEST(Worker, MakesAVideoOnThePipeline) {
  const test::Folder folder;
  test::Service service(folder.path);
  LoadOptions load;
  load.model_dir = CALIBATT_MODELS_DIR "/tiny-wan";
  load.backend = "cpu";
  load.threads = 2;
  const Catalog catalog({{"", load}}, {}, {}, {});
  PipelineMaker maker(catalog, service.store);
  const std::string id = service.jobs.create(test::example_job()).id;
  std::vector<std::string> stages;
  const RunFigures figures = maker.make(*service.jobs.find(id), [&](const std::string& stage, double done) {
    if (stages.empty() || stages.back() != stage) stages.push_back(stage);
    EXPECT_LE(done, 1);
  });
  EXPECT_EQ(stages.front(), "load");
  EXPECT_THAT(stages, testing::Contains("denoise"));
  EXPECT_GT(figures.inference_seconds, 0);
  EXPECT_EQ(figures.density, 1);
  const VideoFrames video = read_video(service.store.video_path(id));
  EXPECT_EQ(video.frames, 9);
  EXPECT_EQ(video.width, 64);
  EXPECT_TRUE(fs::exists(service.store.report_path(id)));
}

}  // namespace
}  // namespace calibatt::serve
