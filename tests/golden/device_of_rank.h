#pragma once

#include "backend/cpu/make_backend.h"
#include "base/error.h"

namespace calibatt {

/// The GPU of a rank: its own, or the first where there are not as many.
inline int device_of_rank(int rank) {
  try {
    make_backend("cuda", rank);
    return rank;
  } catch (const Error&) {
    return 0;
  }
}

}  // namespace calibatt
