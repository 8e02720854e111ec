#include "backend/cuda/device/context.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace calibatt::cuda {
namespace {

// A piece of work that takes until the test lets it end, as a long kernel would; it gives up after a while, so that a
// wait for it fails the test instead of hanging it.
struct Piece {
  std::atomic<bool> may_end = false, done = false, gave_up = false;

  void enqueue(const Context& context) {
    const auto run = [](void* argument) {
      auto* piece = static_cast<Piece*>(argument);
      const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(2);
      while (!piece->may_end && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
      piece->gave_up = !piece->may_end;
      piece->done = true;
    };
    check(cudaLaunchHostFunc(context.stream(), run, this), "enqueueing a function");
  }
};

TEST(CudaRunAhead, IsOnePieceOfWork) {
  if (num_devices() == 0) GTEST_SKIP() << "no CUDA device";
  Context context;
  std::array<Piece, 4> pieces;
  for (size_t i = 0; i < pieces.size(); ++i) {
    pieces[i].enqueue(context);
    if (i > 0) {
      EXPECT_FALSE(pieces[i - 1].done) << "the piece before still runs when this one is enqueued";
      pieces[i - 1].may_end = true;
    }
    context.limit_run_ahead();  // returns while the last piece cannot end
    if (i > 0) {
      EXPECT_TRUE(pieces[i - 1].done) << i;
    }
    EXPECT_FALSE(pieces[i].done) << i;
  }
  pieces.back().may_end = true;
  context.synchronize();
  for (const Piece& piece : pieces) EXPECT_FALSE(piece.gave_up);
}

}  // namespace
}  // namespace calibatt::cuda
