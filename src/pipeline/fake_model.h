#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "models/video_model.h"

namespace calibatt {

inline constexpr int kLayers = 3;

struct NoConditioning final : Conditioning {};

/// Two transformers, latents of two channels; predicts zeros and writes down what it was asked.
class FakeModel : public VideoModel {
 public:
  FakeModel(Backend& backend, std::vector<std::string>& log, bool takes_image = false) : backend_(backend), log_(log) {
    description_.takes_image = takes_image;
    description_.experts = {{500}, {0}};
    description_.latent_channels = 2;
    description_.num_layers = kLayers;
    description_.num_heads = 1;
    description_.head_dim = 8;
  }
  const ModelDescription& description() const override { return description_; }
  Backend& backend() override { return backend_; }
  DType dtype() const override { return DType::kF32; }
  void check_prompt(const Prompt& prompt) override { log_.push_back("check " + prompt.text); }
  void expect_prompts(const std::vector<Prompt>& prompts) override {
    for (const Prompt& prompt : prompts) log_.push_back("expect " + prompt.text);
  }
  std::unique_ptr<Conditioning> encode(const Prompt& prompt, const Prompt* negative, const WorkProgress&) override {
    log_.push_back("encode " + prompt.text + (negative != nullptr ? " without " + negative->text : ""));
    return std::make_unique<NoConditioning>();
  }
  Tensor forward(const Tensor& latents, const StepSettings& step, GuidanceBranch branch, const Conditioning&,
                 SelfAttention&, TransformerTimes& times, const WorkProgress& progress) override {
    EXPECT_EQ(latents.shape(), (std::vector<int64_t>{2, 2, 8, 8}));
    for (int layer = 0; layer < kLayers; ++layer) {
      if (progress) progress(layer, kLayers, 0.5);
    }
    times.other += 1;
    log_.push_back("expert " + std::to_string(step.expert) +
                   (branch == GuidanceBranch::kConditional ? " conditional" : " unconditional"));
    return Tensor::zeros(DType::kF32, latents.shape());
  }
  std::shared_ptr<const EncodedPicture> encode_picture(const FirstFrame& first, const WorkProgress&) override {
    log_.push_back("picture " + first.picture.source + " in " + std::to_string(first.video_frames));
    return std::make_shared<EncodedPicture>();
  }
  void begin_with(const std::shared_ptr<const EncodedPicture>& picture, Conditioning&) override {
    log_.push_back(picture != nullptr ? "begin" : "begin with nothing");
  }
  VideoFrames decode(const Tensor&, const WorkProgress&, Communicator*) override { return {}; }
  std::string fingerprint(int expert, const std::string&, const WorkProgress&) override {
    return "fingerprint " + std::to_string(expert);
  }

 private:
  ModelDescription description_;
  Backend& backend_;
  std::vector<std::string>& log_;
};

}  // namespace calibatt
