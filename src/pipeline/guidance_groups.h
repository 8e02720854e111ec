#pragma once

#include "backend/communicator.h"
#include "base/guidance_branch.h"
#include "base/tensor.h"

namespace calibatt {

/// Ranks in two groups of the same size, one for each branch of guidance: the first half computes the conditional one.
class GuidanceGroups {
 public:
  /// hosts: of all ranks, whose pieces are host memory; their number is even. It must outlive the object.
  explicit GuidanceGroups(Communicator& hosts);

  GuidanceBranch own() const;
  /// This rank's prediction of its branch for that of the other branch, which its partner in the other group has. All
  /// ranks call it. Host, F32, of the same shape.
  Tensor exchange(const Tensor& own);

 private:
  Communicator& hosts_;
  int half_;
};

}  // namespace calibatt
