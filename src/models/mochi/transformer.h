#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "attention/self_attention.h"
#include "backend/backend.h"
#include "base/tensor.h"
#include "base/work_progress.h"
#include "model_settings/component.h"
#include "model_settings/load_options.h"
#include "model_settings/mochi_config.h"
#include "models/transformer_parts.h"
#include "models/video_model.h"
#include "nn/layer_input.h"
#include "sparsity/geometry.h"

namespace calibatt {

class BlockFormats;
class Weights;

/// What the transformer needs of one prompt, the same in every step: made by MochiTransformer::prepare_prompt, once per
/// prompt and branch of guidance; immutable. A prompt may have no tokens at all: the embeddings that Mochi was trained
/// with for an empty one are zeros that nobody sees.
struct MochiPrompt {
  Tensor text;    ///< [tokens, text_width] F32: the text stream as the first block sees it; empty without tokens
  Tensor pooled;  ///< [dim] F32: the prompt's part of what modulates every block
  int num_tokens() const { return text.empty() ? 0 : static_cast<int>(text.dim(0)); }
};

/// Opens the folder of a MochiTransformer3DModel, with the options' overlay.
Component open_mochi_transformer(const std::string& folder, const ModelLoadOptions& options = {});

/// The denoiser of Mochi 1 (Genmo, 2024), as diffusers' MochiTransformer3DModel computes it: two streams of different
/// width, the video's tokens and the text's, with one attention over both. Text that pads a prompt is in neither.
class MochiTransformer {
 public:
  /// folder: config.json and diffusion_pytorch_model.safetensors (or its shards). dtype kF32: all in float32. kBF16:
  /// weights of the blocks and inputs of their linear layers (hence q, k, v too) in bfloat16; both residual streams,
  /// norms, the timestep's and the prompt's embedding, patch embedding and output projection stay float32. With
  /// options.eight_bit_layers the blocks' linear layers that bear it (mochi/layers) and their inputs are in 8 bits, all
  /// else as without. kF16 (Backend::has_fp16): half precision where kBF16 has bfloat16. Throws Error naming file and
  /// tensor when something is missing, misshaped or not finite, or when the file has layers that config.json does not;
  /// kDevice when memory is short.
  static MochiTransformer load(Backend& backend, const std::string& folder, DType dtype,
                               const ModelLoadOptions& options = {});

  const MochiTransformerConfig& config() const { return config_; }
  DType dtype() const { return dtype_; }

  /// The attention problem of a latent video of this size, which the patches divide; without text.
  AttentionGeometry geometry(int latent_frames, int latent_height, int latent_width,
                             const TokenOrder& order = TokenOrder::raster()) const;

  /// text_embeddings: host, F32 [tokens, text_embed_dim], the prompt's real tokens only (T5Encoder::encode); empty: a
  /// prompt without tokens.
  MochiPrompt prepare_prompt(const Tensor& text_embeddings) const;

  /// Called after each block with the residual streams: the video's [tokens, dim] F32 in the order of the run (this
  /// rank's shard, where ranks share the tokens), the text's [tokens, text_width] F32 (empty without tokens).
  using BlockObserver = std::function<void(int layer, const Tensor& video, const Tensor& text)>;

  /// As WanTransformer::load_wide_layers.
  void load_wide_layers(const WorkProgress& progress = {});

  /// latents: host, F32 [in_channels, frames, height, width]; step: Mochi's time, 0 for noise to 1000 for data.
  /// Returns its prediction of data − noise, host, F32 [out_channels, frames, height, width]. The caller has told
  /// self_attention which forward this is (begin_forward). `progress` hears of the blocks, twice in each; where
  /// somebody listens, a device is never more than half a block behind what was heard. Not to be called from two
  /// threads at once. Where self_attention has ranks, all of them call this with the same arguments, each on a
  /// transformer of its own, and each gets the whole prediction. They share the video's tokens; every rank computes the
  /// text's few rows for itself.
  Tensor forward(const Tensor& latents, const TransformerStep& step, const MochiPrompt& prompt,
                 SelfAttention& self_attention, TransformerTimes* times = nullptr, const BlockObserver& observer = {},
                 const WorkProgress& progress = {});

  /// Frees the activations kept from forward to forward (the VAE may need the memory); the next forward allocates anew.
  void release_buffers() { work_ = {}; }

 private:
  /// A block's part of one stream.
  struct Stream {
    std::shared_ptr<const LinearLayer> modulation;  // → scale, gate of attention, then of the feed-forward. The text's
                                                    // last: scale alone
    std::shared_ptr<const LinearLayer> qkv, output;
    Tensor query_norm, key_norm;                                           // [head_dim]
    std::shared_ptr<const LinearLayer> feed_forward_in, feed_forward_out;  // SwiGLU
  };
  struct Block {
    Stream video, text;                         // of the last block's text: nothing behind qkv
    std::shared_ptr<StreamedWeights> streamed;  // where matrices are that are not on the device, else null
  };
  /// A block's linear layer, and of what it is made.
  struct Matrix {
    std::shared_ptr<const LinearLayer>& layer;
    const std::vector<std::string>& names;  // stacked
    int64_t out_of_each, in;
    bool has_bias;
  };
  /// Rows of a modulation, ready for use: 1 + scale and tanh(gate), [4, width] F32.
  enum ModulationRow { kScale, kGate, kFeedForwardScale, kFeedForwardGate };
  struct Modulation {
    Tensor video, text;  // text: empty without tokens
  };

  /// What depends on the size of the video, the token order and this rank's shard only.
  struct Layout {
    AttentionGeometry geometry;  // without text
    TokenShard shard;
    std::vector<int32_t> raster_of_position;  // of all tokens
    RopeFactors rope;                         // of the shard
  };
  /// A stream's tokens.
  struct StreamRows {
    Tensor residual;    // [tokens, width] F32; empty without tokens
    LayerInput normed;  // the same as the next layers take it; in 8 bits what they take of `attended`, too, and wide
                        // what they give
  };
  /// Activations, reused by every block of every forward of one size. Text stands behind the video where both are.
  struct Workspace {
    StreamRows video, text;
    Tensor text_normed;    // [text_capacity, text_width]: memory of the text's
    Tensor qkv;            // [tokens + text_capacity, 3·dim]
    Tensor attended;       // [tokens + text_capacity, dim]
    Tensor hidden;         // the feed-forward's hidden layers of some rows, in the memory of qkv
    Tensor hidden_scales;  // of those in 8 bits, [rows] F32
    int64_t text_capacity = 0;
  };

  MochiTransformer() = default;
  Block load_block(int layer, const BlockFormats& formats, const ModelLoadOptions& options) const;
  std::vector<Matrix> matrices_of(Block& block, int layer) const;  // in the order in which they are read
  /// What those of the block that are not there yet take where they are streamed.
  size_t missing_bytes(int layer, const BlockFormats& formats, Block block) const;
  /// Loads these; into block.streamed where it has that.
  void load_missing(int layer, const BlockFormats& formats, const WorkProgress& progress, Block& block) const;
  /// The block without its layers in 8 bits; where weights are offloaded, without any.
  Block without_eight_bits(const Block& block, int layer) const;
  /// Those of the present forward.
  const Block& block(int layer) const { return (wide_forward_ ? wide_blocks_ : blocks_)[static_cast<size_t>(layer)]; }
  bool is_last(int layer) const { return layer + 1 == config_.num_layers; }
  const Layout& layout_for(const AttentionGeometry& geometry, const TokenShard& shard);
  void prepare_workspace(int64_t num_tokens, const MochiPrompt& prompt);
  Tensor pooled_tokens(const Tensor& text_embeddings) const;
  /// → silu(embedding of timestep and prompt) [dim], in float32 and as the blocks take it.
  std::pair<Tensor, Tensor> condition(double timestep, const MochiPrompt& prompt) const;
  Tensor modulation(const Stream& stream, const Tensor& condition) const;
  Modulation modulation(const Block& block, const Tensor& condition) const;
  void norm_stream(const Stream& stream, const Tensor& modulation, StreamRows& rows);
  void project(const Stream& stream, const StreamRows& rows, int64_t first_row, const RopeFactors* rope);
  Modulation apply_block(int layer, Modulation now, const Tensor& condition,
                         const std::function<void(const Block& block, const Modulation& now)>& attend);
  void attention_step(const Block& block, int layer, const Modulation& modulation, const Layout& layout,
                      SelfAttention& attention, Timer& timer);
  OutputContext output_context(const Block& block, int layer, const Tensor& gate, const Tensor& attended,
                               Tensor& host_gate);
  void add_output(const Stream& stream, const Tensor& attended, const Tensor& modulation, StreamRows& rows);
  void feed_forward_step(const Stream& stream, const Tensor& modulation, const Stream& next,
                         const Tensor& next_modulation, StreamRows& rows);
  void add_norm(Tensor& output, const Tensor& gate, Tensor& residual, const LinearLayer* reader, const Tensor& scale,
                EightBitRows eight_bits);

  Backend* backend_ = nullptr;
  DType dtype_ = DType::kF32;
  MochiTransformerConfig config_;
  std::shared_ptr<const LinearLayer> patch_embedding_;
  std::shared_ptr<const LinearLayer> time_in_, time_out_, text_projection_;
  std::shared_ptr<const LinearLayer> pool_keys_values_, pool_query_, pool_output_;
  Tensor frequencies_;  // [3, heads, head_dim/2] F32
  Tensor one_;          // [1] F32
  std::shared_ptr<const Weights> stored_;
  bool offloads_ = false, has_eight_bits_ = false;
  DType eight_bit_type_ = DType::kE4M3;
  bool wide_forward_ = false;  // the present forward is without 8 bits
  std::vector<Block> blocks_;
  std::vector<Block> wide_blocks_;  // the same without 8 bits; empty until load_wide_layers
  OutputWeights output_weights_;
  std::shared_ptr<const LinearLayer> output_modulation_, output_projection_;
  std::unique_ptr<Layout> layout_;  // of the last forward
  Workspace work_;
};

}  // namespace calibatt
