#include "backend/cuda/device/device_ranks.h"

#include <stdexcept>
#include <type_traits>

#include "backend/cuda/device/head_copy.h"
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
    if (!gpu_can_read(other, own)) {
      throw Error(ErrorKind::kDevice, "GPU " + std::to_string(other) + " cannot read the memory of GPU " +
                                          std::to_string(own) +
                                          "; use GPUs that are connected (nvidia-smi topo -p2p r)");
    }
    context_.let_read(other);
  }
}

void DeviceRanks::begin_call() {
  turn_ = 1 - turn_;
  own_->sent[turn_].record(context_.stream());
}

void DeviceRanks::hold_back_for(size_t rank) {
  if (peers_[rank] != own_) peer(rank).sent[turn_].hold_back(context_.stream());
}

void DeviceRanks::end_call() {
  own_->read[turn_].record(context_.stream());
  unread_ = turn_;
}

void DeviceRanks::wait_for_readers() {
  if (!unread_) return;
  for (const std::shared_ptr<const Peer>& peer : peers_) {
    if (peer != own_) peer->read[*unread_].hold_back(context_.stream());
  }
  unread_.reset();
}

void DeviceRanks::all_to_all(std::span<const ConstPiece> send, std::span<const Piece> receive) {
  CALIBATT_ASSERT(static_cast<int>(send.size()) == size() && static_cast<int>(receive.size()) == size());
  begin_call();
  std::vector<ConstPiece> offered(send.size()), to_each;
  std::vector<Piece> from_each;
  for (size_t other = 0; other < send.size(); ++other) {
    to_each.push_back({&send[other], sizeof(ConstPiece)});
    from_each.push_back({&offered[other], sizeof(ConstPiece)});
  }
  hosts_.all_to_all(to_each, from_each);
  wait_for_readers();
  for (size_t other = 0; other < send.size(); ++other) {
    const ConstPiece& piece = offered[other];
    if (piece.size_bytes != receive[other].size_bytes) {
      throw std::logic_error("rank " + std::to_string(other) + " sends " + std::to_string(piece.size_bytes) +
                             " bytes to rank " + std::to_string(rank()) + ", which expects " +
                             std::to_string(receive[other].size_bytes));
    }
    if (piece.size_bytes == 0) continue;
    hold_back_for(other);
    check(cudaMemcpyAsync(receive[other].data, piece.data, piece.size_bytes, cudaMemcpyDefault, context_.stream()),
          "copying from another GPU");
  }
  end_call();
  barrier();
}

void DeviceRanks::take_heads(std::span<const ConstHeadsView> offered, std::span<const HeadRows> taken, int head_dim) {
  begin_call();
  std::vector<ConstHeadsView> views(offered.size() * peers_.size());  // [ranks][views of each]
  std::vector<Piece> from_each;
  for (size_t other = 0; other < peers_.size(); ++other) {
    from_each.push_back({views.data() + other * offered.size(), offered.size_bytes()});
  }
  hosts_.all_gather({offered.data(), offered.size_bytes()}, from_each);
  wait_for_readers();
  std::vector<HeadCopy> copies;
  for (const HeadRows& rows : taken) {
    const auto other = static_cast<size_t>(rows.rank);
    CALIBATT_ASSERT(other < peers_.size());
    copies.push_back(
        {source_of(rows, std::span(views).subspan(other * offered.size(), offered.size())), rows.to, rows.moves});
    hold_back_for(other);
  }
  copy_heads(copies, head_dim, context_.stream());
  end_call();
}

void DeviceRanks::barrier() {
  hosts_.barrier();
  wait_for_readers();
}

}  // namespace calibatt::cuda
