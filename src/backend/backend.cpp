#include "backend/backend.h"

#include <string>

#include "base/error.h"

namespace calibatt {

ClipOps& Backend::clip_ops() {
  throw Error(ErrorKind::kUsage,
              "backend '" + std::string(name()) + "' has no operators for video autoencoders; use cpu");
}

}  // namespace calibatt
