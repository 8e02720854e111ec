#include "models/video_model.h"

#include "base/error.h"
#include "models/transformer_parts.h"

namespace calibatt {

AttentionGeometry ModelDescription::geometry(const VideoSize& size, const TokenOrder& order) const {
  return token_geometry(latent_size(size), patch_size, num_heads, head_dim, order);
}

void VideoModel::expect_prompts(const std::vector<Prompt>& prompts) {
  for (const Prompt& prompt : prompts) check_prompt(prompt);
}

std::shared_ptr<const EncodedPicture> VideoModel::encode_picture(const FirstFrame&, const WorkProgress&) {
  CALIBATT_ASSERT(description().takes_image);
  return nullptr;
}

void VideoModel::begin_with(const std::shared_ptr<const EncodedPicture>&, Conditioning&) {
  CALIBATT_ASSERT(description().takes_image);
}

BlockFormats ModelFiles::eight_bit_formats(const std::vector<std::string>& kept_layers, DType dtype) const {
  ModelLoadOptions options;
  options.eight_bit_layers = true;
  options.kept_layers = kept_layers;
  return block_formats(dtype, options);
}

uint64_t ModelFiles::kept_layer_bytes(const std::vector<std::string>& kept_layers, DType dtype) const {
  return eight_bit_formats(kept_layers, dtype).elements(true) * (dtype_size(dtype) - 1);
}

bool ModelFiles::keeps_all_layers(const std::vector<std::string>& kept_layers) const {
  return eight_bit_formats(kept_layers, DType::kBF16).elements(false) == 0;
}

uint64_t ModelFiles::eight_bit_savings(const Arithmetic& arithmetic) const {
  if (!arithmetic.eight_bit_layers) return 0;
  return eight_bit_formats({}, arithmetic.dtype).saved_bytes(arithmetic.wide_steps);
}

uint64_t ModelFiles::wide_layer_bytes(const Arithmetic& arithmetic, bool kept_are_shared) const {
  if (!arithmetic.eight_bit_layers || !arithmetic.wide_steps || arithmetic.on_host) return 0;
  const std::vector<std::string> none;
  return eight_bit_formats(kept_are_shared ? arithmetic.kept_layers : none, arithmetic.dtype).elements(false) *
         dtype_size(arithmetic.dtype);
}

}  // namespace calibatt
