#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "attention/self_attention.h"
#include "backend/backend.h"
#include "base/tensor.h"
#include "base/work_progress.h"
#include "model_settings/load_options.h"
#include "model_settings/wan_config.h"
#include "models/transformer_parts.h"
#include "models/video_model.h"
#include "models/wan/image_embedder.h"
#include "nn/layer_input.h"
#include "sparsity/geometry.h"

namespace calibatt {

class BlockFormats;
class Weights;

/// What the transformer needs of one prompt, the same in every step: each block's cross-attention keys and values. Made
/// by WanTransformer::prepare_prompt once per prompt (and branch of guidance); immutable.
///
/// Wan pads the text embeddings with zero rows up to max_sequence_length and lets every token attend to all of them,
/// padding included. All padding rows are equal, hence so are their keys and values: n of them weigh n·exp(logit) in
/// the softmax, which is one row with log n added to its logit. So there are L + 1 rows here, not 512; the result is
/// the same up to rounding.
struct WanPrompt {
  std::vector<Tensor> keys_values;  ///< one per block, [rows, 2·dim]: keys (normalised), then values
  std::vector<float> key_bias;      ///< [rows]; zeros and, for the padding row, log(number of padding rows). Empty
                                    ///< when there is no padding
  std::vector<Tensor> image_keys_values;  ///< the same of a picture, for models that see one in their blocks; or empty
  /// One per block: its cross-attention's output projection, of the values (Backend::project_values). Empty where that
  /// does not pay: on CPUs, in float32 and for long prompts.
  std::vector<std::shared_ptr<const LinearLayer>> projected_values;
  /// The same from the weights of forwards without 8 bits; empty where projected_values are of such already, and where
  /// those weights were not loaded.
  std::vector<std::shared_ptr<const LinearLayer>> projected_values_wide;
};

/// The denoiser of Wan 2.1 (arXiv 2503.20314), text to video, as diffusers' WanTransformer3DModel computes it.
class WanTransformer {
 public:
  /// folder: config.json and diffusion_pytorch_model.safetensors (or its shards), as open_transformer
  /// (models/original_layout.h) takes it. dtype kF32: all in float32. kBF16:
  /// weights of the blocks and inputs of their linear layers (hence q, k, v too) in bfloat16; residual stream, norms,
  /// timestep path, patch embedding and output projection stay float32. With options.eight_bit_layers the blocks'
  /// linear layers that bear it (wan/layers) and their inputs are in 8 bits, all else as without. kF16
  /// (Backend::has_fp16): half precision where kBF16 has bfloat16. Throws Error naming file and tensor when something
  /// is missing, misshaped or not finite, or when the file has layers that config.json does not; kDevice when memory is
  /// short.
  static WanTransformer load(Backend& backend, const std::string& folder, DType dtype,
                             const ModelLoadOptions& options = {});

  const WanTransformerConfig& config() const { return config_; }
  DType dtype() const { return dtype_; }

  /// The attention problem of a latent video of this size. Throws Error(kUsage) when the patches do not divide it or it
  /// is longer along an axis than rope_max_seq_len.
  AttentionGeometry geometry(int latent_frames, int latent_height, int latent_width,
                             const TokenOrder& order = TokenOrder::raster()) const;

  /// text_embeddings: host, F32 [1 … max_sequence_length, text_dim], the prompt's real tokens only
  /// (T5Encoder::encode). picture: what ClipVisionEncoder gives, host, F32 [rows, image_dim], for models that see one
  /// in their blocks; else empty. `progress` hears of the blocks.
  WanPrompt prepare_prompt(const Tensor& text_embeddings, int max_sequence_length = 512,
                           const WorkProgress& progress = {}, const Tensor& picture = {}) const;

  /// Called after each block with the residual stream [tokens, dim] F32, tokens in the order of the run (of this rank's
  /// shard of them, where ranks share them).
  using BlockObserver = std::function<void(int layer, const Tensor& hidden)>;

  /// Loads, beside layers in 8 bits, the same in dtype(), for forwards that are to be without 8 bits (TransformerStep).
  /// They
  /// stay in host memory and are streamed block by block, whatever ModelLoadOptions::offload says: a run has few such
  /// steps. Where ranks have shards, each keeps a part there. On a CPU they are simply there. Nothing happens where no
  /// layer is in 8 bits, or when it was done before. `progress` hears of blocks. Throws as load.
  void load_wide_layers(const WorkProgress& progress = {});

  /// latents: host, F32 [in_channels, frames, height, width].
  /// Returns the flow prediction, host, F32 [out_channels, frames, height, width]. The caller has told self_attention
  /// which forward this is (begin_forward). `progress` hears of the blocks, twice in each; where somebody listens, a
  /// device is never more than half a block behind what was heard. Not to be called from two threads at once.
  /// Where self_attention has ranks, all of them call this with the same arguments, each on a transformer of its own,
  /// and each gets the whole prediction.
  Tensor forward(const Tensor& latents, const TransformerStep& step, const WanPrompt& prompt,
                 SelfAttention& self_attention, TransformerTimes* times = nullptr, const BlockObserver& observer = {},
                 const WorkProgress& progress = {});

  /// Frees the activations kept from forward to forward (the VAE may need the memory); the next forward allocates anew.
  void release_buffers() { work_ = {}; }

 private:
  /// A block's linear layers that every forward computes.
  struct BlockLayers {
    std::shared_ptr<const LinearLayer> qkv, output;                // attn1; q, k, v stacked
    std::shared_ptr<const LinearLayer> cross_query, cross_output;  // attn2
    std::shared_ptr<const LinearLayer> feed_forward_in, feed_forward_out;
    std::shared_ptr<StreamedWeights> streamed;  // where their matrices are when they are not on the device, else null

    static constexpr int kCount = 6;
    bool any_in(bool eight_bits) const;      ///< whether one of them is, or is not
    BlockLayers without_eight_bits() const;  ///< those that are in dtype() anyway
  };
  struct Block {
    Tensor modulation;  // scale_shift_table [6, dim]: shift, scale, gate of self-attention, then of the feed-forward
    BlockLayers layers;
    BlockLayers wide;                                      // the same without 8 bits; empty until load_wide_layers
    Tensor query_norm, key_norm;                           // [dim]; empty without qk_norm
    Tensor cross_norm_weight, cross_norm_bias;             // norm2; empty without cross_attn_norm
    std::shared_ptr<const LinearLayer> cross_keys_values;  // attn2; k, v stacked
    Tensor cross_query_norm, cross_key_norm;
    std::shared_ptr<const LinearLayer>
        image_keys_values;  // attn2.add_k_proj, add_v_proj, stacked; null without a picture
    Tensor image_key_norm;
    Tensor minus_cross_bias;  // [dim]: the output projection is applied to text and picture, and adds its bias twice
    std::shared_ptr<StreamedWeights> streamed_prompt;  // as BlockLayers::streamed, of what prepare_prompt computes
  };
  /// What depends on the size of the video, the token order and this rank's shard only.
  struct Layout {
    AttentionGeometry geometry;
    TokenShard shard;
    std::vector<int32_t> raster_of_position;  // of all tokens
    RopeTable rope;                           // of the shard
  };
  /// Activations, reused by every block of every forward of one size.
  struct Workspace {
    Tensor residual;    // [tokens, dim] F32
    LayerInput normed;  // [tokens, dim], in the memory of attended; in 8 bits what layers take of `attended`, too
    Tensor qkv;         // [tokens, 3·dim]
    Tensor query;       // [tokens, dim] of cross-attention
    Tensor attended;    // [tokens, dim]
    LayerInput hidden;  // [a chunk of tokens, ffn_dim], in the memory of qkv; in 8 bits in that of query
  };

  WanTransformer() = default;
  Block load_block(const Weights& weights, int layer, const BlockFormats& formats,
                   const ModelLoadOptions& options) const;
  /// A home for this rank's part of some of a block's matrices.
  std::shared_ptr<StreamedWeights> make_shard(int layer, const std::string& kind, size_t size_bytes,
                                              bool on_the_host) const;
  /// Those that `to` has not yet, into its StreamedWeights.
  void load_layers(int layer, const BlockFormats& formats, const std::function<void()>& before_matrix,
                   BlockLayers& to) const;
  /// prefix: of its cross-attention.
  void load_picture_part(const Weights& weights, const std::string& prefix, Block& block) const;
  /// Those that the present forward computes.
  const BlockLayers& layers_of(int layer) const { return wide_forward_ ? blocks_[layer].wide : blocks_[layer].layers; }
  /// Backend::project_values of each block.
  std::vector<std::shared_ptr<const LinearLayer>> project_values(const WanPrompt& prompt, BlockLayers Block::*layers,
                                                                 const WorkProgress& progress) const;
  const Layout& layout_for(const AttentionGeometry& geometry, const TokenShard& shard);
  void prepare_workspace(int64_t num_tokens);
  /// The residual normed, as `layer` takes its input.
  void norm_for(const LinearLayer& layer, const LayerNorm& norm);
  /// residual += gate ⊙ layer(attended)
  void add_attended(const LinearLayer& layer, const Tensor* gate = nullptr);
  /// → temb [dim] and its projection [6, dim].
  std::pair<Tensor, Tensor> embed_timestep(double timestep) const;
  void self_attention_step(int layer, const Tensor& modulation, const Layout& layout, SelfAttention& attention,
                           Timer& timer);
  void cross_attention_step(int layer, const WanPrompt& prompt);
  void attend_to_text(int layer, const WanPrompt& prompt, AttentionCall& call);
  void prepare_picture(const Block& block, const Tensor& picture, WanPrompt& prompt) const;
  void feed_forward_step(int layer, const Tensor& modulation);

  Backend* backend_ = nullptr;
  DType dtype_ = DType::kF32;
  WanTransformerConfig config_;
  std::shared_ptr<const Weights> stored_;
  RankShards shards_;  // who else keeps parts of the blocks, where ranks do
  bool has_eight_bits_ = false, has_wide_layers_ = false;
  DType eight_bit_type_ = DType::kE4M3;
  bool wide_forward_ = false;  // the present forward is without 8 bits
  std::shared_ptr<const LinearLayer> patch_embedding_;
  std::shared_ptr<const LinearLayer> time_in_, time_out_, time_projection_, text_in_, text_out_;
  std::optional<WanImageEmbedder> image_embedder_;
  std::vector<Block> blocks_;
  OutputWeights output_weights_;
  Tensor output_modulation_;  // scale_shift_table [2, dim]
  std::shared_ptr<const LinearLayer> output_projection_;
  std::unique_ptr<Layout> layout_;  // of the last forward
  Workspace work_;
};

}  // namespace calibatt
