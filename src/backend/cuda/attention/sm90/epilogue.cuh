#pragma once

#include "backend/cuda/attention/sm90/layout.cuh"
#include "backend/cuda/attention/sm90/softmax.cuh"

/// From accumulators to global memory. A warp holds 16 rows and writes them without waiting for the others.
namespace calibatt::cuda::sm90 {

/// Calls write(token) for every token that row `row` of the tile belongs to.
template <class Write>
__device__ __forceinline__ void for_each_token(const AttentionArgs& args, const TileHeader& header, int row,
                                               Write write) {
  if (row >= header.num_rows) return;
  if (!(header.flags & Tile::kAnchors)) {
    write(header.first_row + row);
    return;
  }
  const uint32_t* offsets = args.schedule.destination_offsets + header.first_row + row;
  const uint32_t end = __ldg(offsets + 1);
  for (uint32_t i = __ldg(offsets); i < end; ++i) write(__ldg(args.schedule.destinations + i));
}

/// o: the final output, fragments as wgmma leaves them; first: the warp's first row in the tile. `staging` turns pairs
/// of columns into rows of 16-byte pieces, so that each row is written by neighbouring lanes.
template <int kHeadDim, class Type>
__device__ __forceinline__ void write_output(const AttentionArgs& args, const TileHeader& header, uint8_t* staging,
                                             const float (&o)[kHeadDim / 2], int first, int lane) {
  const DeviceHeads& out = args.out;
  const int64_t base = header.batch * out.batch_stride + header.head * out.head_stride;
  const int quad = lane / 4, column = 2 * (lane % 4);
  if (args.out_f32) {
    float* data = static_cast<float*>(out.data) + base + column;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      for_each_token(args, header, first + quad + 8 * r, [&](int token) {
        float* row = data + token * out.token_stride;
#pragma unroll
        for (int i = 0; i < kHeadDim / 8; ++i) {
          *reinterpret_cast<float2*>(row + 8 * i) = make_float2(o[4 * i + 2 * r], o[4 * i + 2 * r + 1]);
        }
      });
    }
    return;
  }
  // Pieces are stored at their number XOR the row, so that neither writing columns nor reading rows meets bank
  // conflicts.
  constexpr int kBytes = kHeadDim * kElementBytes, kPieces = kBytes / 16, kRowsAtOnce = 32 / kPieces;
  __syncwarp();  // the last tile's rows have been read
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = quad + 8 * r;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      *reinterpret_cast<uint32_t*>(staging + row * kBytes + ((i ^ (row % 8)) * 16) + column * kElementBytes) =
          ptx::pack_pair<Type>(o[4 * i + 2 * r], o[4 * i + 2 * r + 1]);
    }
  }
  __syncwarp();
  char* data = static_cast<char*>(out.data) + kElementBytes * base;
  const int piece = lane % kPieces;
#pragma unroll
  for (int i = 0; i < 16 / kRowsAtOnce; ++i) {
    const int row = i * kRowsAtOnce + lane / kPieces;
    const uint4 content = *reinterpret_cast<const uint4*>(staging + row * kBytes + ((piece ^ (row % 8)) * 16));
    for_each_token(args, header, first + row, [&](int token) {
      *(reinterpret_cast<uint4*>(data + kElementBytes * token * out.token_stride) + piece) = content;
    });
  }
}

/// lse: log2 of each row's sum of exponentials.
__device__ __forceinline__ void write_lse(const AttentionArgs& args, const TileHeader& header, const float (&lse)[2],
                                          int first, int lane) {
  constexpr float kLn2 = 0.693147180559945f;
  float* data = args.row_lse + (static_cast<int64_t>(header.batch) * args.num_heads + header.head) * args.num_queries;
  const int r = lane % 4;
  if (r >= 2) return;
  const float value = (r == 0 ? lse[0] : lse[1]) * kLn2;
  for_each_token(args, header, first + lane / 4 + 8 * r, [&](int token) { data[token] = value; });
}

}  // namespace calibatt::cuda::sm90
