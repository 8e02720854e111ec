#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "forward_models.h"

namespace calibatt::bench {

/// A transformer at one size, dense and planned.
class Forwards {
 public:
  virtual ~Forwards() = default;

  /// One forward of Wan; of Mochi both of a guided step, which diffusers computes in one batch. enqueue_seconds: of the
  /// host, until it has asked for the last layer; layer_enqueue_seconds: the median layer's part.
  virtual nlohmann::json run(bool planned) = 0;

  /// A forward of the file's latents, text (none: a prompt without tokens, for Mochi) and timestep, of any size; the
  /// prediction goes to the other file. Planned when the file has masks: U8 [layers, heads, query blocks, key blocks],
  /// 1 where a block is computed.
  virtual void predict(const std::string& in, const std::string& out) = 0;

  virtual nlohmann::json schedules() const = 0;  ///< how masks came to the device
  virtual double load_seconds() const = 0;
  virtual int num_layers() const = 0;
};

struct ForwardsOptions {
  DType dtype = DType::kBF16;
  std::string weights;  ///< the transformer's folder
  bool offload = false;
  bool eight_bit_layers = false;
  DType eight_bit_type = DType::kE4M3;
  bool eight_bit_attention = false;
  std::string plan_path;
  bool keep_plan = false;  ///< leave its file behind
};

double median(std::vector<double> values);

std::unique_ptr<Forwards> make_forwards(Backend& backend, const ForwardModel& model, const ForwardsOptions& options);

}  // namespace calibatt::bench
