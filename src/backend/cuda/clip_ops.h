#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/clip_ops.h"
#include "backend/cuda/convolution.h"
#include "backend/cuda/device/context.h"

namespace calibatt::cuda {

/// The operators of a video autoencoder on one GPU: convolutions by cuDNN, attention by cuBLAS, the rest by our own
/// kernels; everything in the order of the context's stream. The context must outlive the object. cuDNN and cuBLAS are
/// started when the first model is loaded.
std::unique_ptr<ClipOps> make_clip_ops(Context& context, const ClipOptions& options = {});

/// Which engines cuDNN runs, one line per shape seen so far; empty for the ClipOps of another backend.
std::vector<std::string> convolution_report(const ClipOps& ops);

}  // namespace calibatt::cuda
