#pragma once

#include <stdint.h>

/// The CUDA attention kernels behind a C interface, for bench/cuda/attention.py (ctypes; pointers and stream from
/// torch). Functions that can fail return a negative number or null and leave a message for calibatt_error(). Not an
/// API for anything but the benchmark.
extern "C" {

/// [batch, tokens, heads, head_dim] in device memory; strides in elements; head_dim is contiguous.
typedef struct {
  void* data;
  int64_t batch_stride, token_stride, head_stride;
} CalibattHeads;

typedef struct {
  CalibattHeads q, k, v, out;
  int32_t is_fp16, out_f32;  ///< else bf16, and out like q
  int32_t batch, num_heads, head_dim, num_queries, num_keys, block_q, block_k;
  float scale;
  float* block_energy;   ///< or null; see AttentionArgs
  const void* schedule;  ///< of calibatt_make_schedule, or null: dense
} CalibattCall;

/// Message of the calling thread's last failure.
const char* calibatt_error(void);

/// Schedule in device memory. kept: host [num_heads, query blocks, key blocks] bytes, or null: every key. A head whose
/// blocks are all kept is scheduled as any other. anchor_tokens, source_of: the anchors of all heads (AnchorRows), or
/// null; query blocks then are those of the anchors.
void* calibatt_make_schedule(const uint8_t* kept, int32_t num_heads, int32_t num_queries, int32_t num_keys,
                             int32_t block_q, int32_t block_k, int32_t summarize, const int32_t* anchor_tokens,
                             int32_t num_anchors, const int32_t* source_of);
void calibatt_free_schedule(void* schedule);
int64_t calibatt_schedule_bytes(const void* schedule);

/// Name of the kernel that takes the call, of all or of the one named; null when it refuses.
const char* calibatt_choose(const CalibattCall* call, const char* kernel);
int64_t calibatt_workspace_bytes(const CalibattCall* call, const char* kernel);
/// Enqueues; 0 or negative. kernel: a name, or "" for the first that takes the call.
int32_t calibatt_launch(const CalibattCall* call, void* workspace, int64_t workspace_bytes, void* stream,
                        const char* kernel);
}
