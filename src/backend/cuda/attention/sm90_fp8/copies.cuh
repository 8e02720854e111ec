#pragma once

#include "backend/cuda/attention/sm90/producer.cuh"
#include "backend/cuda/attention/sm90_fp8/layout.cuh"

/// What the producer of sm90 copies here: runs of bytes that lie in global memory as they will in shared memory.
namespace calibatt::cuda::sm90_fp8 {

template <int kHeadDim>
struct ChunkCopies {
  using Shared = SharedMemory<kHeadDim>;
  static constexpr int kStages = sm90_fp8::kStages;

  const KernelParams& params;
  Shared& shared;

  __device__ void load_queries(uint32_t slot, const TileHeader& header) const {
    uint64_t* barrier = &shared.queries_full[slot];
    if (gathers_queries(header)) {
      ptx::mbarrier_arrive(barrier);
      return;
    }
    constexpr uint32_t kScaleBytes = kTileRows * sizeof(float);
    const int64_t row = head(header.batch, header.head) * params.inputs.query_rows + header.first_row;
    ptx::mbarrier_arrive_expect(barrier, Shared::kQueryBytes + kScaleBytes);
    ptx::bulk_load(shared.queries[slot], params.inputs.q + row * kHeadDim, Shared::kQueryBytes, barrier);
    ptx::bulk_load(shared.query_scales[slot], params.inputs.q_scale + row, kScaleBytes, barrier);
  }

  __device__ void load_keys(uint32_t stage, const sm90::StepRows& rows) const {
    uint64_t* barrier = &shared.keys_full[stage];
    ptx::mbarrier_arrive_expect(barrier, Shared::kStepBytes + 2 * sizeof(float4));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t chunk = chunk_of(rows, half);
      ptx::bulk_load(shared.keys[stage] + half * Shared::kChunkBytes, params.inputs.k + chunk * Shared::kChunkBytes,
                     Shared::kChunkBytes, barrier);
      ptx::bulk_load(&shared.key_scales[stage][half], params.inputs.k_scale + chunk, sizeof(float4), barrier);
    }
  }

  __device__ void load_values(uint32_t stage, const sm90::StepRows& rows) const {
    uint64_t* barrier = &shared.values_full[stage];
    ptx::mbarrier_arrive_expect(barrier, Shared::kStepBytes);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      ptx::bulk_load(shared.values[stage] + half * Shared::kChunkBytes,
                     params.inputs.v + chunk_of(rows, half) * Shared::kChunkBytes, Shared::kChunkBytes, barrier);
    }
  }

 private:
  __device__ int64_t head(int batch, int head) const {
    return int64_t{batch} * params.base.args.num_heads + head;
  }
  __device__ int64_t chunk_of(const sm90::StepRows& rows, int half) const {
    return head(rows.batch, rows.head) * params.inputs.num_chunks + (rows.summaries ? params.inputs.key_chunks : 0) +
           rows.first[half] / kChunkKeys;
  }
};

}  // namespace calibatt::cuda::sm90_fp8
