#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "base/tensor.h"
#include "base/work_progress.h"
#include "io/json_config.h"
#include "model_settings/load_options.h"
#include "models/weights.h"

namespace calibatt {

/// config.json of a T5EncoderModel (of T5 version 1.1) or a UMT5EncoderModel: the keys that shape the encoder.
struct T5Config {
  int vocab_size = 0;
  int d_model = 0;
  int d_kv = 0;  ///< channels per head; heads·d_kv need not equal d_model
  int d_ff = 0;
  int num_layers = 0;
  int num_heads = 0;
  int relative_attention_num_buckets = 32;
  int relative_attention_max_distance = 128;
  float layer_norm_epsilon = 1e-6f;
  bool bias_in_every_layer = true;  ///< a relative position bias of its own (UMT5); T5's first layer has one for all

  /// Throws Error(kFormat) naming file, key, found and expected.
  static T5Config from(const JsonConfig& json);
};

/// The encoder of T5 version 1.1 (Raffel et al. 2020, Shazeer 2020, arXiv 2002.05202) and of UMT5 (Chung et al. 2023,
/// arXiv 2304.09151), as transformers' T5EncoderModel and UMT5EncoderModel compute it: pre-norm blocks of
/// RMS-normalised, unscaled self-attention with a relative position bias (T5Config::bias_in_every_layer), and a
/// gated-GELU feed-forward.
class T5Encoder {
 public:
  /// path: as open_text_encoder (models/original_layout.h) takes it. dtype: kF32 or kBF16, of weights and linear
  /// inputs; the residual stream is always float32. Looks at names, shapes and dtypes alone, so that it is quick: the
  /// blocks are read by encode_all. Throws Error naming file and tensor when something is missing or misshaped, or when
  /// the file has layers that its configuration does not.
  static T5Encoder open(Backend& backend, const std::string& path, DType dtype, const ModelLoadOptions& options = {});

  const T5Config& config() const { return config_; }

  /// Throws Error(kUsage) for an id outside the vocabulary.
  void check_tokens(std::span<const int32_t> token_ids) const;

  /// For each prompt its real tokens alone, end-of-sequence included, without padding. The attention mask of a padded
  /// prompt hides padding from every real token, so the rows of the real tokens come out the same. Returns for each
  /// [number of tokens, d_model] F32 on the host. The weights are read block by block, each used for all prompts and
  /// dropped: the 11 GB of the public checkpoints never need more than two blocks of device memory. `progress` hears of
  /// the blocks. Throws
  /// Error(kUsage) for an id outside the vocabulary or a prompt without tokens, kNumeric for weights that are not
  /// finite.
  std::vector<Tensor> encode_all(const std::vector<std::vector<int32_t>>& prompts,
                                 const WorkProgress& progress = {}) const;
  Tensor encode(std::span<const int32_t> prompt) const;

 private:
  struct Block {
    Tensor attention_norm, feed_forward_norm;  // [d_model]
    Tensor relative_bias;                      // host, [buckets, heads]; empty: that of the layer before
    std::shared_ptr<const LinearLayer> qkv;    // q, k and v stacked: [3·heads·d_kv, d_model]
    std::shared_ptr<const LinearLayer> output;
    std::shared_ptr<const LinearLayer> gate, up, down;  // wi_0, wi_1, wo
  };

  explicit T5Encoder(Weights weights) : weights_(std::move(weights)) {}
  Block load_block(int layer) const;
  Tensor embed(std::span<const int32_t> token_ids) const;
  void self_attention(const Block& block, const Tensor& relative_bias, Tensor& residual) const;
  void feed_forward(const Block& block, Tensor& residual) const;

  Backend* backend_ = nullptr;
  DType dtype_ = DType::kF32;
  T5Config config_;
  Weights weights_;
  std::function<void(const std::string& message)> warn_;
  Tensor embedding_;  // host, mapped, as stored: [vocab_size, d_model]
};

}  // namespace calibatt
