#include "pipeline/guidance_groups.h"

#include <vector>

#include "base/error.h"

namespace calibatt {

GuidanceGroups::GuidanceGroups(Communicator& hosts) : hosts_(hosts), half_(hosts.size() / 2) {
  CALIBATT_ASSERT(hosts.size() % 2 == 0);
}

GuidanceBranch GuidanceGroups::own() const {
  return hosts_.rank() < half_ ? GuidanceBranch::kConditional : GuidanceBranch::kUnconditional;
}

Tensor GuidanceGroups::exchange(const Tensor& own) {
  const auto partner = static_cast<size_t>((hosts_.rank() + half_) % hosts_.size());
  Tensor other(own.dtype(), own.shape());
  std::vector<ConstPiece> send(static_cast<size_t>(hosts_.size()));
  std::vector<Piece> receive(send.size());
  send[partner] = {own.raw(), own.size_bytes()};
  receive[partner] = {other.raw(), other.size_bytes()};
  hosts_.all_to_all(send, receive);
  return other;
}

}  // namespace calibatt
