// What outlives what, who calls whom, and what of another version fits: sessions, plans, callbacks, structs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <thread>

#include "example_calibration.h"

namespace calibatt::test {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::vector<float> attended(calibatt_session* session, unsigned seed, int step = 1) {
  Arrays arrays(1, 12, 2, 64, seed);
  const calibatt_call call = arrays.call();
  EXPECT_EQ(calibatt_session_begin_forward(session, step, CALIBATT_CONDITIONAL), CALIBATT_OK);
  EXPECT_EQ(calibatt_session_attend(session, &call), CALIBATT_OK) << calibatt_last_error();
  return arrays.out;
}

TEST(CApiLifetimes, SessionsKeepWhatTheyNeedOfAPlan) {
  const Folder folder;
  const std::string copy = folder.file("plan.safetensors");
  std::filesystem::copy_file(kExamplePlan, copy);
  const OpenPlan kept(kExamplePlan);
  const OpenSession reference(kept.plan, example_run());
  calibatt_plan* plan = nullptr;
  ASSERT_EQ(calibatt_plan_open(copy.c_str(), &plan), CALIBATT_OK);
  const OpenSession first(plan, example_run()), second(plan, example_run());
  calibatt_plan_close(plan);
  std::filesystem::remove(copy);
  for (const OpenSession* each : {&first, &second}) {
    for (const int step : {0, 1, 2}) {
      EXPECT_EQ(attended(each->session, 7, step), attended(reference.session, 7, step));
    }
  }
}

TEST(CApiLifetimes, ThreadsShareASessionAndAPlan) {
  const OpenPlan plan(kExamplePlan);
  const OpenSession shared(plan.plan, example_run());
  const std::vector<float> expected = attended(shared.session, 3);
  constexpr int kThreads = 4, kCalls = 50;
  std::atomic<int> different = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      for (int n = 0; n < kCalls; ++n) {
        if (i % 2 == 0) {  // one step, so that forwards may alternate
          different += attended(shared.session, 3) != expected;
          different += calibatt_session_prefetch(shared.session, n % 3, 0) != CALIBATT_OK;
          different += shared.json().find("\"calls\"") == std::string::npos;
        } else {
          const OpenSession own(plan.plan, example_run());
          different += attended(own.session, 3) != expected;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(different, 0);
  EXPECT_THAT(shared.json(), HasSubstr("\"calls\":" + std::to_string(1 + kThreads / 2 * kCalls)));
}

/// Records one prompt of the example's run by a function of the test's own.
struct Recorder : ExampleCalibration {
  using Body = std::function<int32_t(calibatt_session*)>;

  Recorder() { output.user = this; }
  calibatt_status record(const Body& body) {
    return calibatt_record(
        folder.file("profile").c_str(), &calibration,
        [](void* user, int32_t, calibatt_session* session, double*) {
          return (*static_cast<const Body*>(user))(session);
        },
        const_cast<Body*>(&body), nullptr);
  }
  int32_t denoise(calibatt_session* session) {
    return ExampleCalibration::denoise(
        session, 3, [&](const calibatt_call& call) { return calibatt_session_attend(session, &call) == CALIBATT_OK; });
  }
  calibatt_status record() {
    return record([this](calibatt_session* session) { return denoise(session); });
  }
  calibatt_status compile_prompts(const std::string& plan) {
    return calibatt_compile_prompts(folder.file("profile").c_str(), folder.file(plan).c_str(), &calibration, nullptr,
                                    nullptr, nullptr);
  }
  std::string facts_of(const std::string& plan) const {
    const OpenPlan open(folder.file(plan));
    return open.status == CALIBATT_OK ? calibatt_plan_json(open.plan) : calibatt_last_error();
  }

  calibatt_session* session = nullptr;  // that a callback is to call
  std::string refusal;                  // that it met
};

TEST(CApiLifetimes, ACallbackOfACallDoesNotCallItsSession) {
  Recorder recorder;
  recorder.output.squared_gain = [](void* user) {
    auto& self = *static_cast<Recorder*>(user);
    char* json = nullptr;
    const calibatt_call call = self.arrays.call();
    EXPECT_EQ(calibatt_session_json(self.session, &json), CALIBATT_USAGE);
    EXPECT_EQ(calibatt_session_begin_forward(self.session, 2, CALIBATT_CONDITIONAL), CALIBATT_USAGE);
    EXPECT_EQ(calibatt_session_attend(self.session, &call), CALIBATT_USAGE);
    EXPECT_EQ(calibatt_session_wants_output(self.session), 0);
    calibatt_session_close(self.session);  // of calibatt_record: left as it is
    self.refusal = calibatt_last_error();
    const OpenSession other(nullptr, self.run);  // another one may be
    attended(other.session, 1);
    return 0.5;
  };
  const calibatt_status ended = recorder.record([&](calibatt_session* session) {
    recorder.session = session;
    const int32_t stopped = recorder.denoise(session);
    calibatt_session_close(session);
    return stopped;
  });
  EXPECT_EQ(ended, CALIBATT_OK) << calibatt_last_error();
  EXPECT_THAT(recorder.refusal, HasSubstr("a callback calls the session that called it"));
}

TEST(CApiLifetimes, ACalibrationWithinACalibration) {
  Recorder outer, inner;
  const calibatt_status ended = outer.record([&](calibatt_session* session) {
    EXPECT_EQ(inner.record(), CALIBATT_OK) << calibatt_last_error();
    EXPECT_EQ(inner.compile_prompts("plan"), CALIBATT_OK) << calibatt_last_error();
    expect_refusal(outer.record(), CALIBATT_MISMATCH, "this process is measuring prompts");
    return outer.denoise(session);
  });
  EXPECT_EQ(ended, CALIBATT_OK) << calibatt_last_error();
  EXPECT_EQ(outer.compile_prompts("plan"), CALIBATT_OK) << calibatt_last_error();
}

TEST(CApiLifetimes, PlansAreOfTheListedPromptsAlone) {
  Recorder recorder;
  const auto compile = [&] {
    const calibatt_setting density{"density", "0.9"};
    return calibatt_compile(recorder.folder.file("profile").c_str(), recorder.folder.file("all").c_str(), &density, 1,
                            nullptr, nullptr, nullptr);
  };
  ASSERT_EQ(recorder.record(), CALIBATT_OK) << calibatt_last_error();
  recorder.calibration.num_prompts = 2;
  expect_refusal(recorder.compile_prompts("two"), CALIBATT_USAGE, "prompt 1 of 2 was not measured");
  ASSERT_EQ(recorder.record(), CALIBATT_OK) << calibatt_last_error();
  EXPECT_EQ(recorder.compile_prompts("two"), CALIBATT_OK) << calibatt_last_error();
  EXPECT_THAT(recorder.facts_of("two"), HasSubstr("\"num_prompts\":2"));
  EXPECT_EQ(compile(), CALIBATT_OK) << calibatt_last_error();

  recorder.prompts[0] = {"c", nullptr, 0};
  recorder.calibration.num_prompts = 1;
  ASSERT_EQ(recorder.record(), CALIBATT_OK) << calibatt_last_error();
  EXPECT_EQ(recorder.compile_prompts("one"), CALIBATT_OK) << calibatt_last_error();
  EXPECT_THAT(recorder.facts_of("one"), HasSubstr("\"num_prompts\":1"));
  expect_refusal(compile(), CALIBATT_USAGE, "3 prompts of more than one calibration");
  EXPECT_EQ(calibatt_compile_prompts("x", "y", nullptr, nullptr, nullptr, nullptr), CALIBATT_USAGE);
  EXPECT_THAT(recorder.facts_of("one"), HasSubstr("\"expected_error\":"));
  EXPECT_THAT(recorder.facts_of("one"), Not(HasSubstr("predicted_error")));
}

TEST(CApiLifetimes, OtherConditionsAreAnotherCalibration) {
  Recorder recorder;
  recorder.calibration.conditions = "max_sequence_length: 77";
  ASSERT_EQ(recorder.record(), CALIBATT_OK) << calibatt_last_error();
  ASSERT_EQ(recorder.record([](calibatt_session*) { return 1; }), CALIBATT_OK) << "nothing is measured again";
  for (const char* other : {"max_sequence_length: 78", static_cast<const char*>(nullptr)}) {
    recorder.calibration.conditions = other;
    expect_refusal(recorder.record(), CALIBATT_MISMATCH, "was measured with conditions = max_sequence_length: 77");
  }
  const std::string endless(5000, 'x');
  recorder.calibration.conditions = endless.c_str();
  expect_refusal(recorder.record(), CALIBATT_USAGE, "calibration.conditions");

  Recorder before;  // compiled when there were no conditions
  before.calibration.struct_size = offsetof(calibatt_calibration, conditions);
  before.calibration.conditions = reinterpret_cast<const char*>(1);  // not its memory
  EXPECT_EQ(before.record(), CALIBATT_OK) << calibatt_last_error();
  before.calibration.struct_size -= 1;
  expect_refusal(before.record(), CALIBATT_USAGE, "calibration.struct_size");
}

TEST(CApiLifetimes, OtherWeightsAreToldBeforeConditionsThatFollowFromThem) {
  Recorder recorder;
  const char* const fingerprints[] = {"values1:f00d"};
  recorder.run.fingerprints = fingerprints;
  ASSERT_EQ(recorder.record(), CALIBATT_OK) << calibatt_last_error();
  recorder.run.fingerprints = nullptr;
  recorder.calibration.conditions = "weights of transformer: cafe";
  expect_refusal(recorder.record(), CALIBATT_MISMATCH, "(fingerprint values1:f00d), this calibration has ");
  EXPECT_THAT(calibatt_last_error(), ::testing::HasSubstr("(fingerprint not known)"));
}

TEST(CApiLifetimes, GuidanceThatIsNotThereIsKnown) {
  Recorder recorder;
  recorder.run.guidance_scale = 5;
  ASSERT_EQ(recorder.record(), CALIBATT_OK) << calibatt_last_error();
  ASSERT_EQ(recorder.compile_prompts("plan"), CALIBATT_OK) << calibatt_last_error();
  const OpenPlan plan(recorder.folder.file("plan"));
  const auto warnings = [&](double guidance) {
    calibatt_run run = example_run();
    run.guidance_scale = guidance;
    return OpenSession(plan.plan, run).json();
  };
  EXPECT_THAT(warnings(CALIBATT_UNGUIDED), HasSubstr("calibrated with guidance 5, this run has guidance 1"));
  EXPECT_THAT(warnings(1), HasSubstr("calibrated with guidance 5, this run has guidance 1"));
  EXPECT_THAT(warnings(0), HasSubstr("\"warnings\":[]")) << "not known";
  EXPECT_THAT(warnings(5), HasSubstr("\"warnings\":[]"));
}

}  // namespace
}  // namespace calibatt::test
