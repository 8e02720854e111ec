#include "backend/thread_ranks.h"

#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "base/error.h"

namespace calibatt {
namespace {

std::string rank_text(int rank, int size) {
  return "rank " + std::to_string(rank) + " of " + std::to_string(size);
}

/// What all ranks share. They meet here, and look at each other's pieces while nobody can leave.
class Meeting {
 public:
  explicit Meeting(int size) : sent_(static_cast<size_t>(size)), size_(size) {}

  int size() const { return size_; }
  std::span<const ConstPiece> sent_by(int rank) const { return sent_[static_cast<size_t>(rank)]; }

  /// Waits for all ranks, then lets `take` read what they sent. Throws when one cannot come, or what `take` throws.
  /// Returns or throws only when nobody reads any more: what a rank sent must live until then.
  void exchange(int rank, std::span<const ConstPiece> sent, const std::function<void()>& take) {
    wait_for_all(rank, sent);
    std::exception_ptr error;
    try {
      take();
    } catch (const std::exception& thrown) {
      error = std::current_exception();
      fail(rank, error, thrown.what());
    }
    std::unique_lock lock(mutex_);
    if (--reading_ == 0) changed_.notify_all();
    changed_.wait(lock, [&] { return reading_ == 0; });
    if (error) std::rethrow_exception(error);
    throw_if_over();
  }

  void abort(const std::string& reason) {
    const std::lock_guard lock(mutex_);
    end(reason);
  }
  void throw_if_ended() {
    const std::lock_guard lock(mutex_);
    throw_if_over();
  }

  /// The rank's body threw `error`.
  void fail(int rank, std::exception_ptr error, const std::string& what) {
    const std::lock_guard lock(mutex_);
    if (!over_) error_ = std::move(error);
    end(rank_text(rank, size_) + " failed: " + what);
  }

  /// The rank's body returned.
  void leave(int rank) {
    const std::lock_guard lock(mutex_);
    left_ = rank;
    if (arrived_ > 0) end("rank " + std::to_string(rank) + " has ended, while another waits for it");
  }

  /// After all bodies: what ended the group, if something did.
  void rethrow() {
    if (error_) std::rethrow_exception(error_);
    throw_if_over();
  }

 private:
  void wait_for_all(int rank, std::span<const ConstPiece> sent) {
    std::unique_lock lock(mutex_);
    throw_if_over();
    sent_[static_cast<size_t>(rank)] = sent;
    if (++arrived_ == size_) {
      arrived_ = 0;
      reading_ = size_;
      ++meetings_;
      changed_.notify_all();
      return;
    }
    if (left_) {
      end("rank " + std::to_string(*left_) + " has ended, while rank " + std::to_string(rank) + " waits for it");
      throw_if_over();
    }
    const int meeting = meetings_;
    changed_.wait(lock, [&] { return meetings_ != meeting || over_; });
    if (meetings_ == meeting) throw_if_over();
  }
  void end(const std::string& reason) {
    if (!over_) over_ = reason;
    changed_.notify_all();
  }
  void throw_if_over() const {
    if (over_) throw Error(ErrorKind::kDevice, *over_);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::span<const ConstPiece>> sent_;  // [ranks]
  const int size_;
  int arrived_ = 0;                  // at the present meeting
  int meetings_ = 0;                 // that have taken place
  int reading_ = 0;                  // ranks that may still read what others brought to the last one
  std::optional<int> left_;          // a rank that will come to no more meetings
  std::optional<std::string> over_;  // why there are no more meetings
  std::exception_ptr error_;         // of the rank that failed first
};

class ThreadRank : public Communicator {
 public:
  ThreadRank(Meeting& meeting, int rank) : meeting_(meeting), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return meeting_.size(); }

  void all_to_all(std::span<const ConstPiece> send, std::span<const Piece> receive) override {
    CALIBATT_ASSERT(static_cast<int>(send.size()) == size() && static_cast<int>(receive.size()) == size());
    meeting_.exchange(rank_, send, [&] {
      for (int from = 0; from < size(); ++from) take(from, receive[static_cast<size_t>(from)]);
    });
  }
  void take_heads(std::span<const ConstHeadsView> offered, std::span<const HeadRows> taken, int head_dim) override {
    const ConstPiece views{offered.data(), offered.size_bytes()};
    meeting_.exchange(rank_, {&views, 1}, [&] {
      for (const HeadRows& rows : taken) copy_on_host(rows, source_of(rows, offered_by(rows.rank)), head_dim);
    });
  }
  void barrier() override {
    meeting_.exchange(rank_, {}, [] {});
  }
  void throw_if_ended() override { meeting_.throw_if_ended(); }
  void abort(const std::string& reason) override { meeting_.abort(rank_text(rank_, size()) + ": " + reason); }

 private:
  std::span<const ConstHeadsView> offered_by(int rank) const {
    CALIBATT_ASSERT(rank >= 0 && rank < size());
    const std::span<const ConstPiece> sent = meeting_.sent_by(rank);
    if (sent.empty()) return {};
    return {static_cast<const ConstHeadsView*>(sent[0].data), sent[0].size_bytes / sizeof(ConstHeadsView)};
  }
  void take(int from, const Piece& piece) {
    const std::span<const ConstPiece> sent = meeting_.sent_by(from);
    const ConstPiece source = sent.empty() ? ConstPiece{} : sent[static_cast<size_t>(rank_)];
    if (source.size_bytes != piece.size_bytes) {
      throw std::logic_error("rank " + std::to_string(from) + " sends " + std::to_string(source.size_bytes) +
                             " bytes to rank " + std::to_string(rank_) + ", which expects " +
                             std::to_string(piece.size_bytes));
    }
    if (piece.size_bytes > 0) std::memcpy(piece.data, source.data, piece.size_bytes);
  }

  Meeting& meeting_;
  int rank_;
};

void run_rank(Meeting& meeting, int rank, const std::function<void(Communicator&)>& body) {
  try {
    ThreadRank communicator(meeting, rank);
    body(communicator);
    meeting.leave(rank);
  } catch (const Error& error) {
    const bool of_this_rank = error.kind() == ErrorKind::kDevice || error.kind() == ErrorKind::kNumeric;
    const Error named(error.kind(), rank_text(rank, meeting.size()) + ": " + error.what());
    meeting.fail(rank, of_this_rank ? std::make_exception_ptr(named) : std::current_exception(), error.what());
  } catch (const std::exception& error) {
    meeting.fail(rank, std::current_exception(), error.what());
  } catch (...) {
    meeting.fail(rank, std::current_exception(), "stopped");
  }
}

}  // namespace

void run_ranks(int num_ranks, const std::function<void(Communicator&)>& body) {
  CALIBATT_ASSERT(num_ranks >= 1);
  Meeting meeting(num_ranks);
  if (num_ranks == 1) {  // nobody to end, and no rank to name
    ThreadRank alone(meeting, 0);
    return body(alone);
  }
  {
    std::vector<std::jthread> threads;
    threads.reserve(static_cast<size_t>(num_ranks) - 1);
    bool all_started = true;
    try {
      for (int rank = 1; rank < num_ranks; ++rank) {
        threads.emplace_back([&meeting, &body, rank] { run_rank(meeting, rank, body); });
      }
    } catch (const std::system_error& error) {  // else those that run would wait for it
      all_started = false;
      meeting.abort("only " + std::to_string(threads.size() + 1) + " of " + std::to_string(num_ranks) +
                    " ranks could start: " + error.what());
    }
    if (all_started) run_rank(meeting, 0, body);
  }
  meeting.rethrow();
}

}  // namespace calibatt
