#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "attention/run_attention.h"
#include "backend/backend.h"
#include "calibatt/pipeline.h"
#include "models/umt5/encoder.h"
#include "models/wan/transformer.h"
#include "models/wan/vae.h"
#include "pipeline/run_options.h"
#include "text/tokenizer.h"

namespace calibatt {

/// Text to video with a Wan 2.1 model, step by step as diffusers' WanPipeline does it: clean and tokenize the prompt,
/// encode it, draw the initial noise, denoise under classifier-free guidance, decode. The text encoder, by far the
/// largest part of the public checkpoints, is read anew for each run, block by block, and never in memory as a whole.
class WanPipeline : public Pipeline {
 public:
  static std::unique_ptr<WanPipeline> load(const LoadOptions& options);

  Result generate(const GenerateOptions& options, const ProgressCallback& progress) override;
  GenerateOptions resolved(const GenerateOptions& options) const override;
  void check_prompts(const std::vector<Prompt>& prompts) override;

  // The parts of generate(), for calibration and tests. `options` are resolved ones.

  /// Both branches' cross-attention keys and values; the unconditional one only under guidance.
  struct Conditioning {
    WanPrompt conditional;
    std::optional<WanPrompt> unconditional;
  };
  Conditioning encode(const GenerateOptions& options, const ProgressCallback& progress = {});

  /// The whole denoising run → latents [channels, F, h, w] F32, normalised. Adds the transformer's seconds to `times`.
  Tensor denoise(const GenerateOptions& options, const Conditioning& conditioning, SelfAttention& attention,
                 TransformerTimes& times, const ProgressCallback& progress);

  AttentionGeometry geometry(const GenerateOptions& options, const TokenOrder& order = TokenOrder::raster()) const;
  std::vector<double> sigmas(const GenerateOptions& options) const;  ///< noise level of each step
  /// What a plan must have been made for to be used in this run, and what calibration makes it for. with_fingerprint:
  /// reads every weight.
  RunDescription describe_attention(const GenerateOptions& options, bool with_fingerprint,
                                    const ProgressCallback& progress = {});
  /// In the scheme that `like` is of (io/fingerprint.h; empty: the present one). Computed on first use: reads every
  /// weight.
  const std::string& transformer_fingerprint(const std::string& like, const ProgressCallback& progress = {});
  const ModelFolder& folder() const { return folder_; }
  const WanTransformerConfig& transformer_config() const { return transformer_.config(); }
  const WanVae& vae() const { return vae_; }
  Backend& backend() { return *backend_; }

 private:
  WanPipeline(const LoadOptions& options, ModelFolder folder, std::unique_ptr<Backend> backend, DType dtype);
  /// Cleaned, cut to what the model reads; warns of a cut, once for each prompt.
  std::vector<int32_t> tokenize(const Prompt& prompt);
  std::vector<std::vector<int32_t>> tokenize_all(const GenerateOptions& options);
  std::unique_ptr<Scheduler> make_scheduler(const GenerateOptions& options) const;
  RunReport describe_run(const GenerateOptions& options) const;

  ModelFolder folder_;
  std::unique_ptr<Backend> backend_;
  DType dtype_;
  Tokenizer tokenizer_;
  Umt5Encoder text_encoder_;
  WanVae vae_;
  WanTransformer transformer_;  // last: it takes long, and what is wrong with the others is said before
  std::string values_fingerprint_, stored_fingerprint_;
  std::function<void(const std::string&)> warn_;
  std::set<std::string> warned_;
};

}  // namespace calibatt
