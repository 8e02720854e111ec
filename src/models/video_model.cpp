#include "models/video_model.h"

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

}  // namespace calibatt
