#include "capi/recorded_output.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "capi/arguments.h"
#include "capi/guarded.h"

namespace calibatt::capi {
namespace {

Tensor borrowed(const void* data, DType dtype, std::vector<int64_t> shape) {
  return {dtype, std::move(shape), std::shared_ptr<void>(const_cast<void*>(data), [](void*) {})};  // only read
}

Tensor ones(int64_t count) {
  Tensor tensor(DType::kF32, {count});
  std::fill_n(tensor.f32(), count, 1.0f);
  return tensor;
}

}  // namespace

RecordedOutput::RecordedOutput(const Recording& recording, const calibatt_call& call, const AttentionGeometry& geometry)
    : place_(recording.place), output_(taken(call.output, "call.output")) {
  required(static_cast<const char*>(output_.weight), "call.output.weight");
  require_in("call.output.out_features", output_.out_features, 1, 1 << 20);
  if (!std::isfinite(output_.residual_square_sum)) {
    throw Error(ErrorKind::kNumeric, "call.output.residual_square_sum: is not finite; check the model's weights");
  }
  if (output_.residual_square_sum <= 0) {
    refuse("call.output.residual_square_sum: is " + std::to_string(output_.residual_square_sum) +
           ", and must be greater than 0");
  }
  const int64_t out = output_.out_features, in = int64_t{geometry.heads} * geometry.head_dim;
  AttentionBackend& backend = place_.backend();
  context_.backend_weight =
      borrowed(output_.weight, dtype_of(output_.weight_dtype, "call.output.weight_dtype"), {out, in});
  gate_ = output_.gate != nullptr ? borrowed(output_.gate, DType::kF32, {out}) : backend.from_host(ones(out));
  context_.backend_gate = &gate_;
  context_.residual_square_sum = output_.residual_square_sum;
  if (recording.measured == Measured::kMaps) {
    host_weight_ = backend.to_host(context_.backend_weight);
    if (host_weight_.dtype() == DType::kF16) host_weight_ = converted(host_weight_, DType::kF32);
    host_gate_ = backend.to_host(gate_);
    context_.output_weight = &host_weight_;
    context_.gate = {host_gate_.f32(), static_cast<size_t>(out)};
  }
  if (output_.squared_gain != nullptr) context_.squared_gain = [this] { return asked_gain(); };
}

double RecordedOutput::asked_gain() const {
  double gain = 0;
  place_.aside([&] { gain = output_.squared_gain(output_.user); });
  if (std::isfinite(gain) && gain > 0) return gain;
  throw Error(ErrorKind::kNumeric, "call.output.squared_gain: gave " + std::to_string(gain) +
                                       ", and a gain is finite and greater than 0; check the model's weights");
}

}  // namespace calibatt::capi
