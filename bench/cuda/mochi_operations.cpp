#include <algorithm>
#include <cmath>
#include <utility>

#include "operations.h"

namespace calibatt::bench {
namespace {

constexpr float kEpsilon = 1e-6f;

void norms_of_streams(ModelBench& of, Tensor& residual, const Tensor& row, Tensor& normed) {
  const Tensor row_host = of.gpu.to_host(row), residual_host = of.gpu.to_host(first_rows(residual, kChecked));
  Tensor expected(DType::kBF16, residual_host.shape());
  of.gpu.rms_norm(residual, row, kEpsilon, normed);
  of.cpu.rms_norm(residual_host, row_host, kEpsilon, expected);
  check_close(of.gpu.to_host(first_rows(normed, kChecked)), expected, "the RMS norm");
  of.add("RMS norm and scale, F32 to BF16", 6 * of.cells(), [&] { of.gpu.rms_norm(residual, row, kEpsilon, normed); });

  Tensor sum = residual_host.clone();
  const FollowingNorm on_cpu{row_host, expected}, on_gpu{row, normed};
  of.cpu.add_rms_norm(expected, row_host, kEpsilon, sum, &on_cpu);
  of.gpu.add_rms_norm(normed, row, kEpsilon, residual, &on_gpu);
  check_close(of.gpu.to_host(first_rows(normed, kChecked)), expected, "the RMS norm that follows an addition");
  of.add("RMS norm, gate, addition to the residual", 10 * of.cells(),
         [&] { of.gpu.add_rms_norm(normed, row, kEpsilon, residual); });
  of.add("the same, and RMS norm and scale of the sum", 12 * of.cells(),
         [&] { of.gpu.add_rms_norm(normed, row, kEpsilon, residual, &on_gpu); });
}

void norm_and_rotate(ModelBench& of) {
  const Operations& model = of.model;
  const int64_t dim = model.dim();
  const int heads = static_cast<int>(model.heads), head_dim = static_cast<int>(model.head_dim);
  RopeFactors rope_host{noise(DType::kF32, {model.tokens, 3}, 3),
                        noise(DType::kF32, {3, model.heads, model.head_dim / 2}, 4)};
  for (int64_t i = 0; i < rope_host.positions.size(); ++i) rope_host.positions.f32()[i] *= 60;
  const RopeFactors rope{of.gpu.from_host(rope_host.positions), of.gpu.from_host(rope_host.frequencies)};
  const Tensor norm_host = noise(DType::kF32, {model.head_dim}, 5), norm = of.gpu.from_host(norm_host);
  const Tensor qkv_host = noise(DType::kBF16, {model.tokens, 3 * dim}, 6);
  Tensor qkv = of.gpu.from_host(qkv_host), expected = first_rows(qkv_host, kChecked).clone();
  const auto part = [&](Tensor& tensor, int64_t index) {
    return HeadsView{tensor.data<bfloat16>() + index * dim, DType::kBF16, tensor.dim(0), 3 * dim, model.head_dim};
  };
  const auto work = [&] {
    of.gpu.norm_and_rotate_heads(part(qkv, 0), part(qkv, 1), heads, head_dim, {norm, norm, kEpsilon}, &rope);
  };
  work();
  const RopeFactors first{first_rows(rope_host.positions, kChecked), rope_host.frequencies};
  of.cpu.norm_and_rotate_heads(part(expected, 0), part(expected, 1), heads, head_dim, {norm_host, norm_host, kEpsilon},
                               &first);
  check_close(of.gpu.to_host(first_rows(qkv, kChecked)), expected, "norm and rotation of heads");
  of.add("norm and rotate, heads of q and k", 8 * of.cells(), work);
}

void swiglu(ModelBench& of) {
  const int64_t rows = of.model.tokens;
  const double bytes = 6.0 * static_cast<double>(rows * of.model.ffn);
  const Tensor wide_host = noise(DType::kBF16, {rows, 2 * of.model.ffn}, 7), wide = of.gpu.from_host(wide_host);
  Tensor hidden = of.gpu.empty(DType::kBF16, {rows, of.model.ffn}), expected(DType::kBF16, {kChecked, of.model.ffn});
  of.gpu.swiglu(wide, hidden);
  of.cpu.swiglu(first_rows(wide_host, kChecked), expected);
  check_close(of.gpu.to_host(first_rows(hidden, kChecked)), expected, "SwiGLU");
  of.add("SwiGLU", bytes, [&] { of.gpu.swiglu(wide, hidden); });
}

void linear_layers(ModelBench& of, Products& products, const Tensor& normed, const Tensor& row) {
  const Operations& model = of.model;
  const int64_t tokens = model.tokens, dim = model.dim();
  of.gpu.synchronize();  // the products have a stream of their own
  const auto add_product = [&](const std::string& name, const Products::Layer& layer, const Tensor& input,
                               Tensor& out) {
    of.results.push_back(products.measure(name, layer, input, out, Way::kWritten, row));
  };
  Tensor out = products.empty(DType::kBF16, {tokens, 3 * dim});
  add_product("linear: q, k, v", products.make(3 * dim, dim, 8, false), normed, out);
  out = {DType::kBF16, {tokens, dim}, out.storage()};
  add_product("linear: dim to dim", products.make(dim, dim, 9), normed, out);
  const Products::Layer up = products.make(2 * model.ffn, dim, 10, false),
                        down = products.make(dim, model.ffn, 12, false);
  Tensor wide = products.empty(DType::kBF16, {tokens, 2 * model.ffn});
  add_product("linear: feed-forward in", up, normed, wide);
  const Tensor hidden(DType::kBF16, {tokens, model.ffn}, wide.storage());
  add_product("linear: feed-forward out", down, hidden, out);
}

}  // namespace

void mochi_operations(ModelBench& of, Products& products) {
  const Operations& model = of.model;
  const Tensor row = of.gpu.from_host(noise(DType::kF32, {model.dim()}, 2));
  Tensor residual = of.gpu.from_host(noise(DType::kF32, {model.tokens, model.dim()}, 1));
  Tensor normed = of.gpu.empty(DType::kBF16, residual.shape());
  norms_of_streams(of, residual, row, normed);
  norm_and_rotate(of);
  swiglu(of);
  linear_layers(of, products, normed, row);
}

}  // namespace calibatt::bench
