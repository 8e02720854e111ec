#pragma once

#include <memory>

#include "backend/backend.h"

namespace calibatt::cuda {

struct ClipOptions;

/// The backend on the GPU of this index. Everything is enqueued on one stream and nothing waits for it but to_host,
/// heads_to_host, sum_of_squares, synchronize, limit_run_ahead and a Timer's seconds(); only schedules of planned calls
/// come by a stream and a thread of their own, and `attention` waits for the thread where one is not there yet. To be
/// used from one thread. Throws Error(kUsage) listing the GPUs when there is none of this index, Error(kDevice) when
/// there is no GPU or it is too old.
std::unique_ptr<Backend> make_cuda_backend(int device = 0);
/// With other than the default options of the video autoencoder's operators (convolution.h).
std::unique_ptr<Backend> make_cuda_backend(int device, const ClipOptions& clip_options);

/// Makes make_backend know "cuda".
void add_cuda_backend();

}  // namespace calibatt::cuda
