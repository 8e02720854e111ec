#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "backend/head_rows.h"

namespace calibatt {

/// Memory of the backend that a rank sends or receives; null where size_bytes is 0.
struct ConstPiece {
  const void* data = nullptr;
  size_t size_bytes = 0;
};
struct Piece {
  void* data = nullptr;
  size_t size_bytes = 0;
};

/// One rank's end of a group of ranks that compute one video together, each with a backend of its own
/// (docs/decisions/0009…). All ranks make the same calls in the same order. A call may return before its data have
/// moved where the backend's work is enqueued on a stream; it moves them in that stream's order.
///
/// A rank that fails ends the group: whoever waits for it, or calls later, gets Error(kDevice) with its reason.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;  ///< 0 … size() − 1
  virtual int size() const = 0;  ///< ≥ 1

  /// send[r] goes to rank r, and what rank r sends to this one arrives in receive[r]: size() pieces each, of any sizes
  /// that the two ranks agree on. No piece of one overlaps a piece of the other.
  virtual void all_to_all(std::span<const ConstPiece> send, std::span<const Piece> receive) = 0;
  /// Every rank offers views of heads, as many as each other, and takes rows out of everybody's: all of it at once, and
  /// straight to where it is wanted. What a rank offers stays as it is until its next call of this, all_to_all or
  /// barrier has returned (in stream order); nothing is taken into it.
  virtual void take_heads(std::span<const ConstHeadsView> offered, std::span<const HeadRows> taken, int head_dim) = 0;
  /// Returns when every rank is here.
  virtual void barrier() = 0;
  /// Throws where the group has ended, as any call would: for whoever computes for long without one.
  virtual void throw_if_ended() = 0;
  /// Ends the group for every rank. reason: one line, with what failed and where. The first reason stays.
  virtual void abort(const std::string& reason) = 0;

  /// `send` goes to every rank; receive[r]: from rank r, this rank's own too.
  void all_gather(ConstPiece send, std::span<const Piece> receive);
  /// The root's memory → everybody's, of the same size.
  void broadcast(Piece memory, int root);
};

}  // namespace calibatt
