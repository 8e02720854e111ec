#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/communicator.h"
#include "backend/cuda/device/context.h"
#include "backend/cuda/device/event.h"

namespace calibatt::cuda {

/// Ranks that are threads of this process with a GPU each (or with one and the same: for tests). Their hosts meet in
/// `hosts`, in every call; each rank then copies what is its own out of the others' memory, on its own stream, behind
/// what makes it there. No rank changes what another has not read yet, in stream order. Nobody waits for a GPU.
class DeviceRanks : public Communicator {
 public:
  /// To be called by all ranks, each on its own thread. Throws Error(kDevice), naming two GPUs, where one cannot read
  /// the other's memory. Both references must outlive the object.
  DeviceRanks(Communicator& hosts, Context& context);
  ~DeviceRanks() override;  ///< waits for what this rank reads of others

  int rank() const override { return hosts_.rank(); }
  int size() const override { return hosts_.size(); }
  void all_to_all(std::span<const ConstPiece> send, std::span<const Piece> receive) override;
  /// Of the hosts: their GPUs may be behind.
  void barrier() override { hosts_.barrier(); }
  void throw_if_ended() override { hosts_.throw_if_ended(); }
  void abort(const std::string& reason) override { hosts_.abort(reason); }

 private:
  /// What ranks know of each other. It lives until the last of them has ended, so that one that fails takes nothing
  /// from those that read.
  struct Peer {
    std::shared_ptr<const void> memory;
    Event sent;  ///< what this rank sends is there
    Event read;  ///< this rank has read what it receives
  };
  void admit_peers();
  const Peer& peer(size_t rank) const { return *peers_[rank]; }

  Communicator& hosts_;
  Context& context_;
  std::shared_ptr<Peer> own_;
  std::vector<std::shared_ptr<const Peer>> peers_;  // [ranks], this one too
};

}  // namespace calibatt::cuda
