#include "serve/catalog.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "calibatt/error.h"
#include "serve/request/api_error.h"
#include "serve/test_service.h"

namespace calibatt::serve {
namespace {

using testing::HasSubstr;

const std::string kTinyWan = CALIBATT_MODELS_DIR "/tiny-wan";
const std::string kPlan = CALIBATT_GOLDEN_DIR "/plan_v3_example.safetensors";

LoadOptions load(const std::string& folder) {
  LoadOptions options;
  options.model_dir = folder;
  return options;
}

/// Plans that do not fit are refused at the start unless they may then run dense, which kPlan would.
GenerateOptions lenient() {
  GenerateOptions options;
  options.on_mismatch = OnMismatch::kDense;
  return options;
}

Catalog tiny(std::vector<ServedPlan> plans = {}, const GenerateOptions& defaults = lenient()) {
  return Catalog({{"", load(kTinyWan)}}, std::move(plans), defaults, {});
}

FormFields form(std::map<std::string, std::string> values) {
  values.emplace("prompt", "a cat");
  return {std::move(values), "", false};
}

std::string refusal(const Catalog& catalog, FormFields fields) {
  try {
    catalog.job_of(std::move(fields));
  } catch (const ApiError& error) {
    return std::to_string(error.status) + " " + error.param + ": " + error.what();
  }
  return "taken";
}

TEST(Catalog, FillsInTheModelsDefaults) {
  const NewJob job = tiny().job_of(form({}));
  const GenerateOptions defaults = ModelOnDisk::open(kTinyWan).resolved({});
  EXPECT_EQ(job.request.model, "tiny-wan");
  EXPECT_EQ(job.request.plan, "");
  EXPECT_EQ(job.request.width, *defaults.width);
  EXPECT_EQ(job.request.num_frames, *defaults.video_frames);
  EXPECT_EQ(job.request.steps, *defaults.steps);
  EXPECT_EQ(job.request.fps, *defaults.fps);
  EXPECT_NE(job.request.seed, tiny().job_of(form({})).request.seed) << "a random one";
}

TEST(Catalog, ReadsEveryField) {
  const Catalog catalog = tiny({{"fast", kPlan}});
  const VideoRequest request = catalog
                                   .job_of(form({{"negative_prompt", "blur"},
                                                 {"model", "tiny-wan"},
                                                 {"plan", "fast"},
                                                 {"on_mismatch", "dense"},
                                                 {"size", "64x48"},
                                                 {"num_frames", "9"},
                                                 {"fps", "12.5"},
                                                 {"num_inference_steps", "3"},
                                                 {"guidance_scale", "2.5"},
                                                 {"flow_shift", "4"},
                                                 {"seed", "18446744073709551615"}}))
                                   .request;
  EXPECT_EQ(request.prompt, "a cat");
  EXPECT_EQ(request.negative_prompt, "blur");
  EXPECT_EQ(request.plan, "fast");
  EXPECT_EQ(request.on_mismatch, OnMismatch::kDense);
  EXPECT_EQ(request.width, 64);
  EXPECT_EQ(request.height, 48);
  EXPECT_EQ(request.num_frames, 9);
  EXPECT_EQ(request.steps, 3);
  EXPECT_EQ(request.seed, 18446744073709551615U);
  const GenerateOptions run = catalog.options_of(request);
  EXPECT_EQ(run.plan_path, kPlan);
  EXPECT_EQ(run.cfg_scale, 2.5);
  EXPECT_EQ(run.flow_shift, 4);
  EXPECT_EQ(run.fps, 12.5);
}

TEST(Catalog, SecondsBecomeTheNearestNumberOfFramesThatTheModelMakes) {
  const auto frames = [](const std::string& seconds, const std::string& fps) {
    return tiny().job_of(form({{"seconds", seconds}, {"fps", fps}})).request.num_frames;
  };
  EXPECT_EQ(frames("1", "8"), 9);
  EXPECT_EQ(frames("1.1", "8"), 9);
  EXPECT_EQ(frames("1.5", "8"), 13);
  EXPECT_EQ(frames("0", "8"), 1);
}

TEST(Catalog, RefusesWhatCannotBeInTheWordsOfRequests) {
  const Catalog catalog = tiny({{"fast", kPlan}});
  EXPECT_THAT(refusal(catalog, {}), HasSubstr("400 prompt: is missing"));
  EXPECT_THAT(refusal(catalog, form({{"width", "65"}})), HasSubstr("400 width: width 65: this model needs a multiple"));
  EXPECT_THAT(refusal(catalog, form({{"num_frames", "8"}})), HasSubstr("400 num_frames: num_frames 8: must be 4k+1"));
  EXPECT_THAT(refusal(catalog, form({{"size", "64"}})), HasSubstr("400 size: must be WIDTHxHEIGHT"));
  EXPECT_THAT(refusal(catalog, form({{"size", "64x-64"}})), HasSubstr("400 size: size, whose height"));
  EXPECT_THAT(refusal(catalog, form({{"size", "64x64"}, {"width", "64"}})), HasSubstr("leave one of them out"));
  EXPECT_THAT(refusal(catalog, form({{"seconds", "1"}, {"num_frames", "9"}})), HasSubstr("leave one of them out"));
  EXPECT_THAT(refusal(catalog, form({{"seed", "-2"}})), HasSubstr("400 seed: must be a whole number"));
  EXPECT_THAT(refusal(catalog, form({{"num_inference_steps", "101"}})), HasSubstr("400 num_inference_steps"));
  EXPECT_THAT(refusal(catalog, form({{"guidance_scale", "nan"}})), HasSubstr("400 guidance_scale"));
  EXPECT_THAT(refusal(catalog, form({{"guidance_scale_2", "3"}})), HasSubstr("400 guidance_scale_2"));
  EXPECT_THAT(refusal(catalog, form({{"model", "sora"}})), HasSubstr("404 model: there is no model sora here"));
  EXPECT_THAT(refusal(catalog, form({{"plan", "slow"}})), HasSubstr("there is none (dense), fast"));
  EXPECT_THAT(refusal(catalog, form({{"on_mismatch", "x"}})), HasSubstr("refuse, warn or dense"));
  for (const char* choice : {"refuse", "warn"}) {  // of other weights "warn" warns, of another model nothing does
    EXPECT_THAT(refusal(catalog, form({{"on_mismatch", choice}})),
                HasSubstr("400 plan: fast does not fit: it was made for a model of 1 layer, this run has 8"));
  }
  EXPECT_THAT(refusal(catalog, form({{"quality", "hd"}})), HasSubstr("400 quality: this field is not known"));
  EXPECT_THAT(refusal(catalog, form({{"prompt", "x"}, {"negative_prompt", "\xff"}})), HasSubstr("negative_prompt"));
  FormFields picture = form({});
  picture.has_picture = true;
  picture.picture = "no picture";
  EXPECT_THAT(refusal(catalog, picture), HasSubstr("400 input_reference: the model tiny-wan makes"));
}

TEST(Catalog, APlanThatCannotBeReadNowIsLookedAtWhenTheVideoIsMade) {
  const test::Folder folder;
  const std::string plan = folder.path + "/plan.safetensors";
  std::filesystem::copy_file(kPlan, plan);
  const Catalog catalog = tiny({{"fast", plan}});
  EXPECT_THAT(refusal(catalog, form({{"on_mismatch", "refuse"}})), HasSubstr("400 plan: fast does not fit"));
  std::filesystem::remove(plan);
  EXPECT_EQ(refusal(catalog, form({{"on_mismatch", "refuse"}})), "taken");
}

TEST(Catalog, VideosHaveALargestSize) {
  EXPECT_THAT(refusal(tiny(), form({{"size", "2048x2048"}})), HasSubstr("this service makes videos of up to"));
  GenerateOptions defaults;
  defaults.width = defaults.height = 64;
  defaults.video_frames = 5;
  defaults.steps = 5;
  const Catalog small({{"", load(kTinyWan)}}, {}, defaults, {64 * 64 * 9, 5});
  EXPECT_EQ(refusal(small, form({{"size", "64x64"}, {"num_frames", "9"}, {"num_inference_steps", "5"}})), "taken");
  EXPECT_THAT(refusal(small, form({{"size", "64x64"}, {"num_frames", "13"}, {"num_inference_steps", "5"}})),
              HasSubstr("up to 36864"));
}

// A client knows no flag of the service: it is told of its own field, and what that may be here.
TEST(Catalog, WhatTheServiceWasStartedWithIsToldInTheWordsOfRequests) {
  LoadOptions model = load(kTinyWan);
  model.weights = WeightsPrecision::kFP8;
  GenerateOptions defaults;
  defaults.kept_steps = 5;
  const Catalog kept({{"", model}}, {}, defaults, {});
  EXPECT_EQ(refusal(kept, form({{"num_inference_steps", "3"}})),
            "400 num_inference_steps: 3: this service computes the first 5 steps of a video without 8 bits; give 5 to "
            "100");
  EXPECT_EQ(refusal(kept, form({{"num_inference_steps", "5"}})), "taken");
  EXPECT_EQ(refusal(kept, form({})), "taken");

  defaults = {};
  defaults.timesteps = {1000, 750, 500, 250};
  const Catalog listed = tiny({}, defaults);
  EXPECT_EQ(refusal(listed, form({{"num_inference_steps", "5"}})),
            "400 num_inference_steps: 5: this service makes every video in 4 steps of its own; give 4, or leave it "
            "out");
  EXPECT_EQ(refusal(listed, form({{"num_inference_steps", "4"}})), "taken");
  EXPECT_EQ(refusal(listed, form({})), "taken");
  EXPECT_EQ(refusal(listed, form({{"flow_shift", "2"}})), "taken") << "timesteps are shifted";
  defaults.timesteps = {950, 500};
  EXPECT_THAT(refusal(tiny({}, defaults), form({{"flow_shift", "0.1"}})),
              HasSubstr("400 flow_shift: 0.1: with this service's steps a video would not begin with pure noise"));
  defaults.timesteps.clear();
  defaults.noise_levels = {1, 0.5};
  EXPECT_THAT(refusal(tiny({}, defaults), form({{"flow_shift", "2"}})),
              HasSubstr("400 flow_shift: this service makes every video at noise levels of its own"));
}

TEST(Catalog, ThePlanOfOneModelIsItsDefault) {
  const Catalog one = tiny({{"fast", kPlan}, {"other", kPlan}});
  EXPECT_EQ(one.job_of(form({})).request.plan, "fast");
  EXPECT_EQ(one.job_of(form({{"plan", "other"}})).request.plan, "other");
  EXPECT_EQ(one.job_of(form({{"plan", "none"}})).request.plan, "");
  const Catalog two({{"", load(kTinyWan)}, {"again", load(kTinyWan)}}, {{"fast", kPlan}}, lenient(), {});
  EXPECT_EQ(two.job_of(form({})).request.plan, "");
  EXPECT_EQ(two.job_of(form({{"model", "again"}, {"plan", "fast"}})).request.model, "again");
  EXPECT_THAT(two.list_reply(), HasSubstr("\"id\":\"again\""));
}

TEST(Catalog, DefaultsOfTheServiceHoldWhereARequestSaysNothing) {
  GenerateOptions defaults;
  defaults.steps = 3;
  defaults.timesteps = {1000, 750, 500};
  defaults.scheduler = "euler";
  const Catalog catalog = tiny({}, defaults);
  const VideoRequest request = catalog.job_of(form({})).request;
  EXPECT_EQ(request.steps, 3);
  const GenerateOptions run = ModelOnDisk::open(kTinyWan).resolved(catalog.options_of(request));
  EXPECT_EQ(run.timesteps.size(), 3U);
  EXPECT_EQ(run.scheduler, "euler");
}

TEST(Catalog, SaysWhatIsNotRead) {
  const NewJob job = tiny().job_of(form({{"negative_prompt", "blur"}, {"guidance_scale", "1"}}));
  ASSERT_EQ(job.warnings.size(), 1U);
  EXPECT_THAT(job.warnings[0], HasSubstr("negative_prompt"));
  EXPECT_THAT(job.warnings[0], testing::Not(HasSubstr("--")));
}

TEST(Catalog, RefusesToServeWhatItCannotNameOrRead) {
  const auto message = [](const std::function<void()>& call) {
    try {
      call();
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("taken");
  };
  EXPECT_THAT(message([] {
                Catalog({{"", load(kTinyWan)}, {"", load(kTinyWan)}}, {}, {}, {});
              }),
              HasSubstr("two are called tiny-wan"));
  EXPECT_THAT(message([] { tiny({{"none", kPlan}}); }), HasSubstr("means dense"));
  EXPECT_THAT(message([] { tiny({{"x", kPlan + ".missing"}}); }), HasSubstr("plan_v3_example.safetensors.missing"));
  EXPECT_THAT(message([] {
                Catalog catalog = tiny({{"fast", kPlan}});
                VideoRequest request = catalog.job_of(form({})).request;
                request.plan = "gone";
                catalog.options_of(request);
              }),
              HasSubstr("not served any more"));
}

std::string start_refusal(const std::vector<ServedPlan>& plans, const GenerateOptions& defaults,
                          const VideoLimits& limits = {}) {
  LoadOptions model = load(kTinyWan);
  model.backend = "cpu";
  try {
    const Catalog catalog({{"", model}}, plans, defaults, limits);
  } catch (const Error& error) {
    return error.what();
  }
  return "taken";
}

TEST(Catalog, WhatNoRequestCouldRunWithIsRefusedAtTheStart) {
  EXPECT_THAT(start_refusal({{"fast", kPlan}}, {}),
              testing::AllOf(HasSubstr("plan_v3_example.safetensors: fits no model here"),
                             HasSubstr("a model of 1 layer, this run has 8")));
  EXPECT_EQ(start_refusal({{"fast", kPlan}}, lenient()), "taken");
  EXPECT_THAT(start_refusal({}, {}, {0, 10}), HasSubstr("--max-steps 10: tiny-wan makes 20 steps where"));
  EXPECT_THAT(start_refusal({}, {}, {1'000'000, 100}),
              HasSubstr("--max-megapixels: tiny-wan makes a video of 4259840"));
  GenerateOptions eight_bits;
  eight_bits.attention_dtype = AttentionDtype::kFP8;
  EXPECT_THAT(start_refusal({}, eight_bits), HasSubstr("the CPU computes in 16 or 32 bits"));
}

TEST(Catalog, SaysWhyAnEarlierStartsRequestIsNotMade) {
  const Catalog catalog = tiny({{"fast", kPlan}});
  VideoRequest request = catalog.job_of(form({})).request;
  EXPECT_EQ(catalog.why_not(request), "");
  request.plan = "gone";
  EXPECT_THAT(catalog.why_not(request), HasSubstr("the plan gone is not served now; it waits for a start with it"));
  request.plan = "";
  request.model = "large";
  EXPECT_THAT(catalog.why_not(request), HasSubstr("the model large is not served now"));
}

}  // namespace
}  // namespace calibatt::serve
