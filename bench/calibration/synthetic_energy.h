#pragma once

#include <cstdint>

#include "base/tensor.h"
#include "calibrate/record/fake_device_backend.h"
#include "sparsity/geometry.h"

namespace calibatt::bench {

/// Block energies [heads, R, C] such as a video model's: a band around the query's place, stripes one frame apart, a
/// few blocks that everybody looks at, and a heavy-tailed rest. A third of it differs from prompt to prompt. Each row
/// sums to 1. Uses all threads.
void synthetic_energy(const AttentionGeometry& geometry, int prompt, int site, float* energy);

/// A device on which attention costs nothing but its block energies, which are synthetic.
class SyntheticDevice : public FakeDeviceBackend {
 public:
  SyntheticDevice(const AttentionGeometry& geometry, size_t bytes)
      : FakeDeviceBackend(false, bytes), geometry_(geometry) {}
  void next(int prompt, int site) { prompt_ = prompt, site_ = site; }
  std::string_view attention(const AttentionCall& call) override;
  double seconds_making_energies = 0;  ///< processor time, to be left out

 private:
  const AttentionGeometry& geometry_;
  int prompt_ = 0, site_ = 0;
};

}  // namespace calibatt::bench
