#pragma once

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/communicator.h"
#include "backend/cuda/device/context.h"
#include "backend/cuda/device/event.h"

namespace calibatt::cuda {

/// Ranks that are threads of this process with a GPU each (or with one and the same: for tests). Their hosts meet in
/// `hosts`, in every call; each rank then reads what is its own out of the others' memory, on its own stream, behind
/// what makes it there: pieces by copies, rows of heads by one kernel. No rank changes what another has not read yet,
/// in stream order. Nobody waits for a GPU.
class DeviceRanks : public Communicator {
 public:
  /// To be called by all ranks, each on its own thread. Throws Error(kDevice), naming two GPUs, where one cannot read
  /// the other's memory. Both references must outlive the object.
  DeviceRanks(Communicator& hosts, Context& context);
  ~DeviceRanks() override;  ///< waits for what this rank reads of others

  int rank() const override { return hosts_.rank(); }
  int size() const override { return hosts_.size(); }
  void all_to_all(std::span<const ConstPiece> send, std::span<const Piece> receive) override;
  void take_heads(std::span<const ConstHeadsView> offered, std::span<const HeadRows> taken, int head_dim) override;
  /// Of the hosts: their GPUs may be behind.
  void barrier() override;
  void throw_if_ended() override { hosts_.throw_if_ended(); }
  void abort(const std::string& reason) override { hosts_.abort(reason); }

 private:
  /// What ranks know of each other. It lives until the last of them has ended, so that one that fails takes nothing
  /// from those that read. Calls take its events in turn: a rank may be a call ahead of those that have yet to enqueue
  /// their wait for the one before, and no further, for they meet.
  struct Peer {
    std::shared_ptr<const void> memory;
    std::array<Event, 2> sent;  ///< what this rank sends is there
    std::array<Event, 2> read;  ///< this rank has read what it receives
  };
  void admit_peers();
  const Peer& peer(size_t rank) const { return *peers_[rank]; }
  /// What this rank sends or offers is there when the stream is.
  void begin_call();
  /// The stream comes to what others send only when it is there.
  void hold_back_for(size_t rank);
  /// What this rank takes has been read when the stream is here.
  void end_call();
  /// When the hosts have met after a call: from here on, in stream order, what this rank sent in it may change.
  void wait_for_readers();

  Communicator& hosts_;
  Context& context_;
  std::shared_ptr<Peer> own_;
  std::vector<std::shared_ptr<const Peer>> peers_;  // [ranks], this one too
  size_t turn_ = 0;                                 // whose events the last call took
  std::optional<size_t> unread_;                    // the turn that no wait_for_readers came after yet
};

}  // namespace calibatt::cuda
