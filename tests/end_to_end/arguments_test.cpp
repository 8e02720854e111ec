// What is typed: mistakes name the nearest, flags of other programs are understood, numbers mean what they say.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "command.h"

namespace calibatt::test {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

class Arguments : public ::testing::Test {
 protected:
  void expect_usage(const std::string& arguments, const std::string& message) {
    const CommandResult result = run_calibatt(arguments);
    EXPECT_EQ(result.exit_code, 2) << arguments << "\n" << result.output;
    EXPECT_THAT(result.output, HasSubstr(message)) << arguments;
    EXPECT_EQ(result.output.find('\n'), result.output.size() - 1) << "one line: " << result.output;
    EXPECT_LT(result.output.size(), 500U) << result.output;
  }
  std::string report() { return read_file(folder_.file("r.json")); }

  TemporaryFolder folder_;
  const std::string output_ = " -o " + folder_.file("v.mp4") + " --report " + folder_.file("r.json") + " ";
};

TEST_F(Arguments, MistypedOnesNameTheNearest) {
  expect_usage("generat", "did you mean calibatt generate?");
  expect_usage("compile -m x", "calibatt calibrate makes plans, further ones from the --profile");
  expect_usage("brnch", "did you mean calibatt bench?");
  expect_usage("frobnicate", "the commands are generate, calibrate");
  expect_usage("--prompt a", "a command comes before its flags");
  expect_usage("generate" + kSmall + "-p a --stpes 3" + output_, "--stpes; did you mean --steps?");
  expect_usage("generate" + kSmall + "-p a --hieght 64" + output_, "did you mean --height?");
  expect_usage("generate -m x -p a --density .3" + output_, "--density is a flag of calibatt calibrate");
  expect_usage("calibrate -m x --keep-steps 2", "with --eight-bit-layers-from N and --eight-bit-attention-from N");
  expect_usage("generate -m x -p a --qqqqqqqqqq" + output_, "there is no flag --qqqqqqqqqq");
  expect_usage("generate -m x -p a cat" + output_, "\"cat\" was not expected there; put text with blanks in quotes");
  expect_usage("generate -m x" + output_, "--prompt TEXT, or --prompts FILE");
  expect_usage("generate -p a" + output_, "--model is required");
}

TEST_F(Arguments, EmptyValuesAreNoValues) {
  expect_usage("generate" + kSmall + "-p a --plan ''" + output_, "--plan is empty");
  expect_usage("generate" + kSmall + "-p a --plan=" + output_, "--plan is empty");
  expect_usage("generate" + kSmall + "-p a --seed ''" + output_, "--seed is empty");
  expect_usage("generate" + kSmall + "-p a --report '' -o " + folder_.file("v.mp4"), "--report is empty");
  expect_usage("generate" + kSmall + "-p a --plan --steps 2" + output_, "--plan needs a value, but --steps follows");
  expect_usage("generate" + kSmall + "-p a -o", "-o needs a value");
  expect_usage("compare '' b.mp4", "is empty");
}

TEST_F(Arguments, NumbersMeanWhatTheySay) {
  for (const std::string value : {"2.5", "010", "0x10", "3e1", "two", "0", "1001", "99999999999999999999"}) {
    expect_usage("generate" + kSmall + "-p a --steps " + value + output_,
                 "--steps " + value + ": must be a whole number");
  }
  for (const std::string value : {"18446744073709551616", "-5", "007", "0x7", "1.0", "' 7'", "seven"}) {
    expect_usage("generate" + kSmall + "-p a --seed " + value + output_, "must be a whole number from 0 to");
  }
  for (const std::string value : {"nan", "inf", "-1", "1,5", "5x"}) {
    expect_usage("generate" + kSmall + "-p a --cfg-scale " + value + output_,
                 "--cfg-scale " + value + ": must be a number");
  }
  expect_usage("generate" + kSmall + "-p a --steps " + std::string(100'000, '9') + output_, "must be a whole number");
  expect_usage("generate" + kSmall + "-p a --" + std::string(100'000, 'x') + " 1" + output_, "there is no flag");
  expect_usage("generate" + kSmall + "-p a --'\x1b[31m'" + output_, "\\x1b[31m");
}

TEST_F(Arguments, ValuesOfOtherProgramsAreUnderstoodOrAnswered) {
  for (const std::string dtype : {"float32", "torch.bfloat16"}) {
    const CommandResult result =
        run_calibatt("generate" + kSmall + "-p a --steps 1 --video-frames 5 --dtype " + dtype + output_);
    ASSERT_EQ(result.exit_code, 0) << result.output;
    EXPECT_TRUE(nlohmann::json::parse(report())["precision"].get<std::string>().starts_with(
        dtype == "float32" ? "fp32" : "bf16"));
  }
  const std::string command = "generate" + kSmall + "-p a" + output_;
  expect_usage(command + "--dtype float16", "the backend cpu has no fp16 arithmetic");
  expect_usage(command + "--dtype half", "--dtype half: choose bf16, fp16 (on a GPU), fp32 or auto");
  expect_usage(command + "--dtype fp8_e4m3fn", "--weights-dtype fp8");
  expect_usage(command + "--device 0,1", "the backend cpu has no device 1");
  expect_usage(command + "--device 0,,1", "--device 0,,1: item 2 is empty");
  expect_usage(command + "--device 0,", "--device 0,: item 2 is empty");
  expect_usage(command + "--device ,", "--device ,: item 1 is empty");
  std::string many = "0";
  for (int more = 0; more < 64; ++more) many += ",0";
  expect_usage(command + "--device " + many, "--device: names 65 devices; give at most 64");
  expect_usage(command + "--gpus 2", "leave --backend cpu out");
  expect_usage(command + "--gpus 0", "must be a whole number from 1 to 64");
  expect_usage(command + "--gpus 1 --device 0", "--device excludes --gpus");
  expect_usage(command + "--device cuda:1", "give the index alone, --device 1");
  expect_usage(command + "--device cpu", "--backend cpu");
  expect_usage(command + "--device one", "--device one: must be a whole number from 0 to 1024");
  expect_usage(command + "--scheduler dpm++", "--scheduler dpm++: is not there; --scheduler unipc is the nearest");
  expect_usage(command + "--scheduler FlowMatchEulerDiscreteScheduler", "is --scheduler euler here");
  expect_usage(command + "--scheduler lcm", "--timesteps");
  expect_usage(command + "--scheduler ddim", "choose unipc or euler");
}

TEST_F(Arguments, LinearLayersAreIn8BitsWhereThatIsAskedFor) {
  const std::string command = "generate" + kSmall + "-p a --steps 1 --video-frames 5" + output_;
  ASSERT_EQ(run_calibatt(command).exit_code, 0);
  EXPECT_TRUE(nlohmann::json::parse(report())["weights_dtype"].is_null());
  const CommandResult result = run_calibatt(command + "--weights-dtype fp8 --keep-layers ffn.net.2,blocks.0");
  ASSERT_EQ(result.exit_code, 0) << result.output;
  EXPECT_EQ(nlohmann::json::parse(report())["weights_dtype"], "fp8, but for blocks.0, ffn.net.2");
  EXPECT_THAT(result.output, HasSubstr("weights fp8, but for blocks.0, ffn.net.2"));

  ASSERT_EQ(run_calibatt(command + "--weights-dtype int8").exit_code, 0);
  EXPECT_EQ(nlohmann::json::parse(report())["weights_dtype"], "int8");
  expect_usage(command + "--weights-dtype int4", "--weights-dtype int4: choose fp8 (e4m3), int8, bf16 or auto");
  expect_usage(command + "--weights-dtype fp8 --keep-layers ffn,", "--keep-layers ffn,: give names between commas");
  expect_usage(command + "--weights-dtype fp8 --keep-layers proj_out", "no layer \"proj_out\" would be in 8 bits");
  expect_usage(command + "--weights-dtype fp8 --keep-layers 'ffn.net.2, attn'",
               "--keep-layers: no layer \"attn\" would");
  expect_usage(command + "--attention-dtype int8", "--attention-dtype int8: choose fp8 (int8 queries and keys");
  expect_usage(command + "--keep-layers ffn", "--keep-layers says which layers --weights-dtype fp8 or int8 leaves");
  expect_usage(command + "--weights-dtype fp8 --keep-layers 0", "no layer \"0\" would be in 8 bits");
  expect_usage(command + "--weights-dtype bf16 --dtype fp32", "which is fp32 here; leave it out");
}

TEST_F(Arguments, ARunMayBeginWithout8Bits) {
  const std::string command = "generate" + kSmall + "-p a --steps 6 --video-frames 5 --dtype bf16 ";
  const auto parts_of = [&](const std::string& flags, const std::string& name) {
    const CommandResult result =
        run_calibatt(command + flags + " -o " + folder_.file(name + ".png") + " --report " + folder_.file("r.json"));
    EXPECT_EQ(result.exit_code, 0) << result.output;
    return nlohmann::json::parse(read_file(folder_.file("r.json")))["eight_bit_parts"];
  };
  const auto frame = [&](const std::string& name) { return read_file(folder_.file(name + "_00003.png")); };
  using List = std::vector<std::string>;
  EXPECT_EQ(parts_of("", "plain"), List());
  EXPECT_EQ(parts_of("--weights-dtype fp8", "usual"), List({"none", "none", "layers", "layers", "layers", "layers"}));
  EXPECT_EQ(parts_of("--weights-dtype int8", "int8"), List({"none", "none", "layers", "layers", "layers", "layers"}));
  EXPECT_EQ(parts_of("--weights-dtype fp8 --keep-steps 6", "none"), List(6, "none"));
  EXPECT_EQ(parts_of("--weights-dtype fp8 --keep-steps 0", "all"), List(6, "layers"));
  EXPECT_EQ(frame("none"), frame("plain")) << "no step is in 8 bits";
  EXPECT_NE(frame("usual"), frame("plain"));
  EXPECT_NE(frame("int8"), frame("plain"));
  EXPECT_NE(frame("int8"), frame("usual"));
  EXPECT_EQ(parts_of("--weights-dtype fp8 --keep-layers blocks", "kept"), List()) << "nothing is left in 8 bits";
  EXPECT_EQ(frame("kept"), frame("plain"));
  EXPECT_TRUE(nlohmann::json::parse(read_file(folder_.file("r.json")))["weights_dtype"].is_null());
  EXPECT_NE(frame("all"), frame("usual"));

  expect_usage(command + "--keep-steps 2" + output_, "add one of these");
  expect_usage(command + "--weights-dtype fp8 --keep-steps 7" + output_,
               "--keep-steps 7: the run has 6 steps; give 0 to 6");
  expect_usage(command + "--weights-dtype fp8 --keep-steps 99999999999" + output_, "whole number from 0 to 2147483647");
  expect_usage(command + "--weights-dtype fp8 --keep-steps -1" + output_, "must be a whole number from 0\n");
}

TEST_F(Arguments, LayersThatStayAreThoseWhateverTheirOrderAndKnownBeforeTheRun) {
  const std::string many = "generate" + kSmall + "--steps 1 --video-frames 5 --weights-dtype fp8 --prompts " +
                           folder_.file("prompts.txt") + " -o " + folder_.file("many.mp4") + " --keep-layers ";
  write_file(folder_.file("prompts.txt"), "a\nb\n");
  ASSERT_EQ(run_calibatt(many + "ffn.net.2,blocks.0").exit_code, 0);
  const CommandResult again = run_calibatt(many + "blocks.0,ffn.net.2,blocks.0");
  EXPECT_EQ(again.exit_code, 0);
  EXPECT_THAT(again.output, Not(HasSubstr("denoise"))) << "all is made";
  expect_usage(many + "blocks.0,ffn.net.2,blocks.99", "no layer \"blocks.99\" would be in 8 bits");
}

TEST_F(Arguments, InfoRefusesThePrecisionThatNoRunHas) {
  const std::string info = "info --model " + kModel + " ", mochi = "info --model " CALIBATT_MODELS_DIR "/tiny-mochi ";
  expect_usage(mochi + "--weights-dtype fp8 --keep-layers to_add_out", "no layer \"to_add_out\" would be in 8 bits");
  expect_usage(info + "--weights-dtype fp8 --keep-layers nothing", "no layer \"nothing\" would be in 8 bits");
  expect_usage(info + "--keep-layers ffn", "--keep-layers says which layers");
  expect_usage(info + "--dtype fp16 --backend cpu", "the backend cpu has no fp16 arithmetic");
  expect_usage(info + "--weights-dtype bf16 --dtype fp32", "which is fp32 here");
  expect_usage(info + "--attention-dtype bf16 --dtype fp32", "--attention-dtype bf16: self-attention is of");
  const auto gigabytes = [&](const std::string& flags) {  // of a forward
    const CommandResult result = run_calibatt(info + "-W 512 -H 512 " + flags);
    EXPECT_EQ(result.exit_code, 0) << result.output;
    const size_t at = result.output.find("a forward ");
    return at == std::string::npos ? 0 : std::stod(result.output.substr(at + 10));
  };
  EXPECT_GT(gigabytes("--attention-dtype fp8"), gigabytes("--attention-dtype auto"));
}

// Once, and before anything is loaded; info shows what it is asked for, and says the same.
TEST_F(Arguments, WhatThisMachineLacksIsRefusedOnceBeforeLoading) {
  write_file(folder_.file("prompts.txt"), "a\nb\n");
  const std::string many = "generate" + kSmall + "--backend cpu --steps 1 --prompts " + folder_.file("prompts.txt") +
                           " -o " + folder_.file("many.mp4") + " --attention-dtype fp8";
  const std::string lacks = "attention: the CPU computes in 16 or 32 bits; in 8 bits a Hopper GPU does";
  const CommandResult refused = run_calibatt(many);
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.output, HasSubstr(lacks));
  EXPECT_EQ(refused.output.find(lacks), refused.output.rfind(lacks));
  EXPECT_THAT(refused.output, Not(HasSubstr("load")));
  const std::string info = "info --backend cpu --model " + kModel;
  const CommandResult told = run_calibatt(info + " --attention-dtype fp8");
  EXPECT_EQ(told.exit_code, 0);
  EXPECT_THAT(told.output, HasSubstr("warning: a run on this machine is refused: " + lacks));
  EXPECT_THAT(run_calibatt(info).output, Not(HasSubstr("is refused")));
}

// Of many videos each would be refused for it.
TEST_F(Arguments, APlanThatDoesNotFitIsRefusedOnceBeforeLoading) {
  write_file(folder_.file("prompts.txt"), "a\nb\n");
  const std::string why = "the plan does not fit: it was made for a model of 1 layer, this run has 8";
  const CommandResult refused =
      run_calibatt("generate" + kSmall + "--steps 1 --prompts " + folder_.file("prompts.txt") + " -o " +
                   folder_.file("many.mp4") + " --plan " CALIBATT_GOLDEN_DATA "/plan_v3_example.safetensors");
  EXPECT_EQ(refused.exit_code, 5);
  EXPECT_THAT(refused.output, HasSubstr(why));
  EXPECT_EQ(refused.output.find(why), refused.output.rfind(why));
  EXPECT_THAT(refused.output, Not(HasSubstr("load")));
}

TEST_F(Arguments, AttentionInBf16IsThatOfARunInBf16) {
  const std::string command = "generate" + kSmall + "-p a --steps 1 --video-frames 5" + output_ + "--attention-dtype ";
  expect_usage(command + "bf16 --dtype fp32", "which is fp32 here; leave it out, or add --dtype bf16");
  for (const char* sound : {"bf16 --dtype bf16", "auto --dtype fp32"}) {
    EXPECT_EQ(run_calibatt(command + sound).exit_code, 0) << sound;
  }
}

TEST_F(Arguments, MinusOneIsAnySeedAndIsSaid) {
  const std::string command = "generate" + kSmall + "-p a --steps 1 --seed -1" + output_;
  const CommandResult first = run_calibatt(command);
  ASSERT_EQ(first.exit_code, 0) << first.output;
  const auto seed = nlohmann::json::parse(report())["seed"].get<uint64_t>();
  EXPECT_THAT(first.output, HasSubstr("seed " + std::to_string(seed)));
  ASSERT_EQ(run_calibatt(command).exit_code, 0);
  EXPECT_NE(nlohmann::json::parse(report())["seed"].get<uint64_t>(), seed);
  ASSERT_EQ(run_calibatt("generate" + kSmall + "-p a --steps 1 -s 18446744073709551615" + output_).exit_code, 0);
  EXPECT_EQ(nlohmann::json::parse(report())["seed"].get<uint64_t>(), UINT64_MAX);
  expect_usage("calibrate" + kSmall + "--seed -1 --prompts x -o p.safetensors", "--seed -1: must be");
}

TEST_F(Arguments, FlagsOfOtherProgramsAreUnderstood) {
  const CommandResult result = run_calibatt(
      "generate --task t2v-1.3B --size 64*48 --ckpt_dir " + kModel +
      " --sample_steps 2 --sample_shift 4 --sample_guide_scale 3.5 --frame_num 5 --base_seed 9 --offload_model False "
      "--negative_prompt blur --backend cpu --threads 2 --prompt 'a red circle' --save_file=" +
      folder_.file("v.mp4") + " --report " + folder_.file("r.json"));
  ASSERT_EQ(result.exit_code, 0) << result.output;
  EXPECT_THAT(result.output, AllOf(HasSubstr("--sample_steps is --steps here"), HasSubstr("--size is -W 64 -H 48"),
                                   HasSubstr("--negative_prompt is --negative-prompt here")));
  const auto run = nlohmann::json::parse(report());
  EXPECT_EQ(run["width"], 64);
  EXPECT_EQ(run["height"], 48);
  EXPECT_EQ(run["steps"], 2);
  EXPECT_EQ(run["flow_shift"], 4);
  EXPECT_EQ(run["cfg_scale"], 3.5);
  EXPECT_EQ(run["video_frames"], 5);
  EXPECT_EQ(run["seed"], 9);
  EXPECT_EQ(run["negative_prompt"], "blur");
  const CommandResult diffusers = run_calibatt("generate --model " + kModel +
                                               " --num_inference_steps 1 --guidance_scale 1 --num-frames 5 --height 48 "
                                               "--width 64 --prompt a --backend cpu" +
                                               output_);
  EXPECT_EQ(diffusers.exit_code, 0) << diffusers.output;

  const CommandResult listed = run_calibatt("generate" + kSmall +
                                            "-p a --denoising_step_list '[1000, 750]' --sample_shift 5 --scheduler "
                                            "euler --cfg-scale 1" +
                                            output_);
  ASSERT_EQ(listed.exit_code, 0) << listed.output;
  EXPECT_EQ(nlohmann::json::parse(report())["noise_levels"], nlohmann::json({1.0, 0.9375}));
  expect_usage("generate" + kSmall + "-p a --sigmas karras" + output_, "linear-quadratic, or list the noise levels");

  expect_usage("generate --task vace-14B -p a" + output_, "from text, or from text and a first picture");
  expect_usage("generate --size 832 -p a" + output_, "-W WIDTH -H HEIGHT");
  expect_usage("generate --ulysses_size 8 -p a" + output_, "--gpus N");
  expect_usage("compare --sample_steps 3 a b", "there is no flag --sample_steps");
}

// Wan-AI's own line, word for word but for the sizes; and stable-diffusion.cpp's.
TEST_F(Arguments, FlagsThatWouldChangeNothingArePassedOver) {
  const CommandResult wan = run_calibatt(
      "generate --task t2v-1.3B --size 64*48 --ckpt_dir " + kModel +
      " --offload_model True --t5_cpu --sample_shift 8 --sample_guide_scale 6 --ulysses_size 1 --ring_size 1 "
      "--use_prompt_extend False --prompt_extend_method local_qwen --frame_num 5 --sample_steps 1 --backend cpu "
      "--prompt 'a red circle'" +
      output_);
  ASSERT_EQ(wan.exit_code, 0) << wan.output;
  for (const char* flag : {"--t5_cpu", "--ulysses_size", "--ring_size", "--use_prompt_extend"}) {
    EXPECT_THAT(wan.output, HasSubstr(std::string(flag) + " is not needed here and is passed over: "));
  }
  EXPECT_THAT(wan.output, HasSubstr("--offload changes nothing with the backend cpu"));
  EXPECT_EQ(nlohmann::json::parse(report())["flow_shift"], 8);
  const CommandResult cpp = run_calibatt("generate -M vid_gen --diffusion-model " + kModel +
                                         " --diffusion-fa --vae-tiling --sampling-method euler --cfg-scale 6.0 -W 64 "
                                         "-H 48 --video-frames 5 --steps 1 --backend cpu -p a" +
                                         output_);
  ASSERT_EQ(cpp.exit_code, 0) << cpp.output;
  EXPECT_EQ(nlohmann::json::parse(report())["scheduler"], "euler");
  // What would change something is refused.
  for (const char* flag : {"--use_prompt_extend", "--ulysses_size 8", "--batch_size 4", "--last_frame a.png",
                           "--mode img_gen", "--t5_cpu=maybe"}) {
    expect_usage("generate" + kSmall + flag + " -p a" + output_, std::string(flag).substr(0, 6));
  }
}

// The last of two flags of ours counts. Two names for one thing that say different things are a mistake.
TEST_F(Arguments, FlagsThatContradictEachOtherAreNamed) {
  const std::string run = "generate --model " + kModel + " --backend cpu --video-frames 5 --steps 1 -p a" + output_;
  expect_usage(run + "--size 64*48 -W 32", "--size 64*48 and -W 32 both say what --width is here");
  expect_usage(run + "-W 64 -H 48 --size 64x32", "-H 48 and --size 64x32 both say what --height is here");
  expect_usage(run + "--num_inference_steps 3", "--steps 1 and --num_inference_steps 3 both say what --steps is here");
  expect_usage(run + "--sample_shift 3 --shift 5", "--sample_shift 3 and --shift 5 both say what --flow-shift is");
  const CommandResult same = run_calibatt(run + "--size 64*48 -W 64 --height 48");
  EXPECT_EQ(same.exit_code, 0) << same.output;
  const CommandResult last = run_calibatt(run + "-W 32 -H 48 --width 64");
  EXPECT_EQ(last.exit_code, 0) << last.output;
  EXPECT_THAT(last.output, AllOf(HasSubstr("64×48"), HasSubstr(", 1 step ("), Not(HasSubstr("1 steps"))));
}

TEST_F(Arguments, BenchRunsEveryPromptOrSaysSo) {
  std::string prompts;
  for (int i = 0; i < 3; ++i) prompts += "a red circle\n";
  write_file(folder_.file("prompts.txt"), prompts);
  const std::string tiles = "--block-q 8 --block-k 8 --token-order tiles:2x2x2 --anchors 2 --density 0.5 ";
  ASSERT_EQ(run_calibatt("calibrate" + kSmall + tiles + "--prompts " + folder_.file("prompts.txt") + " -o " +
                         folder_.file("p.safetensors"))
                .exit_code,
            0);
  const std::string bench = "bench" + kSmall + "--plan " + folder_.file("p.safetensors") + " --prompts " +
                            folder_.file("prompts.txt") + " -o " + folder_.file("out");
  const CommandResult all = run_calibatt(bench);
  ASSERT_EQ(all.exit_code, 0) << all.output;
  EXPECT_EQ(nlohmann::json::parse(read_file(folder_.file("out/report.json")))["prompts"].size(), 3U);
  EXPECT_THAT(all.output, Not(HasSubstr("--max-prompts")));
  const CommandResult some = run_calibatt(bench + " --max-prompts 1");
  ASSERT_EQ(some.exit_code, 0) << some.output;
  EXPECT_THAT(some.output, HasSubstr("running 1 of 3 prompts (--max-prompts)"));
}

// The run goes on, and says what changed nothing of it.
TEST_F(Arguments, FlagsThatNothingReadsAreNamed) {
  const auto warning = [](const std::string& text) { return HasSubstr("calibatt: warning: " + text); };
  const std::string run = kSmall + "--steps 1 --video-frames 5 ";
  const CommandResult unguided =
      run_calibatt("generate" + run + "-p a -n blur --cfg-scale 1 --on-mismatch dense" + output_);
  ASSERT_EQ(unguided.exit_code, 0) << unguided.output;
  EXPECT_THAT(unguided.output, AllOf(warning("--negative-prompt is not read: guidance is off (--cfg-scale 1)"),
                                     warning("--on-mismatch is not read: no --plan is given")));
  const CommandResult guided = run_calibatt("generate" + run + "-p a -n blur --fps 8 -o " + folder_.file("f.png"));
  ASSERT_EQ(guided.exit_code, 0) << guided.output;
  EXPECT_THAT(guided.output,
              AllOf(warning("--fps is not read: numbered pictures"), Not(HasSubstr("--negative-prompt"))));
  const CommandResult compared = run_calibatt("compare " + folder_.file("f.png") + " " + folder_.file("v.mp4") +
                                              " --fps 8 --side-by-side " + folder_.file("s.png"));
  EXPECT_EQ(compared.exit_code, 0) << compared.output;
  EXPECT_THAT(compared.output, warning("--fps is not read"));
  const std::string both = "compare " + folder_.file("f.png") + " " + folder_.file("v.mp4");
  expect_usage(both + " --report " + folder_.file("v.mp4"), "would overwrite");
  ASSERT_EQ(run_calibatt(both + " --report " + folder_.file("c.json")).exit_code, 0);
  const auto report = nlohmann::json::parse(read_file(folder_.file("c.json")));
  EXPECT_EQ(report["video"], folder_.file("v.mp4"));
  EXPECT_EQ(report["frames"], 5);
  EXPECT_EQ(report["psnr_db_per_frame"].size(), 5U);
  EXPECT_GT(report["psnr_db"], 20);
  EXPECT_FALSE(report["identical"]);

  write_file(folder_.file("prompts.txt"), "a\n");
  const CommandResult calibrated =
      run_calibatt("calibrate" + run +
                   "--block-q 8 --block-k 8 --token-order tiles:2x2x2 --anchors 2 --density 0.5 --rho .7 --gamma .9 "
                   "--fps 8 --prompts " +
                   folder_.file("prompts.txt") + " -o " + folder_.file("p.safetensors"));
  ASSERT_EQ(calibrated.exit_code, 0) << calibrated.output;
  EXPECT_THAT(calibrated.output, AllOf(warning("--rho changes nothing here"), warning("--gamma changes nothing here"),
                                       warning("--fps is not read: a calibration writes no video")));

  const CommandResult info = run_calibatt("info -m " + kModel + " --offload --seed 3");
  ASSERT_EQ(info.exit_code, 0) << info.output;
  EXPECT_THAT(info.output, warning("--seed is not read: calibatt info tells"));
  expect_usage("generate" + kSmall + "-p a --cfg-scale-2 3" + output_, "this model has one transformer; leave it out");
}

TEST_F(Arguments, ARunBeginsWithNoise) {
  expect_usage("generate --model " + kModel + " -W 64 -H 64 -p a --sigmas .5,.25" + output_,
               "--sigmas: begins at noise level 0.5, but a run always begins with pure noise");
}

TEST_F(Arguments, UnreadableInputsAreNotUnwrittenOutputs) {
  EXPECT_EQ(run_calibatt("inspect " + folder_.path.string()).exit_code, 4);
  EXPECT_EQ(run_calibatt("compare /dev/null /dev/null").exit_code, 4);
  EXPECT_EQ(run_calibatt("generate" + kSmall + "-p a --plan " + folder_.path.string() + output_).exit_code, 4);
}

TEST_F(Arguments, InfoTellsDefaultsAndMemory) {
  const CommandResult info = run_calibatt("info -m " + kModel);
  ASSERT_EQ(info.exit_code, 0) << info.output;
  EXPECT_THAT(info.output, AllOf(HasSubstr("--width 256 --height 256 (multiples of 16 and 16)"),
                                 HasSubstr("--video-frames 65 (4k+1)"), HasSubstr("--steps "), HasSubstr("GB")));
  EXPECT_EQ(run_calibatt("info -m " + kModel + " -W 100").exit_code, 2);
  EXPECT_EQ(run_calibatt("info -m " + folder_.file("none")).exit_code, 3);
}

TEST_F(Arguments, InfoCountsWhatStaysInHostMemory) {
  const auto memory = [](const std::string& flags) {
    const CommandResult info = run_calibatt("info " + flags);
    EXPECT_EQ(info.exit_code, 0) << info.output;
    return info.output.substr(info.output.find("memory for such a video"));
  };
  for (const std::string& model : {kModel, std::string(CALIBATT_MODELS_DIR "/tiny-mochi")}) {
    const std::string gpu = "-m " + model + " --backend cuda --dtype fp32";
    EXPECT_THAT(memory(gpu), AllOf(Not(HasSubstr("weights 0.00")), Not(HasSubstr(" and weights"))));
    EXPECT_THAT(memory(gpu + " --offload"),
                AllOf(HasSubstr("= weights 0.00 + "), ContainsRegex("of host memory the frames take 0\\.0[0-9] GB and "
                                                                    "weights 0\\.0[1-9] GB")));
  }
  // The layers of the steps without 8 bits: each of two GPUs has its own, unless they share weights.
  EXPECT_THAT(memory("-m " + kModel + " --backend cuda --gpus 2 --weights-dtype fp8"),
              ContainsRegex(", on each GPU: .* and weights 0\\.03 GB, of all GPUs together\n"
                            "  with --shard-weights on, .*; of host memory weights 0\\.01 GB, of all GPUs together"));
  const CommandResult cpu = run_calibatt("info --backend cpu --offload -m " + kModel);
  EXPECT_THAT(cpu.output, AllOf(HasSubstr("warning: --offload changes nothing where a CPU computes"),
                                HasSubstr("--backend cuda"), Not(HasSubstr(" and weights"))));
}

TEST_F(Arguments, HelpTeaches) {
  const CommandResult nothing = run_calibatt("");
  EXPECT_EQ(nothing.exit_code, 2);
  EXPECT_THAT(nothing.output, AllOf(HasSubstr("calibatt generate"), HasSubstr("calibatt calibrate")));
  const CommandResult help = run_calibatt("generate --help");
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.output,
              AllOf(HasSubstr("multiple of 16"), HasSubstr("begin with # are passed over"), HasSubstr("--prompts")));
}

}  // namespace
}  // namespace calibatt::test
