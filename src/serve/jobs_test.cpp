#include "serve/jobs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "serve/request/api_error.h"
#include "serve/test_service.h"

namespace calibatt::serve {
namespace {

namespace fs = std::filesystem;
using test::example_job;
using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::string> prompts(const std::vector<Job>& jobs) {
  std::vector<std::string> list;
  for (const Job& job : jobs) list.push_back(job.request.prompt);
  return list;
}

int status_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const ApiError& error) {
    return error.status;
  }
  return 200;
}

TEST(Jobs, GoThroughTheirStatesInTheOrderOfCreation) {
  const test::Folder folder;
  test::Service service(folder.path);
  Jobs& jobs = service.jobs;
  const Job first = jobs.create(example_job("first")), second = jobs.create(example_job("second"));
  EXPECT_EQ(first.state, JobState::kQueued);
  EXPECT_EQ(jobs.take()->id, first.id);
  EXPECT_EQ(jobs.find(first.id)->state, JobState::kInProgress);
  EXPECT_TRUE(jobs.update(first.id, "denoise", 0.5));
  EXPECT_EQ(jobs.find(first.id)->progress, 0.5);
  service.now += 10;
  jobs.complete(first.id, {2.5, 0.4, {"said something"}});
  const Job done = *jobs.find(first.id);
  EXPECT_EQ(done.state, JobState::kCompleted);
  EXPECT_EQ(done.completed_at, service.now);
  EXPECT_EQ(done.expires_at, service.now + 24 * 3600);
  EXPECT_THAT(done.warnings, ElementsAre("said something"));
  EXPECT_EQ(jobs.take()->id, second.id);
  jobs.fail(second.id, {"device_error", "lost"});
  EXPECT_EQ(jobs.find(second.id)->error.message, "lost");
  const JobCounts counts = jobs.counts();
  EXPECT_EQ(counts.created, 2U);
  EXPECT_EQ(counts.completed, 1U);
  EXPECT_EQ(counts.failed, 1U);
  EXPECT_EQ(counts.kept, 2U);
  EXPECT_EQ(counts.queued + counts.in_progress, 0U);
  EXPECT_EQ(counts.inference_seconds, 2.5);
}

TEST(Jobs, TheQueueHasABound) {
  const test::Folder folder;
  test::Service service(folder.path, {.max_queue = 2});
  Jobs& jobs = service.jobs;
  jobs.create(example_job());
  jobs.create(example_job());
  EXPECT_EQ(status_of([&] { jobs.create(example_job()); }), 429);
  jobs.take();
  EXPECT_EQ(status_of([&] { jobs.create(example_job()); }), 200);
}

TEST(Jobs, ManyClientsAtOnceStayWithinTheBound) {
  const test::Folder folder;
  test::Service service(folder.path, {.max_queue = 20});
  std::atomic<int> created = 0, refused = 0;
  std::vector<std::thread> clients;
  for (int client = 0; client < 8; ++client) {
    clients.emplace_back([&] {
      for (int i = 0; i < 5; ++i) {
        const int status = status_of([&] { service.jobs.create(example_job()); });
        ++(status == 200 ? created : refused);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(created, 20);
  EXPECT_EQ(refused, 20);
  EXPECT_EQ(service.jobs.counts().queued, 20U);
}

TEST(Jobs, AreRemovedInEveryState) {
  const test::Folder folder;
  std::string queued, running, completed, failed;
  {
    test::Service service(folder.path);
    Jobs& jobs = service.jobs;
    completed = jobs.create(example_job()).id;
    failed = jobs.create(example_job()).id;
    running = jobs.create(example_job()).id;
    queued = jobs.create(example_job()).id;
    jobs.complete(jobs.take()->id, {});
    jobs.fail(jobs.take()->id, {"x", "y"});
    jobs.take();
    for (const std::string& id : {queued, running, completed, failed}) {
      EXPECT_TRUE(jobs.remove(id));
      EXPECT_FALSE(jobs.find(id));
      EXPECT_FALSE(jobs.remove(id));
      EXPECT_FALSE(fs::exists(folder.path + "/" + id));
    }
    // The run learns of it, and what it does afterwards brings nothing back.
    EXPECT_FALSE(jobs.update(running, "denoise", 0.5));
    jobs.complete(running, {});
    jobs.fail(running, {"x", "y"});
    jobs.put_back(running);
    EXPECT_FALSE(jobs.find(running));
    EXPECT_EQ(jobs.counts().removed, 4U);
  }
  EXPECT_EQ(test::Service(folder.path).jobs.counts().queued, 0U);
}

TEST(Jobs, ARestartFindsEveryStateAgain) {
  const test::Folder folder;
  std::vector<std::string> ids;
  {
    test::Service service(folder.path);
    for (const char* prompt : {"completed", "failed", "running", "queued"}) {
      ids.push_back(service.jobs.create(example_job(prompt)).id);
    }
    service.jobs.complete(service.jobs.take()->id, {1, 0.5, {}});
    service.jobs.fail(service.jobs.take()->id, {"x", "why"});
    service.jobs.take();
  }  // killed here
  test::Service service(folder.path);
  EXPECT_TRUE(service.warnings.empty());
  EXPECT_EQ(service.jobs.find(ids[0])->state, JobState::kCompleted);
  EXPECT_EQ(service.jobs.find(ids[0])->density, 0.5);
  EXPECT_EQ(service.jobs.find(ids[1])->error.message, "why");
  EXPECT_EQ(service.jobs.take()->id, ids[2]) << "what ran is run again, before what waited";
  EXPECT_EQ(service.jobs.take()->id, ids[3]);
  const Job next = service.jobs.create(example_job("new"));
  EXPECT_GT(next.number, service.jobs.find(ids[3])->number);
}

TEST(Jobs, AreListedInPages) {
  const test::Folder folder;
  test::Service service(folder.path);
  Jobs& jobs = service.jobs;
  for (const char* prompt : {"a", "b", "c", "d"}) jobs.create(example_job(prompt));
  bool more = false;
  std::vector<Job> page = jobs.list("", 3, true, more);
  EXPECT_THAT(prompts(page), ElementsAre("d", "c", "b"));
  EXPECT_TRUE(more);
  EXPECT_THAT(prompts(jobs.list(page.back().id, 3, true, more)), ElementsAre("a"));
  EXPECT_FALSE(more);
  page = jobs.list("", 2, false, more);
  EXPECT_THAT(prompts(page), ElementsAre("a", "b"));
  EXPECT_THAT(prompts(jobs.list(page.back().id, 2, false, more)), ElementsAre("c", "d"));
  EXPECT_FALSE(more);
  EXPECT_EQ(status_of([&] { jobs.list("nobody", 2, false, more); }), 404);
}

TEST(Jobs, FinishedOnesExpire) {
  const test::Folder folder;
  test::Service service(folder.path, {.keep_seconds = 100});
  Jobs& jobs = service.jobs;
  const std::string done = jobs.create(example_job()).id, waiting = jobs.create(example_job()).id;
  jobs.complete(jobs.take()->id, {});
  service.now += 99;
  jobs.expire();
  EXPECT_TRUE(jobs.find(done));
  service.now += 1;
  jobs.expire();
  EXPECT_FALSE(jobs.find(done));
  EXPECT_FALSE(fs::exists(folder.path + "/" + done));
  EXPECT_TRUE(jobs.find(waiting)) << "what waits does not";
  EXPECT_EQ(jobs.counts().expired, 1U);
}

TEST(Jobs, OfTooManyFinishedOnesTheOldestGo) {
  const test::Folder folder;
  test::Service service(folder.path, {.max_kept = 2});
  Jobs& jobs = service.jobs;
  std::vector<std::string> ids;
  for (int i = 0; i < 4; ++i) {
    ids.push_back(jobs.create(example_job()).id);
    jobs.complete(jobs.take()->id, {});
  }
  jobs.expire();
  EXPECT_FALSE(jobs.find(ids[0]));
  EXPECT_FALSE(jobs.find(ids[1]));
  EXPECT_TRUE(jobs.find(ids[2]));
  EXPECT_TRUE(jobs.find(ids[3]));
}

TEST(Jobs, WhatCannotBeWrittenHasFailed) {
  const test::Folder folder;
  test::Service service(folder.path);
  const std::string id = service.jobs.create(example_job()).id;
  service.jobs.take();
  fs::remove_all(folder.path + "/" + id);
  service.jobs.complete(id, {});
  EXPECT_EQ(service.jobs.find(id)->state, JobState::kFailed);
  EXPECT_EQ(service.jobs.find(id)->error.code, "not_written");
}

TEST(Jobs, ThoseThatThisStartCannotMakeWaitForAnotherOne) {
  const test::Folder folder;
  std::vector<std::string> ids;
  {
    test::Service before(folder.path);
    for (const char* plan : {"fast", "", "fast"}) {
      NewJob wanted = example_job();
      wanted.request.plan = plan;
      ids.push_back(before.jobs.create(wanted).id);
    }
  }
  {
    JobStore store(folder.path);
    std::vector<std::string> warnings;
    Jobs jobs(
        store, {.max_queue = 2}, [] { return 1; }, [&](const std::string& line) { warnings.push_back(line); },
        [](const VideoRequest& request) { return request.plan.empty() ? "" : "the plan fast is not served now"; });
    EXPECT_EQ(warnings, std::vector<std::string>{"2 jobs of an earlier start: the plan fast is not served now"});
    EXPECT_EQ(jobs.counts().held, 2U);
    EXPECT_EQ(jobs.counts().queued, 1U);
    EXPECT_THAT(to_reply(*jobs.find(ids[0])), HasSubstr("\"warnings\":[\"the plan fast is not served now\"]"));
    EXPECT_THAT(to_reply(*jobs.find(ids[0])), HasSubstr("\"status\":\"queued\""));
    EXPECT_EQ(jobs.take()->id, ids[1]);
    jobs.complete(ids[1], {});
    EXPECT_EQ(jobs.counts().in_progress, 0U);
    jobs.create(example_job());
    jobs.create(example_job());
    EXPECT_EQ(status_of([&] { jobs.create(example_job()); }), 429) << "those that are held take no place";
    EXPECT_TRUE(jobs.remove(ids[2]));
    EXPECT_EQ(jobs.counts().held, 1U);
  }
  test::Service after(folder.path);
  EXPECT_EQ(after.jobs.take()->id, ids[0]) << "the first of all, and it can be made again";
}

TEST(Jobs, StoppingEndsWaitingAndCreating) {
  const test::Folder folder;
  test::Service service(folder.path);
  std::thread waiter([&] { EXPECT_FALSE(service.jobs.take()); });
  service.jobs.stop();
  waiter.join();
  EXPECT_EQ(status_of([&] { service.jobs.create(example_job()); }), 503);
}

}  // namespace
}  // namespace calibatt::serve
