// Softmax along the last axis on the GPU. The derivation is in tensorlite/ops/softmax.py.
//
// A block owns a row: its threads loop over the C numbers, first for the maximum, then for the sum of exponentials, then to write. The
// row is read from memory once, and after that from the cache.

#include "common.cuh"

extern "C" __global__ void softmax_forward(const Real* x, Real* y, int C) {
    __shared__ float scratch[WARP];
    x += (long long)blockIdx.x * C;
    y += (long long)blockIdx.x * C;

    float most = -infinity();
    for (int c = threadIdx.x; c < C; c += blockDim.x) most = fmaxf(most, load(x[c]));
    most = block_max(most, scratch);

    float sum = 0;
    for (int c = threadIdx.x; c < C; c += blockDim.x) sum += expf(load(x[c]) - most);
    sum = block_sum(sum, scratch);

    for (int c = threadIdx.x; c < C; c += blockDim.x) store(y[c], expf(load(x[c]) - most) / sum);
}

// dx = y (dy - Σ dy y)
extern "C" __global__ void softmax_backward(const Real* dy, const Real* y, Real* dx, int C) {
    __shared__ float scratch[WARP];
    dy += (long long)blockIdx.x * C;
    y += (long long)blockIdx.x * C;
    dx += (long long)blockIdx.x * C;

    float mean = 0;  // the mean of dy, weighted with the probabilities
    for (int c = threadIdx.x; c < C; c += blockDim.x) mean += load(dy[c]) * load(y[c]);
    mean = block_sum(mean, scratch);

    for (int c = threadIdx.x; c < C; c += blockDim.x) store(dx[c], load(y[c]) * (load(dy[c]) - mean));
}
