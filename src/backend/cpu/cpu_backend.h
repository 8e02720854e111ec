#pragma once

#include <memory>

#include "backend/backend.h"

namespace calibatt::cpu {

/// The backend "cpu": tensors are host tensors; linear layers on oneDNN, everything else on Highway kernels of our own,
/// all shared out by parallel_for. Results do not depend on the number of threads.
std::unique_ptr<Backend> make_cpu_backend();

}  // namespace calibatt::cpu
