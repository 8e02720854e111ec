#pragma once

#include <cstddef>

#include "backend/cuda/device/device.h"

namespace calibatt::cuda {

/// How many blocks of a kernel the current device holds at a time, each with that much dynamic shared memory, which the
/// kernel is allowed to have from then on.
template <class Kernel>
unsigned resident_blocks(Kernel* kernel, unsigned threads, size_t shared_bytes) {
  int device = 0, num_sms = 0, of_sm = 0;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
        "reserving shared memory");
  check(cudaGetDevice(&device), "asking for the device");
  check(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device), "asking for multiprocessors");
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&of_sm, kernel, static_cast<int>(threads), shared_bytes),
        "asking how many blocks a multiprocessor holds");
  return static_cast<unsigned>(num_sms * (of_sm > 0 ? of_sm : 1));
}

}  // namespace calibatt::cuda
