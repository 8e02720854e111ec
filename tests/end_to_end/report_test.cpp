// A page of a real calibration and benchmark says what their files say.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "calibatt/plan.h"
#include "command.h"
#include "plan/plan.h"

namespace calibatt::test {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class ReportPage : public ::testing::Test {
 protected:
  /// The model of a page, as its script reads it.
  static json model_of(const std::string& html) {
    const std::string begin = "<script type=\"application/json\" id=\"model\">";
    const size_t from = html.find(begin) + begin.size();
    return json::parse(html.substr(from, html.find("</script>", from) - from));
  }
  CommandResult expect_success(const std::string& arguments) {
    CommandResult result = run_calibatt(arguments);
    EXPECT_EQ(result.exit_code, 0) << arguments << "\n" << result.output;
    return result;
  }

  TemporaryFolder folder_;
};

TEST_F(ReportPage, ShowsACalibrationAndItsBenchmark) {
  const std::string plan = folder_.file("plan.safetensors"), out = folder_.file("out");
  write_file(folder_.file("prompts.txt"), "a red circle\n<img src=x onerror=alert(1)> & a blue square\n");
  const std::string prompts = " --prompts " + folder_.file("prompts.txt");
  expect_success("calibrate" + kSmall + prompts + " -o " + plan + " --block-q 8 --block-k 8 --density 0.5 --report " +
                 folder_.file("c.json"));
  const CommandResult bench =
      expect_success("bench" + kSmall + prompts + " --plan " + plan + " --calibration-report " +
                     folder_.file("c.json") + " -o " + out + " --html " + folder_.file("b.html"));
  EXPECT_THAT(bench.output, HasSubstr(folder_.file("b.html") + ": the report"));
  const std::string html = read_file(folder_.file("b.html"));
  EXPECT_THAT(html, StartsWith("<!doctype html>"));
  EXPECT_THAT(html, HasSubstr("&lt;img src=x onerror=alert(1)&gt; &amp; a blue square"));
  const json page = model_of(html), report = json::parse(read_file(out + "/report.json"));

  const auto expected = load_plan(plan);
  ASSERT_EQ(page["plans"].size(), 1U);
  EXPECT_EQ(page["plans"][0]["checksum"], plan_checksum_of(plan));
  for (int step = 0; step < expected->num_steps(); ++step) {
    for (int layer = 0; layer < expected->num_layers(); ++layer) {
      EXPECT_EQ(page["plans"][0]["density_map"][step][layer], expected->density(step, layer)) << step << " " << layer;
    }
  }
  ASSERT_EQ(page["comparisons"].size(), 2U);
  for (size_t i = 0; i < 2; ++i) {
    const json &shown = page["comparisons"][i], &run = report["runs"][i];
    EXPECT_EQ(shown["psnr_db"], run["psnr_db"]);
    EXPECT_EQ(shown["psnr_frames"], run["psnr_db_per_frame"]);
    EXPECT_EQ(shown["psnr_frames"].size(), 9U);
    EXPECT_THAT(shown["reference"]["src"].get<std::string>(), StartsWith("data:video/mp4;base64,"));
    EXPECT_THAT(shown["video"]["src"].get<std::string>(), StartsWith("data:video/mp4;base64,"));
    EXPECT_EQ(page["runs"][2 * i]["seconds"]["total"], run["dense"]["seconds"]["total"]);
    EXPECT_EQ(page["runs"][2 * i + 1]["kind"], "planned");
  }
  EXPECT_EQ(page["calibrations"].size(), 1U);
  const json calibration = json::parse(read_file(folder_.file("c.json")));
  EXPECT_EQ(page["plans"][0]["measured"][0]["map"], calibration["error_map"]);
  EXPECT_EQ(page["plans"][0]["measured"][1]["map"], calibration["energy_map"]);
  for (const json& step : calibration["energy_map"]) {
    for (const json& layer : step) EXPECT_TRUE(layer > 0.5 && layer <= 1.001) << layer;
  }
  EXPECT_TRUE(page["left_out"].empty()) << page["left_out"];

  // The same page from the files alone, the plan by the name that the report has.
  expect_success("report " + out + "/report.json -o " + folder_.file("r.html"));
  EXPECT_EQ(model_of(read_file(folder_.file("r.html"))), page);
}

TEST_F(ReportPage, ComparesTwoVideosOfTwoRuns) {
  for (const std::string seed : {"1", "2"}) {
    expect_success("generate" + kSmall + "-p 'a red circle' --seed " + seed + " -o " +
                   folder_.file("v" + seed + ".mp4") + " --report " + folder_.file(seed + ".json"));
  }
  const std::string videos = folder_.file("v1.mp4") + " " + folder_.file("v2.mp4");
  const CommandResult compared = expect_success("compare " + videos + " --html " + folder_.file("c.html"));
  const json page = model_of(read_file(folder_.file("c.html")));
  const double psnr = page["comparisons"][0]["psnr_db"];
  char text[32];
  std::snprintf(text, sizeof(text), "PSNR %.2f dB", psnr);
  EXPECT_THAT(compared.output, HasSubstr(text));
  EXPECT_EQ(page["comparisons"][0]["psnr_frames"].size(), 9U);

  const CommandResult limited =
      expect_success("report " + folder_.file("1.json") + " --reference " + folder_.file("v1.mp4") + " --video " +
                     folder_.file("v1.mp4") + " --max-video-mb 0 -o " + folder_.file("l.html"));
  EXPECT_THAT(limited.output, HasSubstr("--max-video-mb 1 takes all"));
  const json limited_page = model_of(read_file(folder_.file("l.html")));
  EXPECT_EQ(limited_page["comparisons"][0]["identical"], true);
  EXPECT_TRUE(limited_page["comparisons"][0]["video"]["src"].is_null());
}

TEST_F(ReportPage, DestroysNothingAndSaysWhatIsWrong) {
  write_file(folder_.file("r.json"), "{\"model\": ");
  const CommandResult torn = run_calibatt("report " + folder_.file("r.json") + " -o " + folder_.file("p.html"));
  EXPECT_EQ(torn.exit_code, 4);
  EXPECT_THAT(torn.output, AllOf(HasSubstr("r.json"), HasSubstr("must be written again")));
  EXPECT_FALSE(std::filesystem::exists(folder_.file("p.html")));
  write_file(folder_.file("mine.html"), "<html>not ours</html>");
  EXPECT_EQ(run_calibatt("report " + folder_.file("r.json") + " -o " + folder_.file("mine.html")).exit_code, 2);
  EXPECT_EQ(read_file(folder_.file("mine.html")), "<html>not ours</html>");
  EXPECT_EQ(run_calibatt("report " + folder_.file("r.json") + " -o " + folder_.file("p.txt")).exit_code, 2);
  EXPECT_EQ(run_calibatt("report -o " + folder_.file("p.html")).exit_code, 2);
}

}  // namespace
}  // namespace calibatt::test
