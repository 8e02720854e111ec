#include "models/video_model.h"

#include "base/error.h"
#include "models/model_folder.h"
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

uint64_t ModelFiles::whole_weight_bytes(uint64_t all_wide, const Arithmetic& arithmetic) const {
  if (!arithmetic.eight_bit_layers) return all_wide;
  const uint64_t elements = eight_bit_formats(arithmetic.kept_layers, arithmetic.dtype).elements(false),
                 wide = elements * dtype_size(arithmetic.dtype),
                 others = less_described(all_wide, wide, description().path);
  if (!arithmetic.on_host) return others + elements * dtype_size(DType::kE4M3);
  // A CPU widens them when it reads them, and holds those of the other steps beside them.
  return others + elements * dtype_size(DType::kF32) + (arithmetic.wide_transformers > 0 ? wide : 0);
}

uint64_t ModelFiles::wide_buffer_bytes(const Arithmetic& arithmetic) const {
  if (!arithmetic.eight_bit_layers || arithmetic.wide_transformers == 0 || arithmetic.on_host) return 0;
  constexpr uint64_t kBlocksAtATime = 2;
  const uint64_t block =
      eight_bit_formats({}, arithmetic.dtype).elements(false) / static_cast<uint64_t>(description().num_layers);
  return kBlocksAtATime * block * dtype_size(arithmetic.dtype);
}

uint64_t ModelFiles::wide_layer_bytes(const Arithmetic& arithmetic, bool kept_are_shared) const {
  if (!arithmetic.eight_bit_layers || arithmetic.wide_transformers == 0 || arithmetic.on_host) return 0;
  const std::vector<std::string> none;
  return eight_bit_formats(kept_are_shared ? arithmetic.kept_layers : none, arithmetic.dtype).elements(false) *
         dtype_size(arithmetic.dtype);
}

}  // namespace calibatt
