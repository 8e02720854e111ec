#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/activation.h"
#include "backend/attention_call.h"
#include "backend/stored_linear.h"
#include "backend/timer.h"
#include "base/tensor.h"

namespace calibatt {

class ClipOps;

/// y = xWᵀ + b with the weights in a layout of the backend's own. Made by Backend::make_linear, immutable.
class LinearLayer {
 public:
  virtual ~LinearLayer() = default;
  virtual int64_t in_features() const = 0;
  virtual int64_t out_features() const = 0;
  virtual DType dtype() const = 0;  ///< what the layer takes as input: kF32, kBF16 or kF16
};

/// What happens to a linear layer's result on its way to memory: out = act(y), or out += gate ⊙ act(y).
struct LinearEpilogue {
  Activation activation = Activation::kNone;
  bool accumulate = false;       ///< add to what `out` holds; out is F32
  const Tensor* gate = nullptr;  ///< [out_features] F32; null: ones. Only with accumulate
};

/// Rotation of every head's channel pairs (2i, 2i+1), per token: (a, b) → (a·cos − b·sin, a·sin + b·cos).
/// Both tables are F32 [tokens, head_dim], prepared for a lane-wise product: cos twice per pair; sin as (−sin, +sin).
struct RopeTable {
  Tensor cos, signed_sin;
};

/// How a latent video [channels, frames, height, width] is cut into tokens: each token is one patch (frames × height ×
/// width cells), tokens are stored in the order given by raster_of_position (AttentionGeometry).
struct PatchLayout {
  std::array<int, 3> patch{1, 2, 2};
  std::span<const int32_t> raster_of_position;  ///< host memory, one entry per token
};

/// [tokens, heads, head_dim] in host memory.
struct HostHeads {
  ConstHeadsView view;  ///< kF32 or kBF16
  Tensor storage;       ///< owns what the view points to; empty where host memory is the backend's
};

/// The sizes that a schedule is made for, in tokens; as in AttentionCall.
struct ScheduleSizes {
  int num_queries = 0, num_keys = 0;
  int block_q = 64, block_k = 64;
  bool operator==(const ScheduleSizes&) const = default;
};

/// How planned calls found their schedules on a device that has them streamed (Backend::prefetch_schedule).
struct ScheduleStats {
  int64_t calls = 0;               ///< planned calls
  int64_t ready = 0;               ///< found what they wanted
  int64_t late = 0;                ///< announced, but the calling thread had to wait for it
  int64_t unannounced = 0;         ///< nobody said that they would come (the first one of a run, usually)
  double stall_seconds = 0;        ///< the calling thread waited so long for decoding, packing and writing
  double device_wait_seconds = 0;  ///< the stream's thread waited so long for the device to be done with a slot
  double work_seconds = 0;         ///< decoding, packing and writing, beside it
  uint64_t uploaded_bytes = 0;
  size_t peak_bytes = 0;  ///< most that the slots had together
};

/// Where the arithmetic happens. Models are written against this interface alone; a device backend implements it
/// without touching them. Tensors passed in live where this backend put them (from_host / empty), unless a comment says
/// "host". Activations are dense, row-major [rows, channels]; accumulation is at least float32. Shapes and dtypes are
/// the caller's contract: a breach is an assertion, not an Error, except where stated.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;
  /// Whether bfloat16 products run in hardware here: the precision to choose when nobody asked for one.
  virtual bool has_fast_bf16() const { return false; }
  /// Whether layers, activations and attention may be kF16 here (but for the text encoder's and the autoencoder's).
  virtual bool has_fp16() const { return false; }
  /// Name of the kernel that `attention` would run for dense calls of this dtype and head size; for reports.
  virtual std::string attention_kernel(DType, int /*head_dim*/) const { return "unknown"; }
  virtual std::string device_name() const { return {}; }  ///< "NVIDIA H100 …"; empty: this machine's processor
  /// Rows that a chain of layers with a wide middle should take at a time: enough to keep the device busy, few enough
  /// that the middle stays small.
  virtual int64_t rows_at_a_time() const { return 4096; }

  // ---- time --------------------------------------------------------------------------------------------------------
  virtual void synchronize() {}  ///< waits for all that was asked for; throws Error(kDevice) when any of it failed
  virtual std::unique_ptr<Timer> make_timer() { return std::make_unique<WallClockTimer>(); }
  /// Ends a piece of work (one layer, say) and waits until the piece before it is done. Called after every piece, it
  /// keeps the device busy, while the host is never more than a piece ahead: whoever wants to stop has not enqueued
  /// minutes of work by then. Throws Error(kDevice) when the waited-for piece failed. Nothing to do where a call
  /// returns when its work is done.
  virtual void limit_run_ahead() {}

  // ---- memory ------------------------------------------------------------------------------------------------------
  virtual Tensor empty(DType dtype, std::vector<int64_t> shape) = 0;
  virtual Tensor from_host(const Tensor& host) = 0;  ///< may share storage where host memory is the device's
  virtual Tensor to_host(const Tensor& device) = 0;  ///< likewise; waits for what makes the tensor
  /// The same for a strided view into this backend's memory, which may be part of a larger tensor (q, k and v are
  /// thirds of one). Throws Error(kUsage) on a device backend that has not implemented it.
  virtual HostHeads heads_to_host(ConstHeadsView view, int num_heads, int head_dim);
  /// Whether tensors are in host memory, so that anybody may follow their pointers.
  virtual bool in_host_memory() const { return true; }
  /// Most device memory that was in use at a time since reset_peak_memory; 0 where nobody counts.
  virtual size_t peak_memory_bytes() const { return 0; }
  virtual void reset_peak_memory() {}
  /// Gives back what is kept for later and not in use now: to be called between stages that need much.
  virtual void trim_memory() {}

  // ---- linear ------------------------------------------------------------------------------------------------------
  /// weight: host, [out, in], any float dtype; bias: host, [out] or empty. dtype: kF32, kBF16 or (where has_fp16) kF16,
  /// of weights and inputs (the bias stays float32). The host tensors may be freed afterwards.
  virtual std::shared_ptr<const LinearLayer> make_linear(const Tensor& weight, const Tensor& bias, DType dtype) = 0;
  /// The same from tensors as a weight file has them, checked and copied in one pass. Throws Error(kNumeric) naming the
  /// tensor that is not finite.
  virtual std::shared_ptr<const LinearLayer> load_linear(const StoredLinear& stored);
  /// A home for up to size_bytes of linear layers that stay in host memory between their uses (StoredLinear::streamed);
  /// null on a backend that has no other memory.
  virtual std::shared_ptr<StreamedWeights> make_streamed_weights(size_t /*size_bytes*/) { return nullptr; }
  /// What one matrix of a linear layer takes of that.
  static size_t streamed_bytes(int64_t out, int64_t in, DType dtype);
  /// input [rows, in] of layer.dtype() → out [rows, out] F32 or of 16 bits.
  virtual void linear(const LinearLayer& layer, const Tensor& input, Tensor& out,
                      const LinearEpilogue& epilogue = {}) = 0;

  // ---- normalisation and position ----------------------------------------------------------------------------------
  /// out = (x − mean)/√(variance + eps) · scale + shift per row; one_plus_scale: ·(1 + scale), the form of adaptive
  /// norms. x [rows, channels] F32; scale, shift [channels] F32, null: identity; out F32 or of 16 bits (the cast is
  /// fused).
  virtual void layer_norm(const Tensor& x, const Tensor* scale, const Tensor* shift, bool one_plus_scale, float eps,
                          Tensor& out) = 0;
  /// out = x/√(mean(x²) + eps) · weight per row. x, out F32 or of 16 bits; may be the same tensor.
  virtual void rms_norm(const Tensor& x, const Tensor& weight, float eps, Tensor& out) = 0;
  /// In place on one [tokens, heads, head_dim] array: RMS norm over all heads of a token (weight [heads·head_dim] F32;
  /// null: none), then rotation (null: none). What becomes of a query or key between its projection and the attention.
  virtual void norm_and_rotate(HeadsView x, int num_heads, int head_dim, const Tensor* weight, float eps,
                               const RopeTable* rope) = 0;

  // ---- elementwise -------------------------------------------------------------------------------------------------
  virtual void activate(Activation activation, const Tensor& x, Tensor& out) = 0;  ///< any float, shapes equal
  virtual void multiply(const Tensor& a, const Tensor& b,
                        Tensor& out) = 0;  ///< any float (all alike); out may be a or b
  /// out = a + b, F32; b may have fewer elements than a and then repeats (a row added to every row). out may be a.
  virtual void add(const Tensor& a, const Tensor& b, Tensor& out) = 0;
  virtual void convert(const Tensor& x, Tensor& out) = 0;  ///< F32 ↔ 16 bits, or a copy
  virtual double sum_of_squares(const Tensor& x) = 0;      ///< F32; waits for the result

  // ---- video ↔ tokens ----------------------------------------------------------------------------------------------
  /// latents [channels, frames, height, width] F32 → tokens [n, channels·patch volume] F32; a row is ordered
  /// (channel, patch frame, patch row, patch column), as a convolution kernel's weights are.
  virtual void patchify(const Tensor& latents, const PatchLayout& layout, Tensor& tokens) = 0;
  /// tokens [n, patch volume·channels] F32, a row ordered (patch frame, patch row, patch column, channel) → latents
  /// F32.
  virtual void unpatchify(const Tensor& tokens, const PatchLayout& layout, Tensor& latents) = 0;

  // ---- attention ---------------------------------------------------------------------------------------------------
  /// softmax(QKᵀ)V by the fastest kernel that takes the call; the reference is the last resort and takes any.
  /// Throws Error(kUsage) when shapes, dtypes or schedules do not fit together, before anything is written.
  virtual void attention(const AttentionCall& call) = 0;
  /// Tells of a planned call that comes next or soon (AttentionCall::schedule will be this source), so that a backend
  /// whose kernels want schedules in another form or memory can prepare them meanwhile. A hint: calls that nobody
  /// announced work too, and what was announced need not come. What goes wrong here is thrown by `attention`.
  virtual void prefetch_schedule(const std::shared_ptr<const ScheduleSource>& /*schedule*/,
                                 const ScheduleSizes& /*sizes*/) {}
  /// Since the backend was made; zeros where nothing is streamed.
  virtual ScheduleStats schedule_stats() const { return {}; }
  /// Attention with a dense additive bias per head (T5): out[t,h] = Σ_s softmax_s(q·k + bias[h, t, s]) v[s,h],
  /// unscaled. bias [heads, tokens, tokens] F32; q, k, v, out F32 or BF16. Meant for prompts (some hundred tokens).
  virtual void biased_attention(ConstHeadsView q, ConstHeadsView k, ConstHeadsView v, const Tensor& bias, int num_heads,
                                int head_dim, HeadsView out) = 0;

  // ---- attention to a few keys, the same in many calls (a prompt's) ------------------------------------------------
  /// Elements that a head takes in a row of attention_weights, at least num_keys; 0: `attention` and the output
  /// projection are not slower here, and the next two are not to be called.
  virtual int attention_weight_slots(DType, int /*head_dim*/, int64_t /*num_keys*/) const { return 0; }
  /// The output projection of the values: a layer from weights w [rows, num_heads·slots] to Σ_h Σ_s w[t, h, s] · W_o,h
  /// · v[s, h] + bias. `output` must be there (StreamedWeights) during this call only.
  virtual std::shared_ptr<const LinearLayer> project_values(const LinearLayer& output, ConstHeadsView values,
                                                            int num_heads, int head_dim);
  /// weights[t, h, s] = softmax_s(scale · q[t,h]·k[s,h] + key_bias[s]), zero for s ≥ k.num_tokens; [q.num_tokens,
  /// num_heads·slots] of q's dtype. call.v and call.out are not looked at. Dense heads only.
  virtual void attention_weights(const AttentionCall& call, Tensor& weights);

  /// Turns block energies into level codes where they are (calibration: calibrate/level_code.h defines the codes, and
  /// is what an implementation must reproduce bit for bit). energy F32 [heads, R, C] → codes U8 [heads, R, ⌈C/2⌉];
  /// ladder: rising levels in 1/65536, 15 of them. False: not done here, the caller does it on the host.
  virtual bool encode_energy_levels(const Tensor& /*energy*/, std::span<const uint32_t> /*ladder*/, Tensor& /*codes*/) {
    return false;
  }

  // ---- what skipping does to a block's output (calibration) --------------------------------------------------------
  /// to[t, h, :] = from[t, h, :]; the same type and number of tokens, no overlap, the heads of a token without gaps.
  virtual void copy_heads(ConstHeadsView from, HeadsView to, int num_heads, int head_dim) = 0;
  /// What a change d of a head's output does to the residual stream behind gate ⊙ W_o: ‖gate ⊙ W_o,h·d‖² = d·M_h·dᵀ
  /// with M_h = W_o,hᵀ diag(gate²) W_o,h. Returns M [num_heads, head_dim, head_dim] F32. W_o [out, num_heads·head_dim]
  /// is given as this backend holds it and as it is stored, in host memory; gate: [out] F32.
  virtual Tensor output_metric(const LinearLayer& projection, const Tensor& stored, const Tensor& gate,
                               int num_heads) = 0;
  /// outputs [groups, rows, num_heads·head_dim] F32: the same rows' attention, computed in several ways. Returns Σ over
  /// the rows of d·M_h·dᵀ, d = a group's row − the last group's, [num_heads, groups − 1] F32. metric: M, or empty:
  /// ‖d‖².
  virtual Tensor squared_changes(const Tensor& outputs, const Tensor& metric, int num_heads) = 0;

  // ---- video autoencoder -------------------------------------------------------------------------------------------
  /// Convolutions over time and space and what goes with them (clip_ops.h). Throws Error(kUsage) on a backend without.
  virtual ClipOps& clip_ops();
};

/// A backend that make_backend can make beside "cpu". A device's floor stands above this one: whoever links it adds it.
struct BackendChoice {
  std::string_view name;
  bool (*usable)();                              ///< such a device is there
  std::unique_ptr<Backend> (*make)(int device);  ///< throws Error(kDevice, kUsage) when not, listing the devices
};
/// Adding a name twice is adding it once. The last one added is the first that "auto" looks at.
void add_backend(const BackendChoice& choice);

/// The backend of this name; "auto": the first usable device's, else the CPU's. device: index, for those that have
/// several. Throws Error(kUsage) naming those there are.
std::unique_ptr<Backend> make_backend(std::string_view name, int device = 0);

}  // namespace calibatt
