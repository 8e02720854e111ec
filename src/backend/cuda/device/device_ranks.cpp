#include "backend/cuda/device/device_ranks.h"

#include <stdexcept>
#include <type_traits>

#include "base/error.h"

namespace calibatt::cuda {
namespace {

/// Every rank's value, seen by all. Values are copied byte by byte.
template <class Value>
std::vector<Value> gathered(Communicator& hosts, const Value& mine) {
  static_assert(std::is_trivially_copyable_v<Value>);
  std::vector<Value> all(static_cast<size_t>(hosts.size()));
  std::vector<Piece> receive;
  for (Value& value : all) receive.push_back({&value, sizeof(Value)});
  hosts.all_gather({&mine, sizeof(Value)}, receive);
  return all;
}

}  // namespace

DeviceRanks::DeviceRanks(Communicator& hosts, Context& context)
    : hosts_(hosts), context_(context), own_(std::make_shared<Peer>()) {
  own_->memory = context.memory();
  admit_peers();
  const std::shared_ptr<const Peer> own = own_;
  for (const auto* peer : gathered(hosts, &own)) peers_.push_back(*peer);
  hosts.barrier();  // all have copied `own`
}

DeviceRanks::~DeviceRanks() {
  static_cast<void>(cudaStreamSynchronize(context_.stream()));
}

void DeviceRanks::admit_peers() {
  const int own = context_.device().index;
  for (const int other : gathered(hosts_, own)) {
    if (other == own) continue;
    int can_read = 0;
    check(cudaDeviceCanAccessPeer(&can_read, other, own), "asking whether GPUs can read each other's memory");
    if (can_read == 0) {
      throw Error(ErrorKind::kDevice, "GPU " + std::to_string(other) + " cannot read the memory of GPU " +
                                          std::to_string(own) +
                                          "; use GPUs that are connected (nvidia-smi topo -p2p r)");
    }
    context_.let_read(other);
  }
}

void DeviceRanks::all_to_all(std::span<const ConstPiece> send, std::span<const Piece> receive) {
  CALIBATT_ASSERT(static_cast<int>(send.size()) == size() && static_cast<int>(receive.size()) == size());
  own_->sent.record(context_.stream());
  std::vector<ConstPiece> offered(send.size()), to_each;
  std::vector<Piece> from_each;
  for (size_t other = 0; other < send.size(); ++other) {
    to_each.push_back({&send[other], sizeof(ConstPiece)});
    from_each.push_back({&offered[other], sizeof(ConstPiece)});
  }
  hosts_.all_to_all(to_each, from_each);
  for (size_t other = 0; other < send.size(); ++other) {
    const ConstPiece& piece = offered[other];
    if (piece.size_bytes != receive[other].size_bytes) {
      throw std::logic_error("rank " + std::to_string(other) + " sends " + std::to_string(piece.size_bytes) +
                             " bytes to rank " + std::to_string(rank()) + ", which expects " +
                             std::to_string(receive[other].size_bytes));
    }
    if (piece.size_bytes == 0) continue;
    peer(other).sent.hold_back(context_.stream());
    check(cudaMemcpyAsync(receive[other].data, piece.data, piece.size_bytes, cudaMemcpyDefault, context_.stream()),
          "copying from another GPU");
  }
  own_->read.record(context_.stream());
  hosts_.barrier();  // every rank's event is recorded; and recorded anew in the next call, when all have come here
  for (size_t other = 0; other < send.size(); ++other) {
    if (send[other].size_bytes > 0) peer(other).read.hold_back(context_.stream());
  }
}

}  // namespace calibatt::cuda
