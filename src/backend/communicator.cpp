#include "backend/communicator.h"

#include <vector>

#include "base/error.h"

namespace calibatt {

void Communicator::all_gather(ConstPiece send, std::span<const Piece> receive) {
  const std::vector<ConstPiece> to_each(static_cast<size_t>(size()), send);
  all_to_all(to_each, receive);
}

void Communicator::broadcast(Piece memory, int root) {
  CALIBATT_ASSERT(root >= 0 && root < size());
  std::vector<ConstPiece> send(static_cast<size_t>(size()));
  std::vector<Piece> receive(static_cast<size_t>(size()));
  if (rank() == root) {
    for (int r = 0; r < size(); ++r) {
      if (r != root) send[static_cast<size_t>(r)] = {memory.data, memory.size_bytes};
    }
  } else {
    receive[static_cast<size_t>(root)] = memory;
  }
  all_to_all(send, receive);
}

}  // namespace calibatt
