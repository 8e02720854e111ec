#include "calibrate/record/video_energy.h"

#include <algorithm>
#include <string>

#include "base/ceil_div.h"
#include "base/error.h"

namespace calibatt {
namespace {

/// Tokens [first, first + count) of a view.
template <class View>
View tokens_of(View view, int64_t first, int64_t count) {
  using Byte = std::conditional_t<std::is_same_v<View, HeadsView>, char, const char>;
  view.data = static_cast<Byte*>(view.data) + first * view.token_stride * static_cast<int64_t>(dtype_size(view.dtype));
  view.num_tokens = count;
  return view;
}

void make_room(Device& device, std::vector<int64_t> shape, Tensor& tensor) {
  if (tensor.empty() || tensor.shape() != shape) tensor = device.empty(DType::kF32, std::move(shape));
}

}  // namespace

void VideoEnergy::attend(const AttentionCall& call, int text_tokens, Tensor& energy) {
  if (text_tokens == 0) {
    AttentionCall plain = call;
    plain.block_energy = energy.f32();
    backend_.engine.attention(plain);
    return;
  }
  if (backend_.calibration_ops == nullptr) {
    throw Error(ErrorKind::kUsage, "the backend " + std::string(backend_.device.name()) +
                                       " cannot calibrate attention to text and video at once");
  }
  const int64_t video_tokens = call.q.num_tokens - text_tokens, tail_tokens = video_tokens % call.block_k;
  AttentionCall video = call, text = call;
  video.q = tokens_of(call.q, 0, video_tokens), video.out = tokens_of(call.out, 0, video_tokens);
  text.q = tokens_of(call.q, video_tokens, text_tokens), text.out = tokens_of(call.out, video_tokens, text_tokens);
  if (tail_tokens > 0) measure_tail(video, tail_tokens);  // which writes where the video's output comes to be
  make_room(backend_.device, {energy.dim(0), energy.dim(1), ceil_div(call.k.num_tokens, int64_t{call.block_k})},
            joint_);
  video.block_energy = joint_.f32();
  backend_.engine.attention(video);
  backend_.engine.attention(text);
  backend_.calibration_ops->take_video_energy(joint_, tail_tokens > 0 ? tail_ : Tensor(), energy);
}

/// Attention to the keys of that block alone, in blocks as large as the video's part of it: the first is the video.
void VideoEnergy::measure_tail(AttentionCall video, int64_t tail_tokens) {
  const int64_t first = video.q.num_tokens - tail_tokens,
                count = std::min<int64_t>(video.block_k, video.k.num_tokens - first);
  video.k = tokens_of(video.k, first, count), video.v = tokens_of(video.v, first, count);
  video.block_k = static_cast<int>(tail_tokens);
  const int64_t query_blocks = ceil_div(video.q.num_tokens, int64_t{video.block_q});
  make_room(backend_.device, {video.num_heads, query_blocks, ceil_div(count, tail_tokens)}, tail_);
  video.block_energy = tail_.f32();
  backend_.engine.attention(video);
}

}  // namespace calibatt
