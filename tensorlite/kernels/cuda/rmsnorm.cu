// Division by the root mean square, on the GPU. The derivation is in tensorlite/ops/rmsnorm.py.
//
// The same as layer normalisation without the mean (layernorm.cu says more): a warp owns a row, lane i holds its numbers i, i + 32, …,
// and the gradient of the weight is summed in registers over all rows of a warp, then over the warps of a block.

#include "common.cuh"

#define FOR_MINE(i) _Pragma("unroll") for (int i = 0; i < PerLane; i++)

extern "C" __global__ void rmsnorm_forward(const In* x, const float* weight, Out* y, float* inverse_rms, int rows, int C, float eps) {
    int lane = threadIdx.x % WARP;
    long long row = (long long)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;

    float values[PerLane], squares = 0;
    FOR_MINE(i) {
        int c = i * WARP + lane;
        values[i] = c < C ? load(x[row * C + c]) : 0.0f;
        squares += values[i] * values[i];
    }
    float scale = 1 / sqrtf(warp_sum(squares) / C + eps);

    FOR_MINE(i) {
        int c = i * WARP + lane;
        if (c < C) store(y[row * C + c], values[i] * scale * (weight ? weight[c] : 1.0f));
    }
    if (lane == 0) inverse_rms[row] = scale;
}

// dx = (g - x̂ mean(g ∘ x̂)) / rms with g = dy ∘ weight and x̂ = x / rms;   partial_dweight: (blocks, C).
// accumulated, which may be null, is the gradient of x from the residual connection: dx is the sum of both. rounded, which may be null,
// is dx in the dtype of dy.
extern "C" __global__ void rmsnorm_backward(const Out* __restrict__ dy, const In* __restrict__ x, const float* __restrict__ weight,
                                            const float* inverse_rms, const In* __restrict__ accumulated, In* __restrict__ dx,
                                            Out* __restrict__ rounded, float* partial_dweight, int rows, int C) {
    __shared__ float sums[PerLane * WARP];
    int lane = threadIdx.x % WARP;
    int warp = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, warps = gridDim.x * (blockDim.x / WARP);

    float dweight[PerLane];
    FOR_MINE(i) dweight[i] = 0;

    for (long long row = warp; row < rows; row += warps) {
        float stream[PerLane];  // loaded before it is needed, so that the load overlaps with the sums
        FOR_MINE(i) stream[i] = accumulated && i * WARP + lane < C ? load(accumulated[row * C + i * WARP + lane]) : 0.0f;

        float scale = inverse_rms[row], sum_g_hat = 0;
        FOR_MINE(i) {
            int c = i * WARP + lane;
            if (c >= C) continue;
            float dyc = load(dy[row * C + c]), x_hat = load(x[row * C + c]) * scale;
            sum_g_hat += dyc * (weight ? weight[c] : 1.0f) * x_hat;
            dweight[i] += dyc * x_hat;
        }
        float mean_g_hat = warp_sum(sum_g_hat) / C;

        FOR_MINE(i) {
            int c = i * WARP + lane;
            if (c >= C) continue;
            float x_hat = load(x[row * C + c]) * scale, g = load(dy[row * C + c]) * (weight ? weight[c] : 1.0f);
            float own = (g - x_hat * mean_g_hat) * scale;
            store(dx[row * C + c], stream[i] + own);
            if (rounded) store(rounded[row * C + c], stream[i] + own);
        }
    }
    for (int turn = 0, turns = blockDim.x / WARP; turn < turns; turn++) {
        if (turn == warp % turns) FOR_MINE(i) sums[i * WARP + lane] = turn ? sums[i * WARP + lane] + dweight[i] : dweight[i];
        __syncthreads();
    }
    for (int c = threadIdx.x; c < C; c += blockDim.x) partial_dweight[(long long)blockIdx.x * C + c] = sums[c];
}
