// What recording codes by harm takes of a GPU and its host, at Wan 14B's size and 720p × 81 frames unless flags say
// otherwise: attention calls on random numbers, dense and recorded, the latter after so many earlier prompts.
//   calibatt_harm_bench [--height 45 --width 80 --heads 40 …] > FILE.json
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "backend/cuda/attention/cuda_attention.h"
#include "base/thread_pool.h"
#include "calibrate/record/harm_recorder.h"
#include "random_tensor.h"

namespace calibatt::bench {
namespace {

struct Flags {
  int frames = 21, height = 45, width = 80, heads = 40, head_dim = 128, block = 128;
  int calls = 5, earlier = 4, threads = 0;
};

ProfileHeader header_of(const Flags& flags) {
  ProfileHeader header;
  AttentionGeometry& g = header.geometry;
  g.frames = flags.frames, g.height = flags.height, g.width = flags.width;
  g.heads = flags.heads, g.head_dim = flags.head_dim;
  g.block_q = g.block_k = flags.block;
  header.num_layers = flags.calls + 1;  // the first is not counted
  header.sigmas = {1.0};
  header.measured = Measured::kLevels, header.code_ranking = Ranking::kHarm;
  header.recorded_steps = {0};
  header.anchor_rows = {5};
  header.provenance.num_prompts = flags.earlier + 1;
  return header;
}

class Calls {
 public:
  explicit Calls(const ProfileHeader& header) : header_(header) {
    const AttentionGeometry& g = header.geometry;
    const int64_t width = int64_t{g.heads} * g.head_dim;
    qkv_ = gpu_.from_host(random_tensor({g.num_tokens(), 3 * width}, 1.0));
    out_ = gpu_.empty(DType::kBF16, {g.num_tokens(), width});
    weight_ = gpu_.from_host(random_tensor({width, width}, 0.02));
    gate_ = gpu_.from_host(converted(random_tensor({width}, 1.0), DType::kF32));
  }

  /// Seconds of each call but the first.
  std::vector<double> run(SelfAttention& attention, GuidanceBranch branch) {
    const AttentionGeometry& g = header_.geometry;
    const int64_t width = int64_t{g.heads} * g.head_dim;
    const auto part = [&](int64_t index) {
      return ConstHeadsView{qkv_.data<bfloat16>() + index * width, DType::kBF16, g.num_tokens(), 3 * width, g.head_dim};
    };
    attention.begin_forward(0, branch);
    OutputContext context;
    context.residual_square_sum = 1e6;
    context.backend_weight = weight_, context.backend_gate = &gate_;
    std::vector<double> seconds;
    for (int layer = 0; layer < header_.num_layers; ++layer) {
      gpu_.synchronize();
      const auto begin = std::chrono::steady_clock::now();
      attention.attend(layer, g, part(0), part(1), part(2),
                       {out_.raw(), DType::kBF16, g.num_tokens(), width, g.head_dim}, context);
      gpu_.synchronize();
      if (layer > 0) seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    return seconds;
  }
  cuda::CudaAttention& gpu() { return gpu_; }

 private:
  const ProfileHeader& header_;
  cuda::CudaAttention gpu_;
  Tensor qkv_, out_, weight_, gate_;
};

nlohmann::json summary(std::vector<double> seconds) {
  std::ranges::sort(seconds);
  return {{"median_ms", 1e3 * seconds[seconds.size() / 2]},
          {"min_ms", 1e3 * seconds.front()},
          {"max_ms", 1e3 * seconds.back()}};
}

void run(const Flags& flags) {
  set_num_threads(flags.threads);
  const ProfileHeader header = header_of(flags);
  Calls calls(header);
  nlohmann::json result = {{"gpu", calls.gpu().device_name()},
                           {"tokens", header.geometry.num_tokens()},
                           {"heads", flags.heads},
                           {"threads", num_threads()}};
  const auto first = std::make_shared<PromptProfile>(PromptProfile::allocate(header, 0));
  PromptProfile next = PromptProfile::allocate(header, 1);
  HarmRecorder own(calls.gpu(), header, {}, *first);
  result["dense"] = summary(calls.run(own, GuidanceBranch::kUnconditional));
  result["first_prompt"] = summary(calls.run(own, GuidanceBranch::kConditional));
  own.finish();
  const EarlierPrompts earlier(static_cast<size_t>(flags.earlier), first);
  HarmRecorder recorder(calls.gpu(), header, earlier, next);
  result["next_prompt"] = summary(calls.run(recorder, GuidanceBranch::kConditional));
  recorder.finish();
  result["dense_again"] = summary(calls.run(recorder, GuidanceBranch::kUnconditional));
  result["peak_bytes"] = calls.gpu().peak_memory_bytes();
  std::cout << result.dump(1) << std::endl;
}

}  // namespace
}  // namespace calibatt::bench

int main(int argc, char** argv) {
  calibatt::bench::Flags flags;
  CLI::App app{"What recording codes by harm takes beside dense attention"};
  app.add_option("--frames", flags.frames)->capture_default_str();
  app.add_option("--height", flags.height, "Of a latent frame, in tokens")->capture_default_str();
  app.add_option("--width", flags.width)->capture_default_str();
  app.add_option("--heads", flags.heads)->capture_default_str();
  app.add_option("--head-dim", flags.head_dim)->capture_default_str();
  app.add_option("--block", flags.block, "Tokens of query and key blocks")->capture_default_str();
  app.add_option("--calls", flags.calls, "Counted, of each kind")->capture_default_str();
  app.add_option("--earlier", flags.earlier, "Prompts measured before")->capture_default_str();
  app.add_option("-t,--threads", flags.threads)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    calibatt::bench::run(flags);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
