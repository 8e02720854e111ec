#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "base/tensor.h"
#include "base/work_progress.h"

namespace calibatt {

/// What a text encoder makes of prompts, kept for the runs to come. Public checkpoints' text encoders have 10 GB, are
/// read block by block whenever something is encoded, and reading them takes longer than a prompt's arithmetic: so the
/// prompts of the runs that follow are encoded along with a run's own.
class PromptEmbeddings {
 public:
  using TokenIds = std::vector<int32_t>;
  /// Reads the encoder once, for all of these prompts. One tensor of each, on the host.
  using EncodeAll =
      std::function<std::vector<Tensor>(const std::vector<TokenIds>& prompts, const WorkProgress& progress)>;
  /// Prompts of one reading, so that they take little memory and the first run does not wait for hundreds.
  static constexpr size_t kMostAtOnce = 32;

  explicit PromptEmbeddings(EncodeAll encode_all) : encode_all_(std::move(encode_all)) {}

  /// Prompts that runs will ask for from here on, in this order.
  void expect(std::vector<TokenIds> prompts) { expected_ = std::move(prompts); }

  struct Embeddings {
    std::vector<Tensor> of_prompts;
    /// These prompts' share of the time that was spent on them, in this call and before, less all that this call took.
    double seconds_elsewhere = 0;
  };
  /// Of a run's prompts, none empty. Those that are not kept are encoded, with expected ones behind them; what was kept
  /// before, for others, is dropped then.
  Embeddings of(const std::vector<TokenIds>& prompts, const WorkProgress& progress);

 private:
  struct Kept {
    Tensor embedding;
    double seconds = 0;  ///< its share of one reading
  };
  std::vector<TokenIds> next_batch(const std::vector<TokenIds>& prompts) const;
  void encode(const std::vector<TokenIds>& prompts, const WorkProgress& progress);

  EncodeAll encode_all_;
  std::vector<TokenIds> expected_;
  std::map<TokenIds, Kept> kept_;
};

}  // namespace calibatt
