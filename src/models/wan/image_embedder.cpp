#include "models/wan/image_embedder.h"

#include <string>

#include "backend/cpu/make_backend.h"
#include "models/clip/vision_encoder.h"
#include "models/linear_loading.h"
#include "models/weights.h"

namespace calibatt {
namespace {

constexpr float kEpsilon = 1e-5f;

}  // namespace

WanImageEmbedder WanImageEmbedder::load(const Weights& weights, const WanTransformerConfig& config) {
  const std::string prefix = "condition_embedder.image_embedder.";
  const int64_t width = config.image_dim, dim = config.dim();
  WanImageEmbedder result;
  result.host_ = make_backend("cpu");
  result.in_ = load_linear(*result.host_, weights, prefix + "ff.net.0.proj", width, width, DType::kF32);
  result.out_ = load_linear(*result.host_, weights, prefix + "ff.net.2", dim, width, DType::kF32);
  result.scale_in_ = weights.get_f32(prefix + "norm1.weight", {width});
  result.shift_in_ = weights.get_f32(prefix + "norm1.bias", {width});
  result.scale_out_ = weights.get_f32(prefix + "norm2.weight", {dim});
  result.shift_out_ = weights.get_f32(prefix + "norm2.bias", {dim});
  return result;
}

Tensor WanImageEmbedder::embed(const Tensor& hidden) const {
  Tensor normed(DType::kF32, hidden.shape()), inner(DType::kF32, hidden.shape()),
      result(DType::kF32, {hidden.dim(0), out_->out_features()});
  host_->layer_norm(hidden, &scale_in_, &shift_in_, false, kEpsilon, normed);
  host_->linear(*in_, normed, inner);
  gelu(inner);
  host_->linear(*out_, inner, result);
  host_->layer_norm(result, &scale_out_, &shift_out_, false, kEpsilon, result);
  return result;
}

}  // namespace calibatt
