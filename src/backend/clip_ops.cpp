#include "backend/clip_ops.h"

#include <string>

#include "backend/backend.h"
#include "base/error.h"

namespace calibatt {

ClipOps& Backend::clip_ops() {
  throw Error(ErrorKind::kUsage,
              "backend '" + std::string(name()) + "' has no operators for video autoencoders; use cpu");
}

}  // namespace calibatt
