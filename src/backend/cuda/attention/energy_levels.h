#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

namespace calibatt::cuda {

/// Key blocks per row that encode_energy_levels takes; more do not fit into shared memory.
inline constexpr int kMostEncodedColumns = 8192;

/// CalibrationOps::encode_energy_levels on device memory: energy [num_rows, num_columns] → codes [num_rows,
/// ⌈num_columns / 2⌉], bit for bit what the definition in calibrate/level_code.h says. ladder: 15 rising levels in
/// 1/65536, host memory. A row that is no distribution gets codes of 15 only. 1 ≤ num_columns ≤ kMostEncodedColumns.
/// Enqueues one kernel.
void encode_energy_levels(const float* energy, int64_t num_rows, int num_columns, std::span<const uint32_t> ladder,
                          uint8_t* codes, cudaStream_t stream);

/// CalibrationOps::take_video_energy on device memory: energy [num_rows, energy_columns] → video [num_rows,
/// num_columns]; tail [num_rows, tail_columns], or null. Enqueues one kernel.
void take_video_energy(const float* energy, int64_t energy_columns, const float* tail, int64_t tail_columns,
                       int64_t num_rows, int64_t num_columns, float* video, cudaStream_t stream);

}  // namespace calibatt::cuda
