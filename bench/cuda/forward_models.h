#pragma once

#include <string>

namespace calibatt::bench {

/// A transformer at one size, that of a public model or a small one to try things with.
struct ForwardModel {
  enum class Family { kWan, kMochi };

  std::string name;
  Family family = Family::kWan;
  int heads = 0, head_dim = 0, layers = 0;
  int ffn = 0;                            ///< of Wan; Mochi's follows from its width
  int text_width = 0;                     ///< of Mochi's text stream
  int text_dim = 0;                       ///< of the text encoder
  int frames = 0, height = 0, width = 0;  ///< of the latents
  double density = 0;                     ///< of the plan
};

/// Throws Error(kUsage) naming those that there are.
ForwardModel find_forward_model(const std::string& name);
std::string forward_model_names();  ///< "14B-720p, 14B-480p, …"

/// A folder in diffusers' layout with random weights in bf16: N(0, 1/√inputs), but uniform.
void write_transformer(const ForwardModel& model, const std::string& folder);

}  // namespace calibatt::bench
