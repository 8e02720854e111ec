// A page of reports, plans and videos: what it holds, what it says it lacks, and what is refused.
#include "calibatt/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "calibatt/error.h"
#include "calibatt/output.h"
#include "calibatt/plan.h"
#include "io/test_folder.h"
#include "plan/test_plans.h"
#include "report/page_model.h"

namespace calibatt {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr const char* kHostile = "</script><img src=x onerror=alert(1)> <!-- \" ' & 猫";

class Report : public ::testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& text) {
    write_text_file(folder_ / name, text);
    return folder_ / name;
  }
  std::string write(const std::string& name, const json& report) { return write(name, report.dump()); }
  std::string save(const std::string& name, const Plan::Parts& parts) {
    save_plan(Plan(Plan::Parts(parts)), folder_ / name);
    return folder_ / name;
  }
  std::string save_video(const std::string& name, uint8_t grey, int frames = 3, int width = 32) {
    VideoFrames video{frames, 32, width, {}};
    video.rgb.assign(static_cast<size_t>(frames) * video.frame_bytes(), grey);
    write_video(video, 8, folder_ / name);
    return folder_ / name;
  }
  static json run(const std::string& plan = "") {
    json report = {{"model", "m"},
                   {"prompt", kHostile},
                   {"seed", 1},
                   {"width", 64},
                   {"height", 32},
                   {"video_frames", 9},
                   {"steps", 2},
                   {"fps", 8},
                   {"seconds",
                    {{"text", 1},
                     {"attention", plan.empty() ? 8 : 2},
                     {"transformer_other", 4},
                     {"transformer", plan.empty() ? 12 : 6},
                     {"vae", 1},
                     {"total", plan.empty() ? 14 : 8}}},
                   {"density", plan.empty() ? 1.0 : 0.25},
                   {"density_map", {{0.5}, {0.0}}},
                   {"step_reuse", {"forward", "hold"}}};
    if (!plan.empty()) report["plan"] = plan;
    return report;
  }
  json bench() const {
    return {{"speedup_transformer", 2.0},
            {"speedup_total", 1.75},
            {"density", 0.25},
            {"psnr_db", 30.5},
            {"ssim", 0.9},
            {"runs",
             {{{"prompt", kHostile},
               {"dense", run()},
               {"calibrated", run("p.safetensors")},
               {"psnr_db", 30.5},
               {"ssim", 0.9},
               {"flicker_difference", -0.5},
               {"psnr_db_per_frame", {30.0, nullptr, 31.0}},
               {"videos", {{"dense", "d.mp4"}, {"calibrated", "c.mp4"}}}}}}};
  }
  static json model(const std::vector<std::string>& files) {
    ReportInputs inputs;
    inputs.files = files;
    return page_model(inputs);
  }
  std::string refusal(ErrorKind kind, const ReportInputs& inputs) {
    try {
      make_report_page(inputs);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      return error.what();
    }
    return "accepted";
  }
  std::string refusal(ErrorKind kind, const std::string& file) {
    ReportInputs inputs;
    inputs.files = {file};
    return refusal(kind, inputs);
  }

  TestFolder folder_;
};

/// What the page's script reads.
json model_of(const std::string& html) {
  const std::string begin = "<script type=\"application/json\" id=\"model\">";
  const size_t from = html.find(begin) + begin.size();
  return json::parse(html.substr(from, html.find("</script>", from) - from));
}

size_t count(const std::string& text, const std::string& part) {
  size_t number = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++number;
  return number;
}

TEST_F(Report, HoldsThePlanAsItIs) {
  const Plan::Parts parts = test::reuse_parts();
  const std::string path = save("reuse.safetensors", parts);
  const json plan = model({path})["plans"][0];
  const Plan expected{Plan::Parts(parts)};
  EXPECT_EQ(plan["checksum"], plan_checksum_of(path));
  EXPECT_THAT(plan["reuse"], ElementsAre("forward", "forward", "linear", "hold", "forward", "forward", "residual"));
  EXPECT_EQ(plan["entry"], json(parts.step_entry));
  EXPECT_EQ(plan["density"], expected.density());
  EXPECT_EQ(plan["density_map"][0][0], expected.density(0, 0));
  EXPECT_TRUE(plan["density_map"][2][0].is_null());
  EXPECT_EQ(plan["errors"], (json{{"attention", 0.125},
                                  {"attention_basis", "measured"},
                                  {"end_of_run", "change of the final latents 3.12 % predicted"}}));
  EXPECT_EQ(plan["key_block"], "AAAAAAAAAAABAAEAAQABAAIAAgACAAIA");     // twelve tokens in blocks of four
  EXPECT_EQ(plan["anchor_block"], "AAAAAAAAAAAAAAAAAAAAAAAAAAABAAEA");  // rows 0 to 2 → row 1, packed before row 3
  EXPECT_EQ(plan["masks"]["steps"], json({0, 1}));
  EXPECT_EQ(plan["left_out"], "");
}

TEST_F(Report, ShowsHostileTextAsText) {
  save_video("d.mp4", 100);
  save_video("c.mp4", 101);
  Plan::Parts parts = test::example_parts();
  parts.provenance.transformers[0].name = kHostile;
  parts.provenance.settings = {{kHostile, kHostile}};
  json report = bench();
  report["runs"][0]["calibrated"]["plan_use"]["warnings"] = {kHostile};
  report["runs"][0]["calibrated"]["device"] = kHostile;
  ReportInputs inputs;
  inputs.files = {write("report.json", report), save("p.safetensors", parts)};
  const std::string html = make_report_page(inputs).html;
  EXPECT_THAT(html, Not(HasSubstr("<img")));
  EXPECT_EQ(count(html, "<script"), 2U);
  EXPECT_EQ(count(html, "</script"), 2U);
  EXPECT_EQ(count(html, "<!--"), 0U);
  EXPECT_THAT(html, HasSubstr("&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt; &lt;!-- &quot; &#39; &amp; 猫"));
  const json read = model_of(html);
  EXPECT_EQ(read["comparisons"][0]["prompt"], kHostile);
  EXPECT_THAT(read["warnings"][0].get<std::string>(), HasSubstr(kHostile));
}

TEST_F(Report, AsksNobodyForAnything) {
  ReportInputs inputs;
  inputs.files = {save("p.safetensors", test::example_parts())};
  const std::string html = make_report_page(inputs).html;
  for (const char* address : {"http:", "https:", "//cdn", "@import", "url("}) {
    // The one address is a namespace's name, which nothing is fetched from.
    EXPECT_EQ(count(html, address), address == std::string("http:") ? count(html, "http://www.w3.org/2000/svg") : 0U)
        << address;
  }
  EXPECT_THAT(html, HasSubstr("default-src 'none'"));
}

TEST_F(Report, TakesWhatCompareMeasured) {
  const json measured = {{"reference", "elsewhere/d.mp4"},
                         {"video", "c.mp4"},
                         {"psnr_db", nullptr},
                         {"ssim", 1.0},
                         {"flicker_difference", 0.0},
                         {"psnr_db_per_frame", {nullptr}},
                         {"frames", 1}};
  save_video("d.mp4", 100);
  const json alone = model({write("compared.json", measured)});
  EXPECT_EQ(alone["comparisons"][0]["labels"], json({"d.mp4", "c.mp4"}));
  EXPECT_TRUE(alone["comparisons"][0]["identical"]);
  EXPECT_EQ(alone["comparisons"][0]["reference"]["name"], "d.mp4");
  EXPECT_EQ(alone["comparisons"][0]["video"], nullptr) << "it is not there";
  // Beside two runs it is of these.
  json worse = measured;
  worse["psnr_db"] = 31.5;
  const json runs =
      model({write("a.json", run()), write("b.json", run("p.safetensors")), write("compared.json", worse)});
  ASSERT_EQ(runs["comparisons"].size(), 1U);
  EXPECT_EQ(runs["comparisons"][0]["psnr_db"], 31.5);
  EXPECT_EQ(runs["comparisons"][0]["speedup_total"], 1.75);
}

TEST_F(Report, ComparesTheVideosOfABenchmark) {
  save_video("d.mp4", 100);
  save_video("c.mp4", 101);
  const json page = model({write("report.json", bench())});
  const json& comparison = page["comparisons"][0];
  EXPECT_THAT(comparison["video"]["src"].get<std::string>(), ::testing::StartsWith("data:video/mp4;base64,"));
  EXPECT_EQ(comparison["reference"]["name"], "d.mp4");
  EXPECT_EQ(comparison["psnr_frames"], json({30.0, nullptr, 31.0}));
  EXPECT_EQ(page["runs"].size(), 2U);
  EXPECT_EQ(
      page["tradeoff"],
      (json{
          {{"name", "p.safetensors"}, {"speedup", 2.0}, {"psnr_db", 30.5}, {"density", 0.25}, {"kind", "measured"}}}));
  // The plan is gone: what the report says of it is drawn, and said to be all.
  EXPECT_EQ(page["maps"][0]["density_map"], json({{0.5}, {0.0}}));
  EXPECT_THAT(page["left_out"][0].get<std::string>(), AllOf(HasSubstr("p.safetensors"), HasSubstr("give its file")));
}

TEST_F(Report, SaysOfAPlanThatIsSlowerThatItIs) {
  json slower = bench();
  slower["speedup_transformer"] = 0.94;
  const json tile = model({write("report.json", slower)})["tiles"][0];
  EXPECT_EQ(tile["value"], "0.94");
  EXPECT_THAT(tile["note"].get<std::string>(), ::testing::StartsWith("as fast as dense"));
}

// What scrolls sideways on a phone would cut it.
TEST_F(Report, KeepsATablesCaptionOutOfWhatScrolls) {
  ReportInputs inputs;
  inputs.files = {write("report.json", bench())};
  const std::string html = make_report_page(inputs).html;
  EXPECT_THAT(html, ::testing::Not(HasSubstr("<caption")));
  EXPECT_THAT(html, HasSubstr("close it is to its reference</p><div class=\"scroll\""));
}

TEST_F(Report, LeavesOutVideosBeyondTheLimitAndSaysSo) {
  const std::string reference = save_video("d.mp4", 100), video = save_video("c.mp4", 101);
  ReportInputs inputs;
  inputs.reference = reference;
  inputs.video = video;
  inputs.max_video_megabytes = 0.000001;
  const ReportPage page = make_report_page(inputs);
  ASSERT_EQ(page.left_out.size(), 1U);
  EXPECT_THAT(page.left_out[0],
              AllOf(HasSubstr("d.mp4 ("), HasSubstr("c.mp4 ("), HasSubstr("--max-video-mb 1 takes all")));
  EXPECT_THAT(page.html, AllOf(Not(HasSubstr("data:video")), HasSubstr("--max-video-mb 1 takes all")));
  EXPECT_EQ(model_of(page.html)["comparisons"][0]["psnr_frames"].size(), 3U);  // measured all the same
  inputs.max_video_megabytes = 1;
  EXPECT_THAT(make_report_page(inputs).left_out, IsEmpty());
}

// A report is a file from somewhere: it does not decide what of this machine gets into a page.
TEST_F(Report, TakesNoFileThatIsNotAVideoBesideTheReport) {
  const std::string outside = save_video("outside.mp4", 7);
  write("secret.mp4", std::string("no video at all"));
  json report = bench();
  report["runs"][0]["videos"] = {{"dense", outside}, {"calibrated", "secret.mp4"}};
  const json page = model({write("report.json", report)});
  EXPECT_TRUE(page["comparisons"][0]["reference"].is_null());
  EXPECT_TRUE(page["comparisons"][0]["video"].is_null());
  EXPECT_EQ(page["left_out"].size(), 3U);
}

TEST_F(Report, ComparesTwoRunsOfOneVideo) {
  const json page = model({write("planned.json", run("gone.safetensors")), write("dense.json", run())});
  ASSERT_EQ(page["comparisons"].size(), 1U);
  EXPECT_EQ(page["comparisons"][0]["speedup_transformer"], 2.0);
  EXPECT_EQ(page["comparisons"][0]["speedup_total"], 1.75);
  json other = run();
  other["seed"] = 2;
  EXPECT_THAT(model({write("planned.json", run("gone.safetensors")), write("dense.json", other)})["comparisons"],
              IsEmpty());
}

TEST_F(Report, SaysWhichOfTheComparedRunsHas8Bits) {
  json planned = run("gone.safetensors"), dense = run();
  const auto files = [&] {
    return std::vector<std::string>{write("planned.json", planned), write("dense.json", dense)};
  };
  const auto note = [&] { return model(files())["tiles"][0]["note"].get<std::string>(); };
  const auto html = [&] {
    ReportInputs inputs;
    inputs.files = files();
    return make_report_page(inputs).html;
  };
  EXPECT_EQ(note(), "as fast as dense, one video");
  EXPECT_THAT(html(), Not(HasSubstr(">8 bits<")));
  planned["weights_dtype"] = "int8";
  planned["eight_bit_parts"] = {"none", "attention+layers"};
  const std::string told = "linear layers in int8 in 1 of 2 steps, self-attention in 8 bits in 1 of 2 steps";
  EXPECT_EQ(note(), "as fast as dense (without 8 bits; the other has " + told + "), one video");
  EXPECT_THAT(html(), AllOf(HasSubstr(">8 bits<"), HasSubstr("<td>none</td>"), HasSubstr("<td>" + told + "</td>")));
  dense["weights_dtype"] = "int8";
  dense["eight_bit_parts"] = {"none", "layers"};
  EXPECT_EQ(note(), "as fast as dense (which has linear layers in int8 in 1 of 2 steps), one video");
  json both = bench();
  both["runs"][0]["dense"] = dense;
  EXPECT_THAT(model({write("report.json", both)})["tiles"][0]["note"].get<std::string>(),
              HasSubstr("dense (which has linear layers in int8 in 1 of 2 steps), median of 1 video"));
}

TEST_F(Report, TakesThePlanThatARunNamesWhereItIsStillThatPlan) {
  const std::string plan = save("p.safetensors", test::example_parts());
  json report = run(plan);
  report["plan_checksum"] = plan_checksum_of(plan);
  const std::string path = write("run.json", report);
  EXPECT_EQ(model({path})["plans"].size(), 1U);
  EXPECT_EQ(model({path, plan})["plans"].size(), 1U);  // once
  save("p.safetensors", test::reuse_parts());
  const json page = model({path});
  EXPECT_THAT(page["plans"], IsEmpty());
  EXPECT_THAT(page["left_out"][0].get<std::string>(), HasSubstr("another one by now"));
}

TEST_F(Report, RepeatsWhatACalibrationWarnedOfAndJudgesEarlierOnesItself) {
  json report = {{"calibration_seconds", 1}, {"prompts_recorded", 4}, {"predicted_speedup", 2},
                 {"plan_written", true},     {"psnr_db", 43},         {"psnr_measured", 25.8}};
  EXPECT_THAT(model({write("c.json", report)})["warnings"], ElementsAre(HasSubstr("25.8 dB where 43.0 dB")));
  report["warnings"] = {"do not count on it"};
  EXPECT_THAT(model({write("c.json", report)})["warnings"], ElementsAre("c.json: do not count on it"));
}

TEST_F(Report, SaysInWordsWhereAPsnrIsInfinite) {
  json report = {{"calibration_seconds", 1}, {"prompts_recorded", 4}, {"predicted_speedup", 1},
                 {"plan_written", true},     {"latents_error", 0},    {"psnr_db", 193.5}};  // of earlier versions
  const auto facts = [](const json& model) { return model["facts"].dump(); };
  EXPECT_THAT(facts(model({write("c.json", report)})["calibrations"][0]),
              HasSubstr(R"(["PSNR in dB, predicted","no change but of rounding"])"));
  EXPECT_TRUE(model({write("c.json", report)})["calibrations"][0]["point"]["psnr_db"].is_null());
  json of_run = run("gone");
  of_run["plan_use"] = {{"latents_measured", 0.001}, {"psnr_measured", nullptr}, {"identical_measured", true}};
  EXPECT_THAT(facts(model({write("run.json", of_run)})["runs"][0]),
              HasSubstr(R"(["PSNR in dB, measured in its held-out run","the same pixels"])"));
}

TEST_F(Report, RepeatsWhatARunWarnedOf) {
  json report = run("gone");
  report["plan_use"] = {{"warnings", {"other weights"}}};
  report["dense_fallback_calls"] = 3;
  report["fallback_reason"] = "blocks of 32";
  report["step_mapping"] = "2 of 4";
  const json warnings = model({write("run.json", report)})["warnings"];
  EXPECT_THAT(warnings, ElementsAre("run.json: other weights",
                                    "run.json: 3 attention calls ran dense in place of the plan: blocks of 32",
                                    "run.json: its steps are not those of the plan: 2 of 4"));
}

TEST_F(Report, ShowsACalibrationsErrorsInThePlanThatItMade) {
  const Plan::Parts parts = test::reuse_parts();
  const std::string plan = save("p.safetensors", parts);
  const Plan expected{Plan::Parts(parts)};
  json report = {{"calibration_seconds", 1}, {"predicted_speedup", 2}, {"psnr_db", 40}};
  for (int step = 0; step < expected.num_steps(); ++step) {
    report["density_map"].push_back({expected.density(step, 0)});
    report["error_map"].push_back({0.01 * step});
  }
  report["energy_map"] = {{0.9}};  // of another plan
  const json page = model({plan, write("c.json", report)});
  EXPECT_EQ(page["plans"][0]["measured"],
            (json{{{"title", "Error of the output"}, {"kind", "error"}, {"map", report["error_map"]}}}));
  report["density_map"][0][0] = 0.123;
  EXPECT_FALSE(model({plan, write("c.json", report)})["plans"][0].contains("measured"));
}

// Whatever stands where a number or a text is expected.
TEST_F(Report, ReadsReportsOfOtherTypesWithoutThem) {
  for (const json& value :
       {json(nullptr), json("text"), json(-1e300), json::array({1, "x"}), json{{"a", 1}}, json(true)}) {
    json report = run("gone");
    for (auto& [key, field] : report.items()) {
      if (key != "model" && key != "seconds") field = value;
    }
    report["seconds"]["attention"] = value;
    ReportInputs inputs;
    inputs.files = {write("run.json", report)};
    EXPECT_THAT(make_report_page(inputs).html, HasSubstr("<!doctype html>")) << value;
    json many = bench();
    for (auto& [key, field] : many.items()) {
      if (key != "runs") field = value;
    }
    for (auto& [key, field] : many["runs"][0].items()) {
      if (key != "dense" && key != "calibrated") field = value;
    }
    inputs.files = {write("report.json", many)};
    EXPECT_THAT(make_report_page(inputs).html, HasSubstr("<!doctype html>")) << value;
  }
}

TEST_F(Report, RefusesWhatItCannotShowAndSaysWhatToDo) {
  EXPECT_THAT(refusal(ErrorKind::kNotFound, folder_ / "none.json"), HasSubstr("none.json"));
  EXPECT_THAT(refusal(ErrorKind::kFormat, write("empty.json", std::string())), HasSubstr("is empty; give plans"));
  EXPECT_THAT(refusal(ErrorKind::kFormat, write("torn.json", run().dump().substr(0, 200))),
              HasSubstr("must be written again"));
  EXPECT_THAT(refusal(ErrorKind::kFormat, write("other.json", json{{"a", 1}})),
              HasSubstr("no report of this program; give plans"));
  EXPECT_THAT(refusal(ErrorKind::kFormat, write("list.json", json::array({1}))),
              HasSubstr("no report of this program"));
  EXPECT_THAT(refusal(ErrorKind::kFormat, write("half.json", json{{"runs", {{{"dense", run()}}}}})),
              HasSubstr("lacks \"dense\" or \"calibrated\""));
  EXPECT_THAT(refusal(ErrorKind::kFormat, write("no_runs.json", json{{"runs", json::array()}})),
              HasSubstr("has no runs"));
  EXPECT_THAT(refusal(ErrorKind::kFormat, write("notes.txt", std::string("the fox runs\n"))),
              HasSubstr("notes.txt: is a text file, no plan and no report; give plans (.safetensors), and reports"));
  ReportInputs of_page;
  of_page.files = {write("run.json", run())};
  EXPECT_THAT(refusal(ErrorKind::kFormat, write("page.html", make_report_page(of_page).html)),
              HasSubstr("page.html: is a web page, no plan and no report; give plans"));
  EXPECT_THAT(refusal(ErrorKind::kUsage, save_video("v.mp4", 1)), HasSubstr("--video"));
  std::string plan = read_text_file(save("p.safetensors", test::example_parts()));
  EXPECT_THAT(refusal(ErrorKind::kFormat, write("torn.safetensors", plan.substr(0, plan.size() / 2))),
              HasSubstr("torn.safetensors"));
  EXPECT_THAT(refusal(ErrorKind::kUsage, ReportInputs{}), HasSubstr("nothing to report"));
  ReportInputs inputs;
  inputs.video = save_video("a.mp4", 1);
  inputs.reference = save_video("b.mp4", 1, 3, 64);
  EXPECT_THAT(refusal(ErrorKind::kMismatch, inputs), HasSubstr("differ in size"));
  inputs.reference.clear();
  inputs.video = write("text.mp4", std::string("no video"));
  EXPECT_THAT(refusal(ErrorKind::kFormat, inputs), HasSubstr("neither MP4 nor WebM"));
}

}  // namespace
}  // namespace calibatt
