#pragma once

#include <span>
#include <string>

#include "backend/communicator.h"

namespace calibatt {

/// Ranks [g·n, (g + 1)·n) of a group as a group of n of their own, one of several of the same size. Nothing is sent
/// between them, but they meet together: every rank of the whole group makes the same calls in the same order.
class RankSubgroup : public Communicator {
 public:
  /// num_groups divides all.size(). `all` must outlive the object.
  RankSubgroup(Communicator& all, int num_groups);

  int rank() const override { return all_.rank() - first_; }
  int size() const override { return size_; }
  void all_to_all(std::span<const ConstPiece> send, std::span<const Piece> receive) override;
  void take_heads(std::span<const ConstHeadsView> offered, std::span<const HeadRows> taken, int head_dim) override;
  void barrier() override { all_.barrier(); }
  void throw_if_ended() override { all_.throw_if_ended(); }
  void abort(const std::string& reason) override { all_.abort(reason); }

 private:
  Communicator& all_;
  int size_, first_;
};

}  // namespace calibatt
