#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "calibatt/export.h"
#include "calibatt/lora.h"
#include "calibatt/mask_streaming.h"
#include "calibatt/plan.h"
#include "calibatt/progress.h"
#include "calibatt/prompts.h"
#include "calibatt/video.h"

namespace calibatt {

/// Arithmetic of the run. kAuto: bf16 where the backend multiplies bf16 in hardware, else f32. kF16: the transformer in
/// half precision, on a GPU alone; text encoder and autoencoder stay in bf16.
enum class Precision { kAuto, kF32, kBF16, kF16 };

/// What the linear layers of the transformer's blocks are computed with. kAuto: Precision's type. kBF16: the same, and
/// a run of another type is refused. kFP8, kINT8: weights and inputs in 8 bits (e4m3, int8), a scale for each output
/// channel and each token, in all steps but the first ones (GenerateOptions::kept_steps); layers that lose by it stay
/// as they are (docs/decisions/0007-eight-bit-linear-layers.md). On the CPU (as a reference, not fast) and on Hopper
/// GPUs.
enum class WeightsPrecision { kAuto, kBF16, kFP8, kINT8 };

/// Arithmetic of self-attention: the run's own (Precision), or 8 bits (int8 queries and keys, e4m3 weights and values)
/// in all steps but the first ones (GenerateOptions::kept_steps): on Hopper GPUs alone. Cross-attention, and
/// what calibration measures, stay in the run's. kBF16: the run's own, and a run of another type is refused.
enum class AttentionDtype { kModel, kFP8, kBF16 };

/// Whether each of several devices that make a video together keeps a part of every block of the transformer, and
/// gathers the others' a block ahead of its use, in place of all of them. kAuto: where all of them and a video do not
/// fit into the memory that is free on the smallest.
enum class ShardWeights { kAuto, kOn, kOff };

/// What to do with a plan that was made for something else (another model, size, block size).
enum class OnMismatch {
  kRefuse,  ///< Error(kMismatch) that names both values
  kDense,   ///< run those calls dense, count them, and report them
  kWarn,    ///< of other weights (a fine-tune): apply it and say so; of another size or shape: as kRefuse
};

/// Of one pipeline.
inline constexpr int kMostDevices = 64;

struct LoadOptions {
  std::string model_dir;  ///< a diffusers WanPipeline or MochiPipeline folder (model_index.json, tokenizer/,
                          ///< text_encoder/, transformer/, vae/, scheduler/), or Wan-AI's original one as published
  /// Parts that are taken from elsewhere: a safetensors file (or folder) under any of the names and in any of the forms
  /// in which they are published. Empty: the model folder's.
  std::string transformer = {}, text_encoder = {}, vae = {};
  std::string transformer_2 = {};  ///< that of the low noise levels, beside `transformer` for the high ones
  Precision precision = Precision::kAuto;
  WeightsPrecision weights = WeightsPrecision::kAuto;
  /// With kFP8 and kINT8: layers that stay in Precision's type, by whole parts of diffusers' names ("ffn.net.2",
  /// "blocks.0"), in any order.
  std::vector<std::string> kept_layers = {};
  int threads = 0;  ///< 0: all processors this process may use. Threads are the process's: while one pipeline works,
                    ///< its number is in force for whoever else computes with this library
  std::string backend =
      "auto";  ///< "cpu", "cuda", or "auto": cuda where this build has it and a GPU is there, else cpu
  /// The GPUs that make each video together, by index as CUDA counts: a rank on each. Some may share one, and on the
  /// CPU all do (index 0): that is for tests, and brings nothing else.
  std::vector<int> devices = {0};
  std::string devices_source = {};  ///< how they were named, for messages ("--device 0,2"); empty: "--gpus N"
  std::vector<Lora> loras = {};     ///< merged into the transformer's weights, in this order
  ShardWeights shard_weights = ShardWeights::kAuto;
  /// What the largest video will take on a device beside the weights (MemoryEstimate), for ShardWeights::kAuto; 0: as
  /// one of the model's default size.
  uint64_t video_bytes = 0;
  /// Keep the transformer's blocks in host memory, once for all devices, and stream them to these: less memory there.
  bool offload = false;
  ProgressCallback progress = {};                             ///< of the loading
  std::function<void(const std::string& message)> warn = {};  ///< about something odd in the files that does no harm
};

/// One video to make. Unset values are the model folder's own defaults (generation_config.json), else the model's.
struct GenerateOptions {
  std::string prompt;  ///< may be empty: an unconditional video
  std::string negative_prompt;
  std::string prompt_source = "--prompt";     ///< where the prompt was written, for messages (Prompt::source)
  std::shared_ptr<const Picture> image = {};  ///< that the video begins with; models that take one need it
  uint64_t seed = 0;                          ///< the initial noise is that of torch's CPU generator with this seed
  std::optional<int> steps;
  std::optional<double> cfg_scale;  ///< ≤ 1 turns classifier-free guidance off
  /// Of the steps that a second transformer denoises; default: cfg_scale where that is given, else the model's. Only
  /// for a model of two.
  std::optional<double> cfg_scale_2;
  std::optional<double> flow_shift;  ///< default: the scheduler's own configuration
  /// Pixels; multiples of the VAE's spatial factor times the patch size. With an image and one of the two: the other by
  /// the image's shape; with neither: of the model's own area, in the image's shape.
  std::optional<int> width, height;
  std::optional<int> video_frames;  ///< 4k + 1; Mochi: 6k + 1
  std::optional<double> fps;
  std::optional<std::string> scheduler;  ///< "unipc" or "euler"; default: the model folder's
  /// How noise levels are spaced: "diffusers"; "original" as Wan-AI's script does it; "even" from 1 to 0;
  /// "linear-quadratic" as Mochi has them; "list": see below. Default: that of the model and its layout, and "even" for
  /// Wan with euler, which diffusers shifts twice.
  std::optional<std::string> sigmas;
  /// The steps themselves, as few-step models are made for; at most one of the two is given. Timesteps: before the
  /// shift, strictly falling from at most 1000 to above 0. Noise levels: as the model sees them, from at most 1; they
  /// are not shifted, and flow_shift is 1. The first is at least 0.9 (shifted): a run begins with pure noise.
  std::vector<double> timesteps, noise_levels;
  std::string plan_path;  ///< empty: dense
  OnMismatch on_mismatch = OnMismatch::kRefuse;
  AttentionDtype attention_dtype = AttentionDtype::kModel;
  /// Where self-attention or linear layers are in 8 bits: so many first steps are not; they decide which video it
  /// becomes. Default: as the plan says, where it does; else a quarter of the steps, rounded up. Their weights stay in
  /// host memory beside those in 8 bits, and are streamed to a GPU.
  std::optional<int> kept_steps = {};
};

/// Seconds of wall clock. Of a text encoder that was read for several prompts at a time, each run's share. `attention`
/// is self-attention between its projections. The norm and the rotation of queries and keys are transformer_other, but
/// in steps whose attention is in 8 bits: on one device a Wan model's are then done in the pass that quantises, and
/// count with it (1.0 of 55 ms a layer at 75,600 tokens).
struct StageSeconds {
  double text = 0, attention = 0, transformer_other = 0, vae = 0;
  double transformer() const { return attention + transformer_other; }
  double total() const { return text + attention + transformer_other + vae; }
};

/// How a plan was applied in a run, and how far that may be from dense attention.
struct PlanUse {
  /// Relative error of what self-attention adds to the residual stream, root mean square over steps and layers, as the
  /// plan's calibration found it under its own conditions. Absent: the plan does not say.
  std::optional<double> expected_error;
  /// "measured" (in runs with the plan), "held out" (predicted, on prompts that chose no blocks) or "not held out".
  std::string error_basis;
  std::string weights;                ///< beside those that the plan was made for: "same", "other" or "not compared"
  std::vector<std::string> warnings;  ///< what the error says nothing of: other weights, conditions never measured
  /// Which parts of each step of this run the plan has in 8 bits, as RunReport::eight_bit_parts; empty: it does not
  /// say. A run computes in 8 bits what it is allowed to (GenerateOptions::attention_dtype, LoadOptions::weights).
  std::vector<std::string> eight_bits = {};
  /// Nothing where the run's weights or conditions are not those that the plan was calibrated with, or more of it is in
  /// 8 bits (warnings says so).
  EndOfRun end = {};
  /// What `end` is with where the run comes closer to dense, having less in 8 bits; else empty.
  std::string end_is_with = {};
};

/// What a run did, for people and for files.
struct RunReport {
  GenerateOptions options;  ///< with all defaults filled in
  std::string model_name, precision, backend;
  std::string attention_kernel;  ///< that computed self-attention; several: the one of the most calls first, by commas
  /// "fp8" or "int8" where linear layers are in 8 bits, with the layers that are not: "fp8, but for ffn.net.2". Empty:
  /// they are of the run's precision.
  std::string weights_dtype;
  std::string plan_checksum;  ///< of the plan's content (plan_checksum_of); empty without a plan
  std::vector<Lora> loras;    ///< that were merged into the model
  /// Files in the place of the model folder's, by the flag without its dashes ("text-encoder"); as they were given.
  std::map<std::string, std::string> parts;
  /// Tells files of the same names with other content: hash of the LoRAs and of samples of all files with weights.
  std::string files_hash;
  std::string image_hash;  ///< of the picture's pixels; empty without one
  /// Of the tokenizer's files, and of what the components' settings say; reports of earlier versions do not say them.
  std::string tokenizer_hash, settings_hash;
  std::string device;        ///< name of the (first) GPU; empty on the CPU
  std::vector<int> devices;  ///< LoadOptions::devices
  int guidance_groups = 1;   ///< 2: each half of the devices computed one branch of guidance
  int decoding_devices = 1;  ///< that decoded some rows of the video each; 1: the first one did
  /// Where several devices have the transformer's blocks: "whole" on each, "shards": a part on each, "host": once for
  /// all in host memory. Empty: there is one device.
  std::string weight_placement = {};
  /// Where devices shared self-attention by heads: work of the busiest over the mean of those that shared it, by what
  /// heads cost; of two guidance groups, the larger.
  std::optional<double> deal_imbalance = {};
  uint64_t peak_device_bytes = 0;  ///< most memory of a GPU in use at a time, weights included; 0 on the CPU
  int threads = 0, num_layers = 0, num_tokens = 0;
  StageSeconds seconds;
  double density = 1;                            ///< computed query-key pairs of self-attention over all pairs
  std::vector<std::vector<double>> density_map;  ///< [step][layer]; 0 in a step that ran no forward
  std::vector<double> noise_levels;              ///< of each step
  int64_t forwards = 0;                          ///< of the transformer: one in a step, two in a guided one
  /// How each step got its prediction: "forward", or from earlier steps by "hold", "residual" or "linear". Empty: every
  /// step ran its forwards.
  std::vector<std::string> step_reuse;
  /// Which parts of each step were computed in 8 bits: "none" (also of a step that ran no forward), "attention",
  /// "layers", "attention+layers". Empty: none of any.
  std::vector<std::string> eight_bit_parts;
  int64_t attention_calls = 0, dense_fallback_calls = 0;
  std::map<std::string, int64_t> attention_kernels;  ///< how many of the calls each kernel computed
  std::string fallback_reason;                       ///< why dense_fallback_calls > 0
  std::string step_mapping;      ///< how the run's steps were mapped to the plan's, when they differ
  std::optional<PlanUse> plan;   ///< where a plan was applied
  MaskStreaming mask_streaming;  ///< of this run; its peak is since the model was loaded
};
CALIBATT_API std::string to_json(const RunReport& report);
/// How many steps computed this part in 8 bits: "attention" or "layers".
CALIBATT_API int eight_bit_steps(const RunReport& report, const std::string& part);
/// How many steps got their prediction in each way other than a forward.
CALIBATT_API std::map<std::string, int> reused_steps(const RunReport& report);

/// About how much memory a video takes, in bytes. `weights`, `activations` and `autoencoder` are where the model
/// computes (of a model's two transformers both on a CPU, else one), `video` is in host memory: its frames, or, where
/// that is more, what a picture encoder takes before there are any. `host_weights` are those that GPUs read from host
/// memory block by block, of all GPUs together: all of --offload, and layers for the steps without 8 bits. Activations
/// are given back before the video is decoded.
struct MemoryEstimate {
  uint64_t weights = 0, activations = 0, autoencoder = 0, video = 0, host_weights = 0;
  /// The most at a time where the model computes.
  uint64_t peak() const { return weights + beside_weights(); }
  uint64_t beside_weights() const { return activations > autoencoder ? activations : autoencoder; }
};

/// What a model's settings say of it.
struct ModelInfo {
  std::string name;                             ///< of its folder
  std::string kind;                             ///< diffusers' class of its transformer
  GenerateOptions defaults;                     ///< of a run; every value is there
  int width_multiple = 0, height_multiple = 0;  ///< pixels
  int frames_multiple = 0;                      ///< video frames are a multiple of it, plus 1
  int num_layers = 0, num_heads = 0, head_dim = 0;
  int max_prompt_tokens = 0;
  bool takes_image = false;  ///< its videos begin with a picture (GenerateOptions::image)
};

/// A model on disk, its settings read and nothing else: quick, and with nothing computed. What cannot be made is found
/// here, before minutes of loading.
class CALIBATT_API ModelOnDisk {
 public:
  /// Of the options only which files there are is looked at, of what precision, and how many devices. Throws
  /// Error(kNotFound / kFormat / kMismatch) for what Pipeline::load would refuse the settings of, Error(kUsage) for a
  /// precision that it would refuse on every machine.
  static ModelOnDisk open(const LoadOptions& options);
  static ModelOnDisk open(const std::string& model_dir);
  ModelOnDisk(ModelOnDisk&&) noexcept;
  ~ModelOnDisk();

  const ModelInfo& info() const;
  /// As Pipeline::resolved.
  GenerateOptions resolved(const GenerateOptions& options) const;
  /// One line for each option that is given and that no step of its run reads, such as a negative prompt without
  /// guidance. Throws as `resolved`.
  std::vector<std::string> unread(const GenerateOptions& options) const;
  /// Throws Error(kUsage) where the model takes no picture and there is one, or the other way round.
  void check_image(const GenerateOptions& options) const;
  /// What a run's report will say as far as it is known before the run: its options, model, noise levels and plan.
  /// Throws as Pipeline::resolved, and for a plan that cannot be read.
  RunReport expected_report(const GenerateOptions& options) const;
  /// Whether LoadOptions::offload was given, and changes where weights are: not where a CPU computes.
  bool offloads() const;
  /// Of a video with these options, on each of the devices that it was opened with; kAuto counts as bf16, as on a GPU.
  /// Layers that stay as they are beside those in 8 bits, and whether blocks are in host memory, are as it was opened.
  MemoryEstimate memory(const GenerateOptions& options, Precision precision = Precision::kAuto,
                        WeightsPrecision weights = WeightsPrecision::kAuto) const;

 private:
  struct Impl;
  explicit ModelOnDisk(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

class Runner;  // this library's own
class RunnerGroup;

/// A model, loaded. Not thread-safe; one run at a time.
class CALIBATT_API Pipeline {
 public:
  /// Throws Error(kNotFound / kFormat / kNumeric) naming file and tensor, Error(kUsage) for devices that are not there.
  static std::unique_ptr<Pipeline> load(const LoadOptions& options);
  ~Pipeline();

  struct Result {
    VideoFrames video;
    RunReport report;
  };
  /// Throws Error; nothing is written anywhere.
  Result generate(const GenerateOptions& options, const ProgressCallback& progress = {});

  /// Looks at prompts before anything slow: cleans and tokenizes each. Throws Error(kUsage) for one that the model
  /// cannot read; tells LoadOptions::warn of one that is longer than it reads, and what will be cut.
  void check_prompts(const std::vector<Prompt>& prompts);
  /// Tells of the prompts that `generate` will be called with next, in this order: up to 32 are encoded at a time, with
  /// one reading of the text encoder. Throws as check_prompts.
  void expect_prompts(const std::vector<Prompt>& prompts);

  /// `options` with every default filled in. Throws Error(kUsage) for what this model cannot do.
  GenerateOptions resolved(const GenerateOptions& options) const;

  RunnerGroup& runners() { return *runners_; }              ///< for calibrate
  explicit Pipeline(std::unique_ptr<RunnerGroup> runners);  ///< of models that come from no folder

 private:
  std::unique_ptr<RunnerGroup> runners_;
};

}  // namespace calibatt
