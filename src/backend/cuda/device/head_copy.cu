#include <algorithm>
#include <cstdint>

#include "backend/cuda/device/device.h"
#include "backend/cuda/device/head_copy.h"
#include "base/ceil_div.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

// Words of 16 bytes: 16 kB a block, 64 bytes a thread in flight. An H200 holds 8 blocks on each of 132 multiprocessors:
// 17 MB, where 450 GB/s over NVLink × 2 µs of latency want 1 MB.
constexpr int kThreads = 256;
constexpr int kLoads = 4;
constexpr int kWordsOfBlock = kThreads * kLoads;

/// Strides in bytes.
struct Part {
  const char* from;
  char* to;
  int64_t from_token, from_head, to_token, to_head;
  int64_t num_tokens;
  int first_move, num_moves;
};

struct Move {
  uint16_t from, to;
};

/// What one launch copies. Arguments of a kernel are at most 4096 bytes.
constexpr int kMostParts = 24;
constexpr int kMostMoves = 512;
struct Batch {
  Part parts[kMostParts];
  Move moves[kMostMoves];
  int num_parts = 0, num_moves = 0;
};
static_assert(sizeof(Batch) <= 4096 - 16);

/// Block b copies a piece of part b % num_parts, so that parts from several memories are under way at any time.
template <class Word>
__global__ void __launch_bounds__(kThreads) copy_kernel(const __grid_constant__ Batch batch, int words_of_row) {
  const Part& part = batch.parts[blockIdx.x % static_cast<unsigned>(batch.num_parts)];
  const auto row = static_cast<unsigned>(words_of_row), width = static_cast<unsigned>(part.num_moves) * row;
  const int64_t first = int64_t{blockIdx.x / static_cast<unsigned>(batch.num_parts)} * kWordsOfBlock;
  const int64_t first_token = first / width;
  if (first_token >= part.num_tokens) return;
  const auto first_word = static_cast<unsigned>(first - first_token * width) + threadIdx.x;
  Word words[kLoads];
  Word* to[kLoads];
  bool exists[kLoads];
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    const unsigned at = first_word + i * kThreads, token_here = at / width, of_token = at - token_here * width;
    const unsigned head = of_token / row, word = of_token - head * row;
    exists[i] = first_token + token_here < part.num_tokens;
    const int64_t token = exists[i] ? first_token + token_here : first_token;  // no branch keeps loads apart
    const Move move = batch.moves[part.first_move + static_cast<int>(head)];
    const char* from = part.from + token * part.from_token + move.from * part.from_head;
    words[i] = __ldcs(reinterpret_cast<const Word*>(from) + word);
    to[i] = reinterpret_cast<Word*>(part.to + token * part.to_token + move.to * part.to_head) + word;
  }
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    if (exists[i]) *to[i] = words[i];
  }
}

template <class Word>
void launch(const Batch& batch, int64_t row_bytes, cudaStream_t stream) {
  const auto words_of_row = static_cast<int>(row_bytes / static_cast<int64_t>(sizeof(Word)));
  int64_t most_words = 0;
  for (int p = 0; p < batch.num_parts; ++p) {
    const Part& part = batch.parts[p];
    most_words = std::max(most_words, part.num_tokens * part.num_moves * words_of_row);
  }
  const int64_t blocks = ceil_div(most_words, int64_t{kWordsOfBlock}) * batch.num_parts;
  CALIBATT_ASSERT(blocks <= INT32_MAX);
  copy_kernel<Word><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(batch, words_of_row);
  check(cudaGetLastError(), "copying rows of heads");
}

/// The largest word that every row begins and ends at a multiple of.
int64_t word_bytes(const Batch& batch, int64_t row_bytes) {
  auto bits = static_cast<uint64_t>(row_bytes);
  for (int p = 0; p < batch.num_parts; ++p) {
    const Part& part = batch.parts[p];
    bits |= reinterpret_cast<uintptr_t>(part.from) | reinterpret_cast<uintptr_t>(part.to);
    for (const int64_t stride : {part.from_token, part.from_head, part.to_token, part.to_head}) {
      bits |= static_cast<uint64_t>(stride);
    }
  }
  return static_cast<int64_t>(std::min<uint64_t>(bits & (~bits + 1), sizeof(uint4)));
}

void launch(const Batch& batch, int64_t row_bytes, cudaStream_t stream) {
  if (batch.num_parts == 0) return;
  switch (word_bytes(batch, row_bytes)) {
    case 16:
      return launch<uint4>(batch, row_bytes, stream);
    case 8:
      return launch<uint2>(batch, row_bytes, stream);
    case 4:
      return launch<unsigned>(batch, row_bytes, stream);
    case 2:
      return launch<unsigned short>(batch, row_bytes, stream);
    default:
      return launch<unsigned char>(batch, row_bytes, stream);
  }
}

}  // namespace

void copy_heads(std::span<const HeadCopy> copies, int head_dim, cudaStream_t stream) {
  Batch batch{};
  int64_t row_bytes = 0;
  for (const HeadCopy& copy : copies) {
    CALIBATT_ASSERT(copy.from.dtype == copy.to.dtype && copy.from.num_tokens == copy.to.num_tokens);
    const auto element = static_cast<int64_t>(dtype_size(copy.from.dtype));
    CALIBATT_ASSERT(row_bytes == 0 || row_bytes == head_dim * element);
    row_bytes = head_dim * element;
    if (copy.to.num_tokens == 0) continue;
    for (size_t done = 0; done < copy.moves.size();) {
      if (batch.num_parts == kMostParts || batch.num_moves == kMostMoves) {
        launch(batch, row_bytes, stream);
        batch = {};
      }
      const size_t count = std::min(copy.moves.size() - done, static_cast<size_t>(kMostMoves - batch.num_moves));
      batch.parts[batch.num_parts++] = {static_cast<const char*>(copy.from.data),
                                        static_cast<char*>(copy.to.data),
                                        copy.from.token_stride * element,
                                        copy.from.head_stride * element,
                                        copy.to.token_stride * element,
                                        copy.to.head_stride * element,
                                        copy.to.num_tokens,
                                        batch.num_moves,
                                        static_cast<int>(count)};
      for (const HeadMove& move : copy.moves.subspan(done, count)) {
        CALIBATT_ASSERT(std::max(move.from, move.to) <= UINT16_MAX);
        batch.moves[batch.num_moves++] = {static_cast<uint16_t>(move.from), static_cast<uint16_t>(move.to)};
      }
      done += count;
    }
  }
  launch(batch, row_bytes, stream);
}

}  // namespace calibatt::cuda
