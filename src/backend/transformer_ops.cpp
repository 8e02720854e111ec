#include "backend/transformer_ops.h"

#include "backend/eight_bit_ops.h"
#include "base/error.h"

namespace calibatt {

std::shared_ptr<const LinearLayer> TransformerOps::project_values(const LinearLayer&, ConstHeadsView, int, int) {
  CALIBATT_ASSERT(!"attention_weight_slots is 0");
  return nullptr;
}

void TransformerOps::attention_weights(const AttentionCall&, Tensor&) {
  CALIBATT_ASSERT(!"attention_weight_slots is 0");
}

void EightBitOps::attention_weights(const AttentionCall&, EightBitRows&) {
  CALIBATT_ASSERT(!"attention_weight_slots is 0");
}

}  // namespace calibatt
