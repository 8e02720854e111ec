#pragma once

/// calibatt from any language: plans, sessions of planned self-attention on the caller's memory and stream,
/// calibration, compilation. Plain C; nothing of C++ crosses it. docs/c_api.md walks through it.
///
/// Errors are values. Every function that can fail returns a calibatt_status; calibatt_last_error() then tells in one
/// line what is wrong, where, and what to do. What a function was to write through a pointer is then left as it was.
///
/// Structs that may grow begin with `struct_size`: set it to sizeof the struct as you know it, and everything else that
/// you do not use to zero. Members that are added later come last, and mean at zero what the library did before.
///
/// Threads: a plan may be used by any number of sessions and threads at once. Calls on one session wait for each other;
/// different sessions, on different streams too, run beside each other. The forward that a session is in
/// (calibatt_session_begin_forward) belongs to the session, not to the thread.

#include <stddef.h>
#include <stdint.h>

#include "calibatt/export.h"

#ifdef __cplusplus
#define CALIBATT_ENUM : int32_t  // so that a value that is none is refused, and undefined nowhere
extern "C" {
#else
#define CALIBATT_ENUM
#endif

/// Raised when a program that was compiled before would no longer work.
#define CALIBATT_ABI_VERSION 1
CALIBATT_API int32_t calibatt_abi_version(void);
/// "0.1.0". Valid forever, as every const char* here is unless it says otherwise.
CALIBATT_API const char* calibatt_version(void);

typedef enum calibatt_status CALIBATT_ENUM {
  CALIBATT_OK = 0,
  CALIBATT_USAGE = 1,       ///< an argument that cannot be
  CALIBATT_NOT_FOUND = 2,   ///< a file or folder that is not there
  CALIBATT_UNREADABLE = 3,  ///< it is there and cannot be read
  CALIBATT_FORMAT = 4,      ///< a file that is not what it claims: truncated, altered, foreign
  CALIBATT_MISMATCH = 5,    ///< sound in itself but made for something else: another model, size, block size
  CALIBATT_IO = 6,          ///< writing failed
  CALIBATT_NUMERIC = 7,     ///< NaN or infinity where there must be none
  CALIBATT_DEVICE = 8,      ///< a GPU that is not there, too old, lost or out of memory
  CALIBATT_CANCELLED = 9,   ///< a callback of yours asked to stop
  CALIBATT_INTERNAL = 10,   ///< a fault of the library, or no host memory
} calibatt_status;

/// Of the calling thread's last call that failed; valid until its next one. It names members of structs, and settings
/// as "settings.block-q".
CALIBATT_API const char* calibatt_last_error(void);

/// Frees what a function gave through a char**. NULL is allowed.
CALIBATT_API void calibatt_string_free(char* text);

/// The index of a CUDA device, or this: memory is the host's, `stream` is ignored, a call returns when its work is
/// done.
#define CALIBATT_CPU (-1)

/// Whether this library can compute on GPUs: a driver that is new enough, and one device of compute capability 8.0 or
/// newer. If not, calibatt_last_error() says which of these is missing. Never loads a driver that is not there.
CALIBATT_API calibatt_status calibatt_cuda_available(void);

// ---- plans ----------------------------------------------------------------------------------------------------------

typedef struct calibatt_plan calibatt_plan;

/// Opens a plan file (docs/plan_format.md). Masks stay in the file until a layer is asked for.
/// NOT_FOUND, UNREADABLE, FORMAT.
CALIBATT_API calibatt_status calibatt_plan_open(const char* path, calibatt_plan** plan);
/// Sessions that use it keep what they need. NULL is allowed.
CALIBATT_API void calibatt_plan_close(calibatt_plan* plan);
/// What the plan was made for and how, as JSON: "grid": [frames, height, width] tokens, "heads", "head_dim", "layers",
/// "block_q", "block_k", "token_order", "sigmas", "step_transformer", "step_reuse": [of each step "forward", "hold",
/// "residual" or "linear"] (empty: all run), "eight_bits": [of each step "none", "attention", "layers" or
/// "attention+layers"] (which parts the plan has in 8 bits; empty: it does not say. A session does not follow it:
/// attention is computed in the calls' own type, and linear layers are the caller's), "density" (of the steps that
/// run), "density_map": [step][layer], "video": {"frames", "height", "width"}, "guidance_scale", "flow_shift",
/// "scheduler", "transformers": [{"name", "fingerprint"}], "settings", "expected_error", "held_out", "checksum",
/// "tool_version". Valid as long as the plan.
CALIBATT_API const char* calibatt_plan_json(const calibatt_plan* plan);
/// The same in a few lines for people. Valid as long as the plan.
CALIBATT_API const char* calibatt_plan_text(const calibatt_plan* plan);

/// Of a token order ("raster", "tiles:FxHxW"): raster_of_position[p] = raster index (frame, row, column) of the video
/// token at position p. [frames · height · width]. A model permutes its tokens, and what belongs to them (rotary
/// positions), once before its blocks: x_ordered[p] = x[raster_of_position[p]], and back after them. USAGE.
CALIBATT_API calibatt_status calibatt_token_order(const char* order, int32_t frames, int32_t height, int32_t width,
                                                  int32_t* raster_of_position);

// ---- sessions -------------------------------------------------------------------------------------------------------

/// Guidance of a run that is known to have none: a scale of 1, or of diffusers' 0. A scale of 0 here says that nobody
/// knows it.
#define CALIBATT_UNGUIDED (-1.0)

/// What a session is for: one video being denoised.
typedef struct calibatt_run {
  size_t struct_size;
  int32_t device;                 ///< CALIBATT_CPU, or a CUDA device's index
  int32_t frames, height, width;  ///< latent grid after patchify, tokens
  int32_t num_heads, head_dim, num_layers;
  int32_t num_steps;
  const double* sigmas;             ///< [num_steps] noise level of each step, falling from ≤ 1
  const int32_t* step_transformer;  ///< [num_steps] which transformer denoises the step; NULL where there is one
  int32_t num_transformers;         ///< 0 counts as 1
  /// [num_transformers] as calibatt_fingerprint gives them; NULL, or NULL entries: weights are not compared.
  const char* const* fingerprints;
  const char* const* transformer_names;             ///< [num_transformers] for messages and plans; NULL: no names
  int32_t video_frames, video_height, video_width;  ///< pixels and video frames; 0: not known, not compared
  double flow_shift;                                ///< 0: not known, not compared
  double guidance_scale;                            ///< CALIBATT_UNGUIDED: none; 0: not known, not compared
  const char* scheduler;                            ///< "unipc", "euler"; NULL: not known, not compared
  double second_guidance_scale;                     ///< of the second transformer's steps; 0: guidance_scale
  /// Not 0: you ask calibatt_session_prediction at each step, and run no forward where a plan says so. 0: plans that
  /// run no forward in some steps are refused (MISMATCH).
  int32_t reuses_steps;
} calibatt_run;

/// What to do when a plan does not fit a run.
typedef enum calibatt_on_mismatch CALIBATT_ENUM {
  CALIBATT_REFUSE = 0,  ///< MISMATCH, naming both values
  CALIBATT_WARN = 1,    ///< use it when only weights differ, and say so (calibatt_session_json); refuse otherwise
  CALIBATT_DENSE = 2,   ///< run dense, and say so
} calibatt_on_mismatch;

typedef struct calibatt_session calibatt_session;

/// Self-attention of a run by a plan, or dense (plan NULL). USAGE, MISMATCH, DEVICE.
CALIBATT_API calibatt_status calibatt_session_open(const calibatt_plan* plan, const calibatt_run* run,
                                                   calibatt_on_mismatch on_mismatch, calibatt_session** session);
/// Waits until the call that runs has returned, and the device is done with the session's masks. No call may come after
/// it, from another thread either. A session that calibatt_record opened is left as it is. NULL is allowed.
CALIBATT_API void calibatt_session_close(calibatt_session* session);

/// The token order that the session's attention wants its video tokens in; see calibatt_token_order.
CALIBATT_API calibatt_status calibatt_session_token_order(const calibatt_session* session, int32_t* raster_of_position);

typedef enum calibatt_branch CALIBATT_ENUM {
  CALIBATT_CONDITIONAL = 0,  ///< also where there is no guidance, and where both branches are one batch
  CALIBATT_UNCONDITIONAL = 1,
} calibatt_branch;

/// How a step gets its prediction.
typedef enum calibatt_step_reuse CALIBATT_ENUM {
  CALIBATT_FORWARD = 0,   ///< the transformer runs
  CALIBATT_HOLD = 1,      ///< the latest prediction
  CALIBATT_RESIDUAL = 2,  ///< what the whole transformer added to its latents is added again
  CALIBATT_LINEAR = 3,    ///< the straight line through the latest two predictions, over the noise level
} calibatt_step_reuse;

/// With x the latents of a step and v(x) what the transformer predicts there, noise − data:
///   v = Σ weights[s] · v(source_steps[s]) + latents_weight · (x − x(source_steps[0])), s < num_sources.
/// The weights add up to 1, so each branch of guidance may be predicted by itself, or the guided prediction. Of a model
/// that predicts data − noise, latents_weight has the other sign.
typedef struct calibatt_prediction {
  size_t struct_size;
  calibatt_step_reuse reuse;
  int32_t num_sources;      ///< 0 where the transformer runs
  int32_t source_steps[2];  ///< earlier steps of the same transformer, which run; the latest first
  double weights[2];
  double latents_weight;
} calibatt_prediction;

/// How the step gets its prediction: its session's plan says it. prediction: struct_size is set; the rest is written.
/// USAGE.
CALIBATT_API calibatt_status calibatt_session_prediction(const calibatt_session* session, int32_t step,
                                                         calibatt_prediction* prediction);

/// Before the first layer of every forward. Steps may be left out (step caching) and asked for again; a step that runs
/// no forward by the plan is refused. While recording also before each call, where both branches are one batch and take
/// turns in each layer. USAGE.
CALIBATT_API calibatt_status calibatt_session_begin_forward(calibatt_session* session, int32_t step,
                                                            calibatt_branch branch);

typedef enum calibatt_dtype CALIBATT_ENUM { CALIBATT_F32 = 0, CALIBATT_F16 = 1, CALIBATT_BF16 = 2 } calibatt_dtype;

/// [batch, tokens, heads, head_dim]; strides in elements, head_dim is contiguous.
typedef struct calibatt_heads {
  void* data;
  int64_t batch_stride, token_stride, head_stride;
} calibatt_heads;

/// What follows the attention in its block, for calibration: residual += gate ⊙ (W_o · heads), or gate ⊙ rms_norm(of
/// that). All memory is the session's device's.
typedef struct calibatt_output {
  size_t struct_size;
  const void* weight;  ///< W_o, [out_features, num_heads · head_dim], contiguous (torch's Linear.weight)
  calibatt_dtype weight_dtype;
  int32_t out_features;
  const float* gate;           ///< [out_features]; NULL: ones
  double residual_square_sum;  ///< ‖x‖² of the residual stream before the addition, all tokens of the sample
  /// Where W_o's output is normalised: gives 1/mean(its square) of the sample's video tokens. Called by attend, at most
  /// once, when `out` is enqueued on the stream (on the CPU: is there). NULL: it is not normalised.
  /// It may use the stream; functions of the session refuse to be called from it (USAGE).
  double (*squared_gain)(void* user);
  void* user;
} calibatt_output;

/// One layer's self-attention: out = softmax(q kᵀ / √head_dim) v, q and k normalised and rotated, in the session's
/// token order. Every sample of a batch is computed by the same masks.
typedef struct calibatt_call {
  size_t struct_size;
  int32_t layer;
  int32_t batch;
  /// The run's video tokens, and behind them any number of text tokens (joint attention), which always take part.
  int32_t num_tokens;
  /// Of q, k, v and out. F32 on a GPU is for parity: it is slow. The CPU computes F16 in copies of F32.
  calibatt_dtype dtype;
  calibatt_heads q, k, v, out;
  void* workspace;  ///< device memory, 256-byte aligned; see calibatt_session_workspace
  size_t workspace_bytes;
  void* stream;                   ///< cudaStream_t; NULL: the default one
  const calibatt_output* output;  ///< where calibatt_session_wants_output; else ignored
} calibatt_call;

/// How much workspace the call needs; 0 on the CPU and while recording, which has memory of its own. Its pointers are
/// not looked at. USAGE.
CALIBATT_API calibatt_status calibatt_session_workspace(const calibatt_session* session, const calibatt_call* call,
                                                        size_t* workspace_bytes);
/// Enqueues the call on its stream; on a GPU it waits for nothing that the GPU does. USAGE names the member that cannot
/// be, before anything is written; FORMAT when the plan's masks are damaged; DEVICE, NUMERIC (calibration).
CALIBATT_API calibatt_status calibatt_session_attend(calibatt_session* session, const calibatt_call* call);
/// Tells which layer comes next, so that its masks are on the device by then. A hint; attend announces the layer after
/// its own by itself, so that only a first layer, or layers out of order, gain from it.
CALIBATT_API calibatt_status calibatt_session_prefetch(calibatt_session* session, int32_t step, int32_t layer);
/// 1 when the calls of the forward that has begun want calibatt_call.output (it costs a reduction), else 0.
CALIBATT_API int32_t calibatt_session_wants_output(const calibatt_session* session);
/// What the session has done, as JSON: "forwards" (begun), "step_reuse" (of the run's steps, as in calibatt_plan_json),
/// "planned_eight_bits" (of the run's steps, as "eight_bits" there: what the plan has in 8 bits, and the session has
/// not), "calls", "dense_fallback_calls", "fallback_reason", "warnings": [text], "step_mapping", "density",
/// "density_map": [step][layer], "kernel", "mask_bytes" (device memory for masks, now), "plan" (checksum), "weights"
/// ("same", "other", "not compared"; "" without a plan), "expected_error" (of the plan), "recording". Free it with
/// calibatt_string_free.
CALIBATT_API calibatt_status calibatt_session_json(const calibatt_session* session, char** json);

// ---- calibration ----------------------------------------------------------------------------------------------------

/// A setting as the command line spells it, without the dashes: {"density", "0.375"}, {"token-order", "tiles:16x2x2"}.
typedef struct calibatt_setting {
  const char* name;
  const char* value;
} calibatt_setting;

typedef struct calibatt_prompt {
  const char* text;
  const char* negative_prompt;  ///< NULL: none
  uint64_t seed;                ///< of the prompt's noise. The command line gives prompt i that of the first + i
} calibatt_prompt;

typedef struct calibatt_calibration {
  size_t struct_size;
  const calibatt_run* run;  ///< every run of the calibration is one such; fingerprints NULL: of weights not known
  const calibatt_prompt* prompts;
  int32_t num_prompts;
  int32_t first_prompt, end_prompt;  ///< the range that this process runs; both 0: all
  const char* precision;             ///< "f32", "bf16", "fp16": of the run's arithmetic
  /// Those of `calibatt calibrate --help` that say what is measured or how the plan is compiled, such as density,
  /// measure, budget, token-order, block-q, block-k, anchors, steps-recorded. USAGE names one that is not known.
  const calibatt_setting* settings;
  int32_t num_settings;
  /// What else every measurement depends on, in words or digits of your own that are the same for the same: how prompts
  /// are read, weights that have no fingerprint. A folder that was measured under others is refused. NULL: nothing.
  const char* conditions;
} calibatt_calibration;

/// Whether the settings are known, in their ranges, and go together, whatever the model and the run: what can be asked
/// before either is there. USAGE.
CALIBATT_API calibatt_status calibatt_settings_check(const calibatt_setting* settings, int32_t num_settings);

/// Your part of a calibration: denoise prompt `prompt` from its first step to its last, every self-attention through
/// `session`, which is opened and closed for you. seconds: the time that the transformer took, or 0. Anything but 0 to
/// stop: nothing of the prompt is kept, and calibatt_record returns CANCELLED, or the error that ended the session.
typedef int32_t (*calibatt_run_prompt)(void* user, int32_t prompt, calibatt_session* session, double* seconds);

/// Measures the prompts that `profile_dir` lacks and adds one file for each, atomically. Killed at any moment, the same
/// call goes on where it was. The folder is the command line's: either may go on with what the other began.
/// json: NULL, or "prompts_recorded", "prompts_resumed", "attention_seconds", "recording_seconds",
/// "transformer_seconds", "measured" ("maps" or "levels"), "note" (why these, where it is not the usual). USAGE,
/// MISMATCH (the folder holds another calibration), IO, NUMERIC, DEVICE, CANCELLED.
CALIBATT_API calibatt_status calibatt_record(const char* profile_dir, const calibatt_calibration* calibration,
                                             calibatt_run_prompt run_prompt, void* user, char** json);

/// done of total; anything but 0 to stop (CANCELLED; nothing is written).
typedef int32_t (*calibatt_progress)(void* user, const char* stage, int64_t done, int64_t total);

/// Makes a plan of a profile, in seconds, without the model. The file appears complete or not at all. json: NULL, or
/// "density", "density_asked", "density_map", "predicted_speedup", "expected_error", "held_out", "latents_error",
/// "psnr_db", "repetitive_heads", "heads", "prompts", "warnings": [text] of settings that change nothing, and of plans
/// that do more than was asked for or make another video. Under speedup or psnr, latents_error is the expected change
/// of the final latents and psnr_db what that is for the video, null where the change is 0; else both are null.
/// Settings may also be those that were measured with; MISMATCH where they were others. USAGE where the folder lacks
/// prompts of its calibration, or holds those of another one too: see calibatt_compile_prompts. Beside a calibration's
/// settings: weights-dtype, keep-layers and attention-dtype, what the plan may have in 8 bits; USAGE where the profile
/// does not know what these do. Which steps have them is chosen for GPU 0 of this machine: of 8 bits Hopper alone gains
/// time, so that elsewhere no step has them. eight-bit-layers-from and eight-bit-attention-from tell the steps in place
/// of that choice, for plans that run on another machine.
CALIBATT_API calibatt_status calibatt_compile(const char* profile_dir, const char* plan_path,
                                              const calibatt_setting* settings, int32_t num_settings,
                                              calibatt_progress progress, void* user, char** json);

/// The same of the calibration's own prompts, whatever else its folder holds, and by its settings. All of them have to
/// be there: USAGE names the first that is not.
CALIBATT_API calibatt_status calibatt_compile_prompts(const char* profile_dir, const char* plan_path,
                                                      const calibatt_calibration* calibration,
                                                      calibatt_progress progress, void* user, char** json);

/// Joins the folders of several processes that each ran a range of prompts. num_prompts: NULL, or how many there are.
CALIBATT_API calibatt_status calibatt_merge_profiles(const char* const* folders, int32_t num_folders,
                                                     const char* output, int32_t* num_prompts);

/// Identifies the weights of a transformer's folder in diffusers' layout (config.json, *.safetensors): by their values,
/// or in the scheme that `like` is of (a plan's; NULL or "": the present one). Reads all of them.
CALIBATT_API calibatt_status calibatt_fingerprint(const char* folder, const char* like, char** fingerprint);

// ---- one call by masks of your own ----------------------------------------------------------------------------------

typedef struct calibatt_schedule calibatt_schedule;

typedef struct calibatt_masks {
  size_t struct_size;
  int32_t device;
  int32_t num_heads, num_queries, num_keys, block_q, block_k;
  /// [num_heads, query blocks, key blocks] in host memory, not 0: kept; at least one of each row. NULL: every block.
  const uint8_t* kept;
  int32_t summarize_skipped;     ///< a skipped block still takes part by one token: mean key, mean value
  const int32_t* anchor_tokens;  ///< [num_anchors] the only queries that are computed, the same for all heads; or NULL
  int32_t num_anchors;           ///< query blocks are those of the anchors then
  const int32_t* anchor_of;      ///< [num_queries] index into anchor_tokens of the one whose output a query receives
} calibatt_masks;

/// Masks as the kernels read them, on the device. USAGE, DEVICE.
CALIBATT_API calibatt_status calibatt_schedule_make(const calibatt_masks* masks, calibatt_schedule** schedule);
CALIBATT_API void calibatt_schedule_free(calibatt_schedule* schedule);
CALIBATT_API int64_t calibatt_schedule_bytes(const calibatt_schedule* schedule);

/// out = softmax(scale · q kᵀ) v.
typedef struct calibatt_attention_call {
  size_t struct_size;
  int32_t device;
  calibatt_dtype dtype;  ///< of q, k and v; F16 on a GPU alone
  int32_t out_f32;       ///< out is float; else of `dtype`
  calibatt_heads q, k, v, out;
  int32_t batch, num_heads, head_dim, num_queries, num_keys, block_q, block_k;
  float scale;
  const calibatt_schedule* schedule;  ///< NULL: dense
  /// NULL, or (dense calls) receives the mean over each query block of the softmax mass on each key block, [batch,
  /// num_heads, query blocks, key blocks].
  float* block_energy;
  const char* kernel;  ///< NULL: the first that takes the call; or the one of this name
  void* workspace;
  size_t workspace_bytes;
  void* stream;
} calibatt_attention_call;

/// The kernel that takes the call, and what workspace it needs. USAGE when none does, with its reason.
CALIBATT_API calibatt_status calibatt_attention_kernel(const calibatt_attention_call* call, const char** kernel,
                                                       size_t* workspace_bytes);
/// Enqueues it. USAGE before anything is written, DEVICE.
CALIBATT_API calibatt_status calibatt_attention(const calibatt_attention_call* call);

#ifdef __cplusplus
}
#endif
