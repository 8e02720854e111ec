#include "pipeline/device_backends.h"

#ifdef CALIBATT_HAVE_CUDA
#include "backend/cuda/cuda_backend.h"
#endif

namespace calibatt {

void add_device_backends() {
#ifdef CALIBATT_HAVE_CUDA
  cuda::add_cuda_backend();
#endif
}

}  // namespace calibatt
