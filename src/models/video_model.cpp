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

uint64_t ModelFiles::kept_layer_bytes(const std::vector<std::string>&, DType) const {
  throw Error(ErrorKind::kUsage,
              description().kind + ": its linear layers are not computed in 8 bits yet; use --weights-dtype bf16");
}

void VideoModel::begin_with(const std::shared_ptr<const EncodedPicture>&, Conditioning&) {
  CALIBATT_ASSERT(description().takes_image);
}

}  // namespace calibatt
