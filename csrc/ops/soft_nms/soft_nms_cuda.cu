// soft_nms on the GPU in one kernel (contract: ops/soft_nms/soft_nms.h; drawing and costs: docs/kernels/soft_nms.md).
#include "ops/soft_nms/soft_nms_cuda.h"

#include "cuda/block.h"
#include "cuda/layout.h"
#include "cuda/load.h"

namespace refinedet::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kNear = 2;  // boxes of a thread in registers; the others are in the workspace

struct ScoreAndRow {
  float score;
  int row;
};

// A box that is not picked yet. No row: there is none.
struct Candidate {
  Corners box;
  float score;
  int row = -1;
};

// The best of some candidates; of none, kNoKey.
struct Best {
  Corners box;
  uint64_t key = kNoKey;  // descending_key(score, row)

  __device__ void meet(const Candidate& other) {
    const uint64_t other_key = descending_key(other.score, static_cast<uint32_t>(other.row));
    if (other_key < key) *this = {other.box, other_key};
  }
};

// The rows of an image, by label.
template <class T>
struct Rows {
  const T* boxes;
  const float* scores;
  const int64_t *labels, *order;
  int64_t count;
  float* decayed;

  __device__ int64_t label(int64_t place) const { return labels[order[place]]; }

  __device__ bool starts_class(int64_t place) const {
    if (place >= count) return false;
    return place == 0 || label(place) != label(place - 1);
  }

  // No candidate, and no score, where the row is out of the running.
  __device__ Candidate candidate(int64_t row, const SoftNmsOptions& options) const {
    const Candidate found{load_corners(boxes, row), scores[row], static_cast<int>(row)};
    const bool counts = options.official ? found.score == found.score : found.score >= options.score_threshold;
    if (labels[row] > 0 && counts && finite(found.box)) return found;
    decayed[row] = dropped_score();
    return {};
  }
};

// Candidates in the workspace: those of a thread are kThreads apart.
struct Store {
  float* corners;
  ScoreAndRow* rows;

  __device__ Candidate load(int64_t i) const {
    const ScoreAndRow row = rows[i];
    return {load_corners(corners, i), row.score, row.row};
  }

  __device__ void put(int64_t i, const Candidate& candidate) const {
    store_corners(corners, i, candidate.box);
    rows[i] = {candidate.score, candidate.row};
  }
};

// A thread's share of a class: every kThreads-th row of it. No other thread looks at it.
struct Share {
  Candidate near[kNear];
  Store far;
  int num_far = 0;
  Best best;  // of all

  // Of the class that begins at a place of the order.
  template <class T>
  __device__ void take(const Rows<T>& rows, const SoftNmsOptions& options, int64_t begin) {
    const int64_t label = rows.label(begin);
    int64_t place = begin + threadIdx.x;
    const auto next = [&] {
      const bool found = place < rows.count && rows.label(place) == label;
      const Candidate candidate = found ? rows.candidate(rows.order[place], options) : Candidate{};
      place = found ? place + kThreads : rows.count;
      if (candidate.row >= 0) best.meet(candidate);
      return candidate;
    };
#pragma unroll
    for (int k = 0; k < kNear; ++k) near[k] = next();
    while (place < rows.count) {
      const Candidate candidate = next();
      if (candidate.row >= 0) far.put(int64_t{kThreads} * num_far++, candidate);
    }
  }

  // The candidates meet the box that is picked. What is picked or dropped is written, and no candidate any more.
  __device__ void meet(const Best& picked, const SoftNmsOptions& options, float* decayed) {
    const float pixel = pixel_of(options), picked_area = area(picked.box, pixel);
    best.key = kNoKey;
    const auto meet = [&](Candidate* candidate) {
      const float inter = intersection(picked.box, candidate->box, pixel);
      const float iou = any_iou(inter, picked_area, area(candidate->box, pixel));
      const bool is_picked = static_cast<uint32_t>(candidate->row) == key_index(picked.key);
      if (!is_picked)
        candidate->score *=
            options.gaussian ? gaussian_weight(iou, options.sigma) : linear_weight(iou, options.iou_threshold);
      if (!is_picked && (iou == 0.0f || candidate->score >= options.score_threshold)) return best.meet(*candidate);
      decayed[candidate->row] = is_picked ? candidate->score : dropped_score();
      candidate->row = -1;
    };
#pragma unroll
    for (int k = 0; k < kNear; ++k) {
      if (near[k].row >= 0) meet(&near[k]);
    }
    int stay = 0;
    for (int k = 0; k < num_far; ++k) {
      Candidate candidate = far.load(int64_t{kThreads} * k);
      meet(&candidate);
      if (candidate.row >= 0) far.put(int64_t{kThreads} * stay++, candidate);
    }
    num_far = stay;
  }
};

// The best of the block. `of_warps`: one of each warp, in shared memory.
__device__ inline Best best_of_block(const Best& own, Best* of_warps) {
  uint64_t least = own.key;
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2)
    least = min(least, static_cast<uint64_t>(__shfl_xor_sync(kFullWarp, least, distance)));
  const unsigned winners = __ballot_sync(kFullWarp, own.key == least);  // several when none has a box
  if (lane_index() == __ffs(static_cast<int>(winners)) - 1) of_warps[warp_index()] = own;
  __syncthreads();
  int winner = 0;
  least = of_warps[0].key;
  for (int w = 1; w < kWarps; ++w) {
    const uint64_t key = of_warps[w].key;
    if (key < least) winner = w;
    least = min(least, key);
  }
  return of_warps[winner];
}

// One block: the classes of an image that begin at 32 places of the order, one after the other; mostly there is one at
// most.
template <class T>
__global__ void __launch_bounds__(kThreads)
    decay_classes_kernel(Rows<T> rows, SoftNmsOptions options, Store workspace) {
  REFINEDET_SHARED(Best, of_warps, 2 * kWarps);  // of this pick and the next: one barrier each
  const int64_t first_row = int64_t{blockIdx.y} * rows.count, first = int64_t{blockIdx.x} * kWarpSize;
  rows.boxes += 4 * first_row;
  rows.scores += first_row;
  rows.labels += first_row;
  rows.order += first_row;
  rows.decayed += first_row;
  workspace.corners += 4 * first_row;
  workspace.rows += first_row;
  int turn = 0;
  unsigned begins = __ballot_sync(kFullWarp, rows.starts_class(first + lane_index()));
  for (; begins != 0; begins &= begins - 1) {
    const int64_t begin = first + __ffs(static_cast<int>(begins)) - 1, own = begin + threadIdx.x;
    Share share{};
    share.far = {workspace.corners + 4 * own, workspace.rows + own};
    share.take(rows, options, begin);
    for (;;) {
      const Best picked = best_of_block(share.best, of_warps + turn);
      turn = kWarps - turn;
      if (picked.key == kNoKey) break;
      share.meet(picked, options, rows.decayed);
    }
  }
}

#define INSTANTIATE(T) template __global__ void decay_classes_kernel(Rows<T>, SoftNmsOptions, Store)
INSTANTIATE(float);
INSTANTIATE(Half);
INSTANTIATE(BFloat16);
#undef INSTANTIATE

}  // namespace

#if !defined(__CUDACC_RTC__)

namespace {

// Lays the workspace out from `memory` on; returns the bytes it takes.
int64_t lay_out(const SoftNmsInputs& in, char* memory, Store* work) {
  Layout layout(memory);
  const int64_t count = in.num_boxes > kNear * kThreads ? in.batch * in.num_boxes : 0;
  work->corners = layout.part<float>(4 * count);
  work->rows = layout.part<ScoreAndRow>(count);
  return layout.bytes();
}

}  // namespace

std::string soft_nms_limits(const SoftNmsInputs& in, const SoftNmsOptions&) {
  return exceeded(
      {{"the batch size", in.batch, kMaxBatch}, {"the number of boxes", in.num_boxes, SoftNmsLimits::kMaxBoxesCuda}},
      "CUDA");
}

int64_t soft_nms_workspace_bytes(const SoftNmsInputs& in, const SoftNmsOptions&) {
  Store work;
  return lay_out(in, nullptr, &work);
}

void soft_nms(const SoftNmsInputs& in, const SoftNmsOptions& options, const SoftNmsOutputs& out, void* workspace,
              Stream stream) {
  if (in.batch == 0 || in.num_boxes == 0) return;
  Store work;
  lay_out(in, static_cast<char*>(workspace), &work);
  const dim3 grid(static_cast<unsigned>((in.num_boxes + kWarpSize - 1) / kWarpSize), static_cast<unsigned>(in.batch));
  dispatch(in.type, [&](auto element) {
    using T = decltype(element);
    const Rows<T> rows{static_cast<const T*>(in.boxes), in.scores, in.labels, in.order, in.num_boxes, out.decayed};
    launch("decay_classes_kernel", decay_classes_kernel<T>, grid, dim3(kThreads), 0, stream, rows, options, work);
  });
}

#endif

}  // namespace refinedet::cuda
