#pragma once

#include <string>

#include "base/error.h"

namespace calibatt {

/// The refusal of a density or speedup that no plan has: "ASKED cannot be reachedWHY".
class UnreachableTarget : public Error {
 public:
  /// beyond: how many times as much is asked for as there is, above 1.
  UnreachableTarget(const std::string& asked, const std::string& why, double beyond)
      : Error(ErrorKind::kUsage, asked + " cannot be reached" + why), asked_(asked), why_(why), beyond_(beyond) {}

  double beyond() const { return beyond_; }
  /// The same said of a part of what will be measured.
  std::string doubt() const { return asked_ + " may not be reached" + why_; }

 private:
  std::string asked_, why_;
  double beyond_;
};

}  // namespace calibatt
