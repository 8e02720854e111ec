#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "backend/transformer_ops.h"

namespace calibatt {

/// Channels of a head that each axis rotates: {frames, rows, columns}. Rows and columns take 2·⌊head_dim/6⌋ each,
/// frames the rest.
std::array<int, 3> video_rope_split(int head_dim);

/// Wan's rotary embedding of a grid of tokens (frames × height × width): axis by axis, angle of pair i of an axis with
/// d channels = index · 10000^(−2i/d), computed in double. Row p belongs to the token raster_of_position[p]. In host
/// memory.
RopeTable make_video_rope(std::array<int, 3> grid, int head_dim, std::span<const int32_t> raster_of_position);

/// Positions of the tokens for Mochi's rotary embedding (RopeFactors), whose frequencies are learned: [tokens, 3] F32
/// in host memory; frame, row, column. A frame's position is its index; rows and columns are at the centres of bins
/// that cut a square of 192² in as many pieces as the frame has tokens, whatever its shape. Row p belongs to the token
/// raster_of_position[p].
Tensor learned_rope_positions(std::array<int, 3> grid, std::span<const int32_t> raster_of_position);

}  // namespace calibatt
