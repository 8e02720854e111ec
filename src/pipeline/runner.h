#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "attention/run_attention.h"
#include "backend/backend.h"
#include "base/weight_shards.h"
#include "calibatt/pipeline.h"
#include "models/video_model.h"
#include "pipeline/guidance_groups.h"
#include "pipeline/options.h"
#include "pipeline/rank_layout.h"
#include "sampling/denoise.h"

namespace calibatt {

/// The parts of a generation, for Pipeline::generate and for calibration: one model on one backend, whichever they are.
/// `options` are resolved ones.
class Runner {
 public:
  explicit Runner(const LoadOptions& options) : Runner(options, nullptr) {}
  /// On a backend that is there already; null: on that of the first of options.devices. shards: this rank's place
  /// among those that keep parts of the weights, where they do.
  Runner(const LoadOptions& options, std::unique_ptr<Backend> backend, const RankShards& shards = {});
  Runner(std::unique_ptr<Backend> backend, std::unique_ptr<VideoModel> model,
         std::function<void(const std::string&)> warn = {})
      : warn_(std::move(warn)), backend_(std::move(backend)), model_(std::move(model)) {}

  GenerateOptions resolved(const GenerateOptions& options) const;
  void check_prompts(const std::vector<Prompt>& prompts);
  /// Of the run's own prompts.
  void check_prompts(const GenerateOptions& options);
  void expect_prompts(const std::vector<Prompt>& prompts) { model_->expect_prompts(prompts); }

  AvailableMemory available_memory() const;
  /// Tells LoadOptions::warn where the video takes more memory than is available.
  void warn_of_memory(const GenerateOptions& options) const { warn_of_memory(options, {}, available_memory()); }
  /// The same for one of the ranks that share the run.
  void warn_of_memory(const GenerateOptions& options, const RankLayout& layout, const AvailableMemory& available) const;

  /// What a plan must have been made for to be used in this run, and what calibration makes it for. progress: of
  /// reading every weight, where a fingerprint is asked for.
  RunDescription describe_attention(const GenerateOptions& options, const ProgressCallback& progress = {});
  RunReport describe_run(const GenerateOptions& options) const;

  /// What a run's options allow in 8 bits.
  EightBitParts allowed_eight_bits(const GenerateOptions& options) const {
    return calibatt::allowed_eight_bits(options, !weights_dtype_.empty());
  }
  /// RunReport::weights_dtype.
  const std::string& weights_dtype() const { return weights_dtype_; }
  DType eight_bit_type() const { return eight_bit_type_; }  ///< of linear layers, where any are in 8 bits
  /// Loads what the run's steps need and is not there. eight_bits: of each step; empty: as pipeline/options.h has it.
  void expect_steps(const GenerateOptions& options, const ProgressCallback& progress,
                    const std::vector<EightBitParts>& eight_bits = {});
  std::unique_ptr<Conditioning> encode(const GenerateOptions& options, const ProgressCallback& progress);
  /// The whole denoising run → latents. Adds the transformer's seconds to `times`. eight_bits: as expect_steps; of
  /// self-attention, `attention` decides. groups: where other ranks compute the other branch of guidance, of a run
  /// whose every step is guided; each of them then has the same latents.
  Tensor denoise(const GenerateOptions& options, const Conditioning& conditioning, SelfAttention& attention,
                 TransformerTimes& times, const ProgressCallback& progress, const StepControl& control = {},
                 const std::vector<EightBitParts>& eight_bits = {}, GuidanceGroups* groups = nullptr);
  /// Of a run's solver: solver_weights.h.
  Tensor solver_weights_of(const GenerateOptions& options) const;
  /// ranks: as VideoModel::decode.
  VideoFrames decode(const Tensor& latents, const ProgressCallback& progress, Communicator* ranks = nullptr);

  const ModelDescription& model() const { return model_->description(); }
  Backend& backend() { return *backend_; }
  /// Tells the user of something odd that does no harm.
  void warn(const std::string& message) const {
    if (warn_ && !message.empty()) warn_(message);
  }
  /// To be called where a job begins, on whichever thread: this pipeline's device is that thread's, and its threads are
  /// those of the process from here on.
  void begin_job() const;

 private:
  /// Of the run's picture and size; the last one is kept, as runs of many prompts mostly have the same.
  std::shared_ptr<const EncodedPicture> picture_of(const GenerateOptions& options, const ProgressCallback& progress);
  std::vector<StepSettings> steps_of(const GenerateOptions& options, const Scheduler& scheduler,
                                     std::vector<EightBitParts> eight_bits = {}) const;
  std::vector<Prompt> prompts_of(const GenerateOptions& options) const;

  /// For people: with the LoRAs that were merged into it.
  std::string transformer_name(int expert) const;

  int threads_ = 0;
  std::vector<Lora> loras_;
  std::string weights_dtype_;  ///< RunReport::weights_dtype
  DType eight_bit_type_ = DType::kE4M3;
  int weight_ranks_ = 1;  ///< Arithmetic::weight_ranks
  bool offload_ = false;  ///< Arithmetic::offload
  std::vector<std::string> kept_layers_;
  FileHashes hashes_;
  std::map<std::string, std::string> parts_;
  std::function<void(const std::string&)> warn_;
  std::unique_ptr<ModelFiles> files_;  ///< null for a model that does not come from a folder
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<VideoModel> model_;
  std::string picture_key_;  ///< what picture_ is of
  std::shared_ptr<const EncodedPicture> picture_;
};

}  // namespace calibatt
