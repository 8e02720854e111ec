#include "backend/cuda/cudnn/conv_plan.h"

#include <algorithm>
#include <array>

#include "base/error.h"

namespace calibatt::cuda::cudnn {
namespace {

constexpr int64_t kAlignment = 16;   // bytes; a group's rows start at multiples of 8 channels of 2 bytes
constexpr int64_t kMaxConfigs = 64;  // of one heuristic mode
constexpr int64_t kMaxNotes = 32;    // more than there are numerical notes

enum Uid : int64_t { kIn = 1, kWeight, kBias, kOutBefore, kOut, kProduct, kBiased };

using Dims = std::array<int64_t, 5>;  // batch or output channels, channels, rows, frames, columns

cudnnDataType_t data_type(DType dtype) {
  CALIBATT_ASSERT(dtype == DType::kF32 || dtype == DType::kBF16);
  return dtype == DType::kF32 ? CUDNN_DATA_FLOAT : CUDNN_DATA_BFLOAT16;
}

/// Dense with the channels innermost, in the order that Dims has otherwise.
Dims strides_of(const Dims& dims) {
  Dims strides{};
  strides[1] = 1;
  strides[4] = dims[1];
  strides[3] = strides[4] * dims[4];
  strides[2] = strides[3] * dims[3];
  strides[0] = strides[2] * dims[2];
  return strides;
}

Descriptor tensor(Uid uid, const Dims& dims, cudnnDataType_t type, bool is_virtual = false) {
  Descriptor result(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  const Dims strides = strides_of(dims);
  result.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, static_cast<int64_t>(uid));
  result.set(CUDNN_ATTR_TENSOR_DATA_TYPE, type);
  result.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, kAlignment);
  result.set(CUDNN_ATTR_TENSOR_DIMENSIONS, std::span<const int64_t>(dims));
  result.set(CUDNN_ATTR_TENSOR_STRIDES, std::span<const int64_t>(strides));
  if (is_virtual) result.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, true);
  result.finalize("describing a tensor");
  return result;
}

Descriptor convolution(const ConvolutionSpec& spec) {
  Descriptor result(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
  const std::array<int64_t, 3> padding = {0, 0, spec.pad_left}, dilation = {1, 1, 1};
  const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
  result.set(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, int64_t{3});
  result.set(CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_DATA_FLOAT);
  result.set_raw(CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
  result.set(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, std::span<const int64_t>(padding));
  result.set(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, std::span<const int64_t>(padding));
  result.set(CUDNN_ATTR_CONVOLUTION_DILATIONS, std::span<const int64_t>(dilation));
  result.set(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, std::span<const int64_t>(spec.stride));
  result.finalize("describing a convolution");
  return result;
}

Descriptor convolve(const Descriptor& spec, const Descriptor& in, const Descriptor& weight, const Descriptor& out,
                    bool accumulate) {
  Descriptor result(CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
  result.set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, 1.0f);
  result.set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, accumulate ? 1.0f : 0.0f);
  result.set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, spec);
  result.set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, in);
  result.set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, weight);
  result.set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, out);
  result.finalize("describing a convolution's operation");
  return result;
}

Descriptor addition() {
  Descriptor result(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  const cudnnPointwiseMode_t mode = CUDNN_POINTWISE_ADD;
  result.set_raw(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
  result.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_DATA_FLOAT);
  result.finalize("describing a sum");
  return result;
}

Descriptor add(const Descriptor& addition, const Descriptor& a, const Descriptor& b, const Descriptor& sum) {
  Descriptor result(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  result.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, addition);
  result.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, a);
  result.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
  result.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, sum);
  result.finalize("describing a sum's operation");
  return result;
}

/// The operations of a shape: a convolution (with beta = 1 where it accumulates), which cuDNN has compiled beforehand;
/// or (convolution → F32 in registers) + bias [+ what the output holds], which it compiles now. A graph copies what its
/// descriptors say, so they need not outlive it.
Descriptor operation_graph(const ConvolutionShape& shape) {
  const ConvolutionSpec& spec = shape.spec;
  const Dims out_dims = {1, spec.out_channels, shape.size_out(0), shape.size_out(1), shape.size_out(2)};
  const Descriptor in =
      tensor(kIn, {1, spec.in_channels, shape.height_in, shape.frames_in, shape.width_in}, data_type(shape.compute));
  const Descriptor weight =
      tensor(kWeight, {spec.out_channels, spec.in_channels, spec.kernel[0], spec.kernel[1], spec.kernel[2]},
             data_type(shape.compute));
  const Descriptor out = tensor(kOut, out_dims, data_type(shape.out));
  const Descriptor description = convolution(spec);
  Descriptor graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  if (!shape.add_bias) {
    const Descriptor product = convolve(description, in, weight, out, shape.accumulate);
    graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, {product.get()});
    graph.finalize("building a convolution");
    return graph;
  }
  const Descriptor sum = addition();
  const Descriptor product = tensor(kProduct, out_dims, CUDNN_DATA_FLOAT, true);
  const Descriptor bias = tensor(kBias, {1, spec.out_channels, 1, 1, 1}, CUDNN_DATA_FLOAT);
  const Descriptor multiply = convolve(description, in, weight, product, false);
  if (!shape.accumulate) {
    const Descriptor add_bias = add(sum, product, bias, out);
    graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, {multiply.get(), add_bias.get()});
    graph.finalize("building a convolution with bias");
    return graph;
  }
  const Descriptor biased = tensor(kBiased, out_dims, CUDNN_DATA_FLOAT, true);
  const Descriptor before = tensor(kOutBefore, out_dims, data_type(shape.out));
  const Descriptor add_bias = add(sum, product, bias, biased);
  const Descriptor add_before = add(sum, biased, before, out);
  graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, {multiply.get(), add_bias.get(), add_before.get()});
  graph.finalize("building an accumulated convolution");
  return graph;
}

std::vector<Descriptor> engine_configs(const Descriptor& device, const Descriptor& graph, cudnnBackendHeurMode_t mode) {
  Descriptor heuristic(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristic.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  heuristic.set_raw(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
  heuristic.set(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, device);
  if (!heuristic.try_finalize()) return {};
  std::vector<Descriptor> configs;
  std::vector<cudnnBackendDescriptor_t> raw;
  for (int64_t i = 0; i < kMaxConfigs; ++i)
    raw.push_back(configs.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR).get());
  int64_t count = 0;
  check(cudnnBackendGetAttribute(heuristic.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                 kMaxConfigs, &count, raw.data()),
        "asking for engines");
  configs.resize(static_cast<size_t>(std::min(count, kMaxConfigs)));
  return configs;
}

struct EngineInfo {
  int64_t index = 0;
  bool uses_tensor_cores = false;
};

EngineInfo engine_of(const Descriptor& config) {
  const Descriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  cudnnBackendDescriptor_t raw = engine.get();
  int64_t count = 0;
  check(cudnnBackendGetAttribute(config.get(), CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count,
                                 &raw),
        "asking for an engine");
  const auto notes = engine.values<cudnnBackendNumericalNote_t>(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE,
                                                                CUDNN_TYPE_NUMERICAL_NOTE, kMaxNotes);
  return {engine.integer(CUDNN_ATTR_ENGINE_GLOBAL_INDEX),
          std::ranges::find(notes, CUDNN_NUMERICAL_NOTE_TENSOR_CORE) != notes.end()};
}

}  // namespace

Descriptor device_properties(int device_index) {
  Descriptor result(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  const int32_t index = device_index;
  result.set_raw(CUDNN_ATTR_DEVICEPROP_DEVICE_ID, CUDNN_TYPE_INT32, 1, &index);
  result.finalize("reading the properties of the GPU");
  return result;
}

Descriptor device_properties(const std::string& json) {
  Descriptor result(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  result.set_raw(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, static_cast<int64_t>(json.size()),
                 json.data());
  result.finalize("reading the properties of a GPU");
  return result;
}

int64_t ConvolutionShape::size_out(int axis) const {
  const std::array<int64_t, 3> in = {height_in, frames_in, width_in + spec.pad_left + spec.pad_right};
  const auto a = static_cast<size_t>(axis);
  return (in[a] - spec.kernel[a]) / spec.stride[a] + 1;
}

std::string ConvolutionShape::describe() const {
  const auto product = [](int64_t a, int64_t b, int64_t c) {
    return std::to_string(a) + "×" + std::to_string(b) + "×" + std::to_string(c);
  };
  return std::to_string(spec.in_channels) + "→" + std::to_string(spec.out_channels) + " channels, kernel " +
         product(spec.kernel[0], spec.kernel[1], spec.kernel[2]) + ", stride " +
         product(spec.stride[0], spec.stride[1], spec.stride[2]) + ", " + std::string(dtype_name(compute)) + " to " +
         std::string(dtype_name(out)) + ", input " + product(height_in, frames_in, width_in) +
         " (rows×frames×columns)" + (add_bias ? ", bias" : "") + (accumulate ? ", accumulated" : "");
}

void ConvolutionPlan::run(cudnnHandle_t handle, const ConvolutionData& data) const {
  std::array<int64_t, 5> uids = {kIn, kWeight, kOut, kBias, kOutBefore};
  // Each output element is read by the thread that writes it, so what was there before may be the output itself.
  std::array<void*, 5> pointers = {const_cast<void*>(data.in), const_cast<void*>(data.weight), data.out,
                                   const_cast<float*>(data.bias), data.out};
  const int64_t count = !shape_.add_bias ? 3 : shape_.accumulate ? 5 : 4;
  Descriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set_raw(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, uids.data());
  pack.set_raw(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, pointers.data());
  pack.set_raw(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &data.workspace);
  pack.finalize("preparing a convolution");
  const cudnnStatus_t status = cudnnBackendExecute(handle, plan_.get(), pack.get());
  if (status != CUDNN_STATUS_SUCCESS) check(status, ("running a convolution of " + shape_.describe()).c_str());
}

std::vector<ConvolutionPlan> make_plans(const Descriptor& device, const ConvolutionShape& shape, int at_most,
                                        int64_t max_workspace_bytes) {
  CALIBATT_ASSERT(shape.spec.pad_left == shape.spec.pad_right);
  std::vector<ConvolutionPlan> plans;
  const Descriptor graph = operation_graph(shape);
  for (const cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK}) {
    for (const Descriptor& config : engine_configs(device, graph, mode)) {
      const EngineInfo engine = engine_of(config);
      if (shape.compute == DType::kF32 && engine.uses_tensor_cores) continue;
      Descriptor plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
      plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
      plan.set(CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, device);
      if (!plan.try_finalize()) continue;
      const int64_t workspace = plan.integer(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE);
      if (workspace > max_workspace_bytes) continue;
      plans.emplace_back(std::move(plan), "engine " + std::to_string(engine.index), workspace, shape);
      if (static_cast<int>(plans.size()) == at_most) return plans;
    }
    if (!plans.empty()) return plans;
  }
  return plans;
}

}  // namespace calibatt::cuda::cudnn
