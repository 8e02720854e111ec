#include "models/mochi/layers.h"

#include "backend/linear.h"

namespace calibatt {

const MochiLayers& MochiLayers::video() {
  static const MochiLayers layers{{"norm1.linear"},
                                  {"attn1.to_q", "attn1.to_k", "attn1.to_v"},
                                  {"attn1.to_out.0"},
                                  {"ff.net.0.proj"},
                                  {"ff.net.2"}};
  return layers;
}

const MochiLayers& MochiLayers::text() {
  static const MochiLayers layers{{"norm1_context.linear"},
                                  {"attn1.add_q_proj", "attn1.add_k_proj", "attn1.add_v_proj"},
                                  {"attn1.to_add_out"},
                                  {"ff_context.net.0.proj"},
                                  {"ff_context.net.2"}};
  return layers;
}

const MochiLayers& MochiLayers::last_text() {
  static const MochiLayers layers{{"norm1_context.linear_1"}, text().qkv, {}, {}, {}};
  return layers;
}

size_t MochiLayers::block_bytes(const MochiTransformerConfig& config, const BlockFormats& formats, int block) {
  const int64_t dim = config.dim(), hidden = config.ffn_dim(), text_dim = config.text_width,
                text_hidden = config.text_ffn_dim();
  const auto bytes = [&](const std::vector<std::string>& layers, int64_t out, int64_t in) {
    return LinearOps::streamed_bytes(out, in, formats.of(block, layers).dtype);
  };
  const MochiLayers &of_video = video(), &of_text = text();
  const size_t of_all = bytes(of_video.modulation, 4 * dim, dim) + bytes(of_video.qkv, 3 * dim, dim) +
                        bytes(of_video.output, dim, dim) + bytes(of_video.feed_forward_in, 2 * hidden, dim) +
                        bytes(of_video.feed_forward_out, dim, hidden) + bytes(of_text.qkv, 3 * dim, text_dim);
  if (block + 1 == config.num_layers) return of_all + bytes(last_text().modulation, text_dim, dim);
  return of_all + bytes(of_text.modulation, 4 * text_dim, dim) + bytes(of_text.output, text_dim, dim) +
         bytes(of_text.feed_forward_in, 2 * text_hidden, text_dim) +
         bytes(of_text.feed_forward_out, text_dim, text_hidden);
}

/// The modulation is computed once for a step, and the text's layers have few rows: 8 bits would save no time.
BlockFormats MochiLayers::formats(const MochiTransformerConfig& config, DType dtype, const ModelLoadOptions& options) {
  const auto dim = static_cast<uint64_t>(config.dim()), hidden = static_cast<uint64_t>(config.ffn_dim()),
             text = static_cast<uint64_t>(config.text_width),
             text_hidden = static_cast<uint64_t>(config.text_ffn_dim());
  const MochiLayers &of_video = video(), &of_text = MochiLayers::text();
  return {"transformer_blocks.",
          config.num_layers,
          {{of_video.modulation, 4 * dim * dim, false},
           {of_video.qkv, 3 * dim * dim, true},
           {of_video.output, dim * dim, true},
           {of_video.feed_forward_in, 2 * hidden * dim, true},
           {of_video.feed_forward_out, hidden * dim, true},
           {of_text.modulation, 4 * text * dim, false},
           {last_text().modulation, text * dim, false},
           {of_text.qkv, 3 * dim * text, false},
           {of_text.output, dim * text, false},
           {of_text.feed_forward_in, 2 * text_hidden * text, false},
           {of_text.feed_forward_out, text_hidden * text, false}},
          dtype,
          options};
}

}  // namespace calibatt
