#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/tensor.h"

namespace calibatt {

/// What scheduler/scheduler_config.json of a flow-matching model says, under diffusers' names where they are the same.
struct SchedulerConfig {
  enum class Kind { kUniPC, kEuler };
  Kind kind = Kind::kUniPC;
  /// How the noise levels of a run are spaced, before the shift. diffusers: as its class of that name does (which for
  /// Euler shifts the last level twice and spreads the others from there, huggingface/diffusers issue 13243). Original:
  /// as Wan-AI's own script does, evenly from the first training level below 1 to 0 (wan/utils/fm_solvers_unipc.py).
  /// Even: evenly from 1 to 0. LinearQuadratic: as Mochi was made for, the first half of the steps evenly over the
  /// first fortieth of the noise, then faster and faster; 2 steps at least. None is asked where the levels themselves
  /// are given (Scheduler::set_levels).
  enum class Spacing { kDiffusers, kOriginal, kEven, kLinearQuadratic };
  Spacing spacing = Spacing::kDiffusers;
  /// Why the file's own scheduler cannot be run, in one line; empty: it can. Whoever names another scheduler and its
  /// shift runs that one all the same.
  std::string refusal;
  std::string warning;  ///< one line about settings that this version does not know; empty: there are none
  int num_train_timesteps = 1000;
  double flow_shift = 1.0;  ///< "flow_shift" of UniPC, "shift" of Euler

  // UniPC only.
  enum class Basis { kBh1, kBh2 };  ///< "solver_type": B(h) = h or e^h − 1
  Basis basis = Basis::kBh2;
  int solver_order = 2;  ///< 1 to 3
  bool lower_order_final = true;
  bool final_sigma_zero = true;        ///< "final_sigmas_type": "zero", else "sigma_min"
  std::vector<int> disable_corrector;  ///< steps after which the corrector is not applied
};

std::string_view scheduler_kind_name(SchedulerConfig::Kind kind);     ///< "unipc" or "euler"
SchedulerConfig::Kind parse_scheduler_kind(const std::string& name);  ///< throws Error(kUsage)
std::string_view spacing_name(
    SchedulerConfig::Spacing spacing);  ///< "diffusers", "original", "even" or "linear-quadratic"
SchedulerConfig::Spacing parse_spacing(const std::string& name);  ///< throws Error(kUsage)
/// What a run takes where nobody says: the layout's, but for Euler, whose levels in diffusers are those of no model.
SchedulerConfig::Spacing default_spacing(SchedulerConfig::Spacing of_layout, SchedulerConfig::Kind kind);

/// Reads scheduler_config.json (diffusers' UniPCMultistepScheduler with flow prediction, or
/// FlowMatchEulerDiscreteScheduler). What this file's classes do not do becomes the refusal: other classes, other kinds
/// of prediction, dynamic shifting, Karras, exponential or beta noise levels, thresholding. Settings that nobody here
/// knows become the warning. Throws Error(kNotFound / kIo / kFormat) for a file that cannot be read or is no JSON
/// object. inverted: what the model's pipeline has as "invert_sigmas": it counts data, from 0 to 1, where this file's
/// classes count noise; another value is refused.
SchedulerConfig load_scheduler_config(const std::string& path, bool inverted = false);

/// Walks a sample from noise to data: x(σ) = (1 − σ)·data + σ·noise, σ falling from about 1 to 0; the model predicts
/// noise − data. One instance serves one video at a time.
///
///   scheduler->set_timesteps(50);
///   for (int i = 0; i < scheduler->num_steps(); ++i) x = scheduler->step(model(x, scheduler->timesteps()[i]), x);
class Scheduler {
 public:
  /// `kind` overrides the config's, as the command line may ask for.
  static std::unique_ptr<Scheduler> make(SchedulerConfig config, std::optional<SchedulerConfig::Kind> kind = {});
  virtual ~Scheduler() = default;

  /// Begins a new video. flow_shift: absent, the config's. Throws Error(kUsage) for 0 or more than 1,000 steps, or a
  /// shift that is not a positive number.
  void set_timesteps(int num_steps, std::optional<double> flow_shift = {});
  /// The same with noise levels as somebody chose them, one of each step, strictly falling from at most 1 to above 0;
  /// they are shifted, once (1: as they are).
  void set_levels(const std::vector<double>& levels, double flow_shift);

  /// Takes the model's output at `timesteps()[step_index()]` and the sample that the model saw; gives the next sample.
  /// Both F32 on the host, of one shape. All num_steps() steps must be taken in order.
  Tensor step(const Tensor& model_output, const Tensor& sample);

  int num_steps() const { return static_cast<int>(timesteps_.size()); }
  int step_index() const { return step_index_; }
  const std::vector<float>& sigmas() const { return sigmas_; }  ///< num_steps + 1; the last is where the walk ends
  const std::vector<float>& timesteps() const { return timesteps_; }  ///< what the model is told; UniPC: whole numbers
  double flow_shift() const { return flow_shift_; }                   ///< in force since set_timesteps
  const SchedulerConfig& config() const { return config_; }

 protected:
  explicit Scheduler(SchedulerConfig config) : config_(std::move(config)) {}
  /// Level `step` of `num_steps` as diffusers' class of this method spaces them, shifted.
  virtual double diffusers_sigma(int step, int num_steps) const = 0;
  /// Begins a walk over these shifted levels: fills sigmas_ and timesteps_, and forgets the last video.
  virtual void begin(const std::vector<double>& sigmas) = 0;
  double shifted(double sigma) const { return flow_shift_ * sigma / (1 + (flow_shift_ - 1) * sigma); }
  virtual Tensor advance(const Tensor& model_output, const Tensor& sample) = 0;

 private:
  double spaced_sigma(int step, int num_steps) const;
  void restart(double flow_shift);

 protected:
  SchedulerConfig config_;
  double flow_shift_ = 1.0;
  std::vector<float> sigmas_, timesteps_;
  int step_index_ = 0;
};

/// Σ weight · tensor, element by element, for F32 tensors of one shape: all that the schedulers do to samples.
struct Term {
  double weight;
  const Tensor* tensor;
};
Tensor weighted_sum(const std::vector<Term>& terms);

}  // namespace calibatt
