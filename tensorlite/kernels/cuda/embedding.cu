// The gradient of an embedding table on the GPU. The derivation is in tensorlite/ops/embedding.py.
//
// A token that occurs a hundred times receives a hundred gradients. The obvious way, one thread for each number of dy and an atomicAdd into
// the table, loses none of them, but adds them in a different order each time, so the bits differ. Here a block
// owns a *row of the table* (blockIdx.x) and searches its token among the ids of one part of the batch (blockIdx.y). It lists the
// positions of the token in order, 256 ids at a time; then each thread adds up its columns of dy at these positions. For a small
// vocabulary the batch has many parts, so that the work for a frequent letter is shared by several blocks; sum_rows adds their sums.

#include "common.cuh"

// present[v] = 1 for every token that occurs. Most tokens of a large vocabulary do not occur and need no search.
extern "C" __global__ void mark_present(const long long* ids, int* present, int n, int V) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        if (ids[i] >= 0 && ids[i] < V) present[ids[i]] = 1;  // several threads may write; they all write 1
}

// dweight: (parts of the batch, V, C). A row without a gradient (skipped, padding_idx) is written as 0. With `add` dweight (V, C) holds an
// earlier gradient, and this one is added to it; rows without a gradient are then neither read nor written.
extern "C" __global__ void embedding_backward(const long long* ids, const int* present, const Real* dy, float* dweight, int n, int stretch,
                                              int V, int C, long long skipped, int add) {
    __shared__ int found[256];           // the positions of the token among the 256 that are searched
    __shared__ int before[256 / WARP];   // how many each warp has found
    DYNAMIC_SHARED(float, sums);         // (C), each used by one thread
    int v = blockIdx.x, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    float* row = dweight + ((long long)blockIdx.y * V + v) * C;
    bool occurs = present[v] && v != skipped;
    if (add && !occurs) return;

    for (int c = threadIdx.x; c < C; c += blockDim.x) sums[c] = 0;
    if (occurs) {
        int first = blockIdx.y * stretch, last = min(first + stretch, n);
        for (int base = first; base < last; base += blockDim.x) {
            int position = base + threadIdx.x;
            bool here = position < last && ids[position] == v;
            unsigned votes = __ballot_sync(ALL_LANES, here);
            if (lane == 0) before[warp] = __popc(votes);
            __syncthreads();
            int place = __popc(votes & ((1u << lane) - 1)), count = 0;  // how many of those found come before mine
            for (int w = 0; w < warps; w++) {
                if (w < warp) place += before[w];
                count += before[w];
            }
            if (here) found[place] = position;
            __syncthreads();
            for (int c = threadIdx.x; c < C; c += blockDim.x) {
                float sum = sums[c];
                for (int i = 0; i < count; i++) sum += load(dy[(long long)found[i] * C + c]);
                sums[c] = sum;
            }
            __syncthreads();  // before `found` and `before` are written again
        }
    }
    for (int c = threadIdx.x; c < C; c += blockDim.x) row[c] = add ? row[c] + sums[c] : sums[c];
}
