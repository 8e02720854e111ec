#include "calibrate/record/video_energy.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

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

constexpr int64_t kDeviceBlock = 128;  // fast kernels of a GPU measure the energy of key blocks of a multiple of this

void make_room(Device& device, DType dtype, std::vector<int64_t> shape, Tensor& tensor) {
  if (tensor.empty() || tensor.shape() != shape || tensor.dtype() != dtype)
    tensor = device.empty(dtype, std::move(shape));
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
  make_room(backend_.device, DType::kF32,
            {energy.dim(0), energy.dim(1), ceil_div(call.k.num_tokens, int64_t{call.block_k})}, joint_);
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
  if (!backend_.device.in_host_memory()) repeat_keys(video);
  const int64_t query_blocks = ceil_div(video.q.num_tokens, int64_t{video.block_q});
  make_room(backend_.device, DType::kF32, {video.num_heads, query_blocks, ceil_div(count, tail_tokens)}, tail_);
  video.block_energy = tail_.f32();
  backend_.engine.attention(video);
}

/// Each key so many times that the video's make a block which such a kernel takes. That changes no share of the mass.
/// Values are not read from what this computes.
void VideoEnergy::repeat_keys(AttentionCall& call) {
  const int64_t first = call.block_k, all = call.k.num_tokens, width = int64_t{call.num_heads} * call.head_dim;
  const int64_t copies = kDeviceBlock / std::gcd(kDeviceBlock, first);
  if (copies == 1 || call.k.head_stride != call.head_dim) return;
  make_room(backend_.device, call.k.dtype, {copies * all, width}, keys_);
  const HeadsView repeated{keys_.raw(), call.k.dtype, copies * all, width, call.head_dim};
  int64_t written = 0;
  for (const auto& [begin, count] : {std::pair{int64_t{0}, first}, std::pair{first, all - first}}) {
    for (int64_t copy = 0; count > 0 && copy < copies; ++copy, written += count) {
      backend_.device.copy_heads(tokens_of(call.k, begin, count), tokens_of(repeated, written, count), call.num_heads,
                                 call.head_dim);
    }
  }
  call.k = call.v = {repeated.data, repeated.dtype, repeated.num_tokens, repeated.token_stride, repeated.head_stride};
  call.block_k = static_cast<int>(copies * first);
}

}  // namespace calibatt
