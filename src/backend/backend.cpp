#include "backend/backend.h"

#include <string>

#include "base/error.h"

namespace calibatt {

ClipOps& Backend::clip_ops() {
  throw Error(ErrorKind::kUsage,
              "backend '" + std::string(name()) + "' has no operators for video autoencoders; use cpu");
}

EightBitOps& Backend::eight_bit_ops() {
  throw Error(ErrorKind::kUsage,
              "backend '" + std::string(name()) + "' has no linear layers in 8 bits; use --weights-dtype bf16");
}

}  // namespace calibatt
