// Kernels that test the harness: first right ones, then one for each kind of bug that it must find.
// tests/simulated/test_harness.py says what each has to do, and finds the lines marked "race" by their comments.
#include <cstdint>

#include "cuda/runtime.h"

namespace sample {

using refinedet::cuda::kFullWarp;
using refinedet::cuda::kWarpSize;

constexpr int kMaxBlock = 256;

// --- Right ------------------------------------------------------------------------------------------------------------

// out[0] = sum of in[0..n), by a tree in each block.
__global__ void sum_kernel(const int* in, int* out, int n) {
  REFINEDET_SHARED(int, partial, kMaxBlock);
  const int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
  partial[t] = i < n ? in[i] : 0;
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (t < half) partial[t] += partial[t + half];
    __syncthreads();
  }
  if (t == 0) atomicAdd(out, partial[0]);
}

// out[i] = in[n - 1 - i], for one block, through dynamic shared memory of exactly n ints.
__global__ void reverse_kernel(const int* in, int* out, int n) {
  REFINEDET_DYNAMIC_SHARED(int, buffer);
  const int t = threadIdx.x;
  if (t < n) buffer[t] = in[t];
  __syncthreads();
  if (t < n) out[t] = buffer[n - 1 - t];
}

// Eight numbers per thread, out[8 t ...]: the shuffles, then ballot, any and all of in[t] > 0.
__global__ void warp_kernel(const int* in, int* out, int n) {
  const int t = threadIdx.x, lane = t % kWarpSize;
  const int value = in[t];
  out += 8 * t;
  out[0] = __shfl_sync(kFullWarp, value, (lane + 1) % kWarpSize);
  out[1] = __shfl_up_sync(kFullWarp, value, 3);
  out[2] = __shfl_down_sync(kFullWarp, value, 3);
  out[3] = __shfl_xor_sync(kFullWarp, value, 5);
  const unsigned long long wide = __shfl_sync(kFullWarp, static_cast<unsigned long long>(value) << 32, n);
  out[4] = static_cast<int>(wide >> 32);
  out[5] = static_cast<int>(__ballot_sync(kFullWarp, value > 0));
  out[6] = __any_sync(kFullWarp, value > 0);
  out[7] = __all_sync(kFullWarp, value > 0);
}

// out[t] = votes of the lanes that the block has, the last warp being short.
__global__ void short_warp_kernel(const int* in, int* out, int) {
  const int t = threadIdx.x;
  out[2 * t] = static_cast<int>(__ballot_sync(kFullWarp, in[t] > 0));
  out[2 * t + 1] = __all_sync(kFullWarp, in[t] > 0);
}

// Two halves of each warp exchange on their own.
__global__ void half_warp_kernel(const int* in, int* out, int) {
  const int t = threadIdx.x;
  if (t % kWarpSize < 16) {
    out[t] = __shfl_xor_sync(0x0000ffffu, in[t], 1);
  } else {
    out[t] = __shfl_xor_sync(0xffff0000u, in[t], 2);
  }
}

// out = sum, maximum, minimum, union of in; then how many threads won an exchange from 0 to 1.
__global__ void atomics_kernel(const int* in, int* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  atomicAdd(&out[0], in[i]);
  atomicMax(&out[1], in[i]);
  atomicMin(&out[2], in[i]);
  atomicOr(&out[3], in[i]);
  if (atomicCAS(&out[4], 0, 1) == 0) atomicAdd(&out[5], 1);
  if (atomicExch(&out[6], 1) == 0) atomicAdd(&out[7], 1);
}

// Votes of a block: out[3 t ...] = count, and, or.
__global__ void votes_kernel(const int* in, int* out, int) {
  const int t = threadIdx.x;
  out[3 * t] = __syncthreads_count(in[t] > 0);
  out[3 * t + 1] = __syncthreads_and(in[t] > 0);
  out[3 * t + 2] = __syncthreads_or(in[t] > 0);
}

// Lanes of a warp exchange through shared memory, round after round.
__global__ void warp_rounds_kernel(const int* in, int* out, int n) {
  REFINEDET_SHARED(int, buffer, kMaxBlock);
  const int t = threadIdx.x;
  int value = in[t];
  for (int round = 0; round < n; ++round) {
    buffer[t] = value;
    __syncwarp();
    value = buffer[t ^ 1] + 1;
    __syncwarp();
  }
  out[t] = value;
}

// What static and dynamic shared memory holds at first.
__global__ void first_bytes_kernel(const int*, int* out, int) {
  REFINEDET_SHARED(int, fixed, 4);
  REFINEDET_DYNAMIC_SHARED(int, dynamic);
  out[0] = fixed[3];
  out[1] = dynamic[3];
}

// out[1 ...] = threads in the order in which they came; out[0] counts them.
__global__ void order_kernel(const int*, int* out, int) {
  const int place = atomicAdd(&out[0], 1);
  out[1 + place] = blockIdx.x * blockDim.x + threadIdx.x;
}

// Index and size of thread, block and grid in three dimensions, 12 numbers per thread.
__global__ void positions_kernel(const int*, int* out, int) {
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  out += 12 * (block * static_cast<int>(blockDim.x * blockDim.y * blockDim.z) + thread);
  const dim3 all[4] = {threadIdx, blockIdx, blockDim, gridDim};
  for (int i = 0; i < 4; ++i) {
    out[3 * i] = all[i].x;
    out[3 * i + 1] = all[i].y;
    out[3 * i + 2] = all[i].z;
  }
}

// n rounds of one kind of switch, for measurements.
__global__ void many_barriers_kernel(const int*, int*, int n) {
  for (int i = 0; i < n; ++i) __syncthreads();
}
__global__ void many_shuffles_kernel(const int*, int* out, int n) {
  int value = threadIdx.x;
  for (int i = 0; i < n; ++i) value = __shfl_xor_sync(kFullWarp, value, 1);
  out[threadIdx.x] = value;
}

// --- Wrong ------------------------------------------------------------------------------------------------------------

__global__ void missing_barrier_kernel(const int* in, int* out, int n) {
  REFINEDET_SHARED(int, buffer, kMaxBlock);
  const int t = threadIdx.x;
  buffer[t] = in[t];           // race: missing_barrier, one side
  out[t] = buffer[n - 1 - t];  // race: missing_barrier, other side
}

// A reader still in round r while a writer begins round r + 1.
__global__ void missing_second_barrier_kernel(const int* in, int* out, int n) {
  REFINEDET_SHARED(int, buffer, kMaxBlock);
  const int t = threadIdx.x;
  int value = in[t];
  for (int round = 0; round < 3; ++round) {
    buffer[t] = value;  // race: missing_second_barrier, one side
    __syncthreads();
    value = buffer[n - 1 - t];  // race: missing_second_barrier, other side
  }
  out[t] = value;
}

__global__ void missing_syncwarp_kernel(const int* in, int* out, int) {
  REFINEDET_SHARED(int, buffer, kMaxBlock);
  const int t = threadIdx.x;
  buffer[t] = in[t];       // race: missing_syncwarp, one side
  out[t] = buffer[t ^ 1];  // race: missing_syncwarp, other side
}

// A shuffle exchanges its value, and orders nothing else.
__global__ void shuffle_is_no_barrier_kernel(const int* in, int* out, int) {
  REFINEDET_SHARED(int, buffer, kMaxBlock);
  const int t = threadIdx.x;
  buffer[t] = in[t];  // race: shuffle_is_no_barrier, one side
  const int partner = __shfl_xor_sync(kFullWarp, t, 1);
  out[t] = buffer[partner];  // race: shuffle_is_no_barrier, other side
}

// __syncwarp orders the lanes of a warp, not the block.
__global__ void syncwarp_is_no_barrier_kernel(const int* in, int* out, int n) {
  REFINEDET_SHARED(int, buffer, kMaxBlock);
  const int t = threadIdx.x;
  buffer[t] = in[t];  // race: syncwarp_is_no_barrier, one side
  __syncwarp();
  out[t] = buffer[n - 1 - t];  // race: syncwarp_is_no_barrier, other side
}

__global__ void plain_counter_kernel(const int*, int* out, int) {
  REFINEDET_SHARED(int, counter, 1);
  if (threadIdx.x == 0) *counter = 0;
  __syncthreads();
  *counter += 1;  // race: plain_counter, both sides
  __syncthreads();
  if (threadIdx.x == 0) out[0] = *counter;
}

__global__ void block_race_kernel(const int*, int* out, int) {
  if (threadIdx.x == 0) out[0] = blockIdx.x;  // race: block_race, both sides
}

// Barriers order the threads of a block, not the blocks.
__global__ void plain_counter_of_blocks_kernel(const int*, int* out, int) {
  __syncthreads();
  if (threadIdx.x == 0) out[0] += 1;
  __syncthreads();
}

__global__ void divergent_barrier_kernel(const int*, int*, int) {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void barrier_after_exit_kernel(const int*, int*, int n) {
  if (static_cast<int>(threadIdx.x) >= n) return;
  __syncthreads();
}

__global__ void barrier_against_collective_kernel(const int*, int*, int) {
  if (threadIdx.x == 5) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}

__global__ void exited_lane_kernel(const int*, int* out, int n) {
  const int t = threadIdx.x;
  if (t >= n) return;
  out[t] = static_cast<int>(__ballot_sync(kFullWarp, 1));
}

__global__ void not_in_own_mask_kernel(const int*, int* out, int) {
  out[threadIdx.x] = static_cast<int>(__ballot_sync(0x0000ffffu, 1));
}

__global__ void different_masks_kernel(const int*, int* out, int) {
  const unsigned mask = threadIdx.x < 16 ? kFullWarp : 0xffff0000u;
  out[threadIdx.x] = static_cast<int>(__ballot_sync(mask, 1));
}

__global__ void different_sites_kernel(const int*, int* out, int) {
  const int t = threadIdx.x;
  if (t < 16) {
    out[t] = __shfl_sync(kFullWarp, t, 0);
  } else {
    out[t] = __shfl_sync(kFullWarp, t, 0);
  }
}

__global__ void outside_mask_kernel(const int*, int* out, int) {
  const int t = threadIdx.x;
  if (t < 16) out[t] = __shfl_down_sync(0x0000ffffu, t, 8);
}

__global__ void shared_overrun_kernel(const int* in, int* out, int n) {
  REFINEDET_SHARED(int, buffer, 16);
  const int t = threadIdx.x;
  if (t <= n) buffer[t] = in[0];
  if (t == 0) out[0] = buffer[0];
}

__global__ void dynamic_overrun_kernel(const int* in, int* out, int n) {
  REFINEDET_DYNAMIC_SHARED(int, buffer);
  const int t = threadIdx.x;
  if (t <= n) buffer[t] = in[0];
  if (t == 0) out[0] = buffer[0];
}

__global__ void write_overrun_kernel(const int* in, int* out, int n) {
  const int t = threadIdx.x;
  if (t <= n) out[t] = in[0];
}

__global__ void read_overrun_kernel(const int* in, int* out, int n) {
  if (threadIdx.x == 0) out[0] = in[n];
}

__global__ void misaligned_vector_kernel(const int* in, int* out, int) {
  *reinterpret_cast<int4*>(out) = *reinterpret_cast<const int4*>(in);
}

__global__ void signed_overflow_kernel(const int* in, int* out, int n) { out[0] = in[0] + n; }

__global__ void endless_kernel(const int*, int* out, int) {
  while (atomicAdd(&out[0], 0) != 1) {
  }
}

__global__ void much_shared_kernel(const int*, int* out, int) {
  REFINEDET_SHARED(int, buffer, 12 << 10);
  REFINEDET_DYNAMIC_SHARED(int, dynamic);
  out[0] = buffer[0] + dynamic[0];
}

}  // namespace sample
