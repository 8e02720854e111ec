#include "test_kernel.h"

namespace calibatt {

std::vector<TestKernel> cuda_kernels() {
  return {};
}

}  // namespace calibatt
