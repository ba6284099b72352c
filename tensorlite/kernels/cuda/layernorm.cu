// Layer normalisation on the GPU. The mathematics is told in tensorlite/ops/layernorm.py.
//
// A warp owns a row: lane i holds the numbers i, i + 32, i + 64, … of it in registers, PerLane of them (a constant, so that the loops
// are unrolled and the array really is in registers). Every sum over the row is a sum in each lane and five shuffles; no shared memory,
// no barrier, and the row is read from memory once. The warps of a block have nothing to do with each other.
//
// In backward a warp takes many rows, one after the other. dx needs two sums over each row, as above. dweight and dbias need sums
// down the columns: a lane sees the same columns in every row, so it adds them up in registers. At the end the warps of a block add theirs
// together in shared memory, one after the other, and the block writes one row of partial sums, for both parameters side by side; sum_rows
// (columns.cu) adds those in a fixed order: no atomics, the same bits every time.
//
// In and Out are two types: under half precision x is the float32 residual stream, and y what the next product reads.

#include "common.cuh"

#define FOR_MINE(i) _Pragma("unroll") for (int i = 0; i < PerLane; i++)

extern "C" __global__ void layernorm_forward(const In* x, const float* weight, const float* bias, Out* y, float* mean, float* inverse_std,
                                             int rows, int C, float eps) {
    int lane = threadIdx.x % WARP;
    long long row = (long long)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    x += row * C;
    y += row * C;

    float values[PerLane], sum = 0;
    FOR_MINE(i) {
        int c = i * WARP + lane;
        values[i] = c < C ? load(x[c]) : 0.0f;
        sum += values[i];
    }
    float mu = warp_sum(sum) / C;

    // Two passes, as in the book: E[x²] - E[x]² would subtract two large, nearly equal numbers. The first mean is rounded to a
    // number as large as itself; what it leaves over is taken away as well.
    float rest = 0, squares = 0;
    FOR_MINE(i) {
        values[i] = i * WARP + lane < C ? values[i] - mu : 0.0f;
        rest += values[i];
    }
    rest = warp_sum(rest) / C;
    FOR_MINE(i) {
        values[i] = i * WARP + lane < C ? values[i] - rest : 0.0f;
        squares += values[i] * values[i];
    }
    float scale = 1 / sqrtf(warp_sum(squares) / C + eps);

    FOR_MINE(i) {
        int c = i * WARP + lane;
        if (c < C) store(y[c], values[i] * scale * (weight ? weight[c] : 1.0f) + (bias ? bias[c] : 0.0f));
    }
    if (lane == 0) {
        mean[2 * row] = mu;
        mean[2 * row + 1] = rest;
        inverse_std[row] = scale;
    }
}

// dx = (1/σ) (g - mean(g) - x̂ mean(g ∘ x̂)) with g = dy ∘ weight;   partial: (blocks, 2, C), of dweight and dbias.
// so_far, which may be null, is what has arrived for x along the residual stream: dx is the sum of both.
extern "C" __global__ void layernorm_backward(const Out* __restrict__ dy, const In* __restrict__ x, const float* __restrict__ weight,
                                              const float* mean, const float* inverse_std, const In* __restrict__ so_far,
                                              In* __restrict__ dx, float* partial, int rows, int C) {
    __shared__ float sums[2][PerLane * WARP];
    int lane = threadIdx.x % WARP;
    int warp = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, warps = gridDim.x * (blockDim.x / WARP);

    float dweight[PerLane], dbias[PerLane];
    FOR_MINE(i) dweight[i] = dbias[i] = 0;

    for (long long row = warp; row < rows; row += warps) {
        const Out* d = dy + row * C;
        const In* xs = x + row * C;
        float mu = mean[2 * row], rest = mean[2 * row + 1], scale = inverse_std[row];

        float stream[PerLane];  // asked for before it is needed: it is on its way while the sums are made
        FOR_MINE(i) stream[i] = so_far && i * WARP + lane < C ? load(so_far[row * C + i * WARP + lane]) : 0.0f;

        float sum_g = 0, sum_g_hat = 0;
        FOR_MINE(i) {
            int c = i * WARP + lane;
            if (c >= C) continue;
            float dyc = load(d[c]), x_hat = (load(xs[c]) - mu - rest) * scale, g = dyc * (weight ? weight[c] : 1.0f);
            sum_g += g;
            sum_g_hat += g * x_hat;
            dweight[i] += dyc * x_hat;
            dbias[i] += dyc;
        }
        float mean_g = warp_sum(sum_g) / C, mean_g_hat = warp_sum(sum_g_hat) / C;

        FOR_MINE(i) {  // x and dy once more, out of the cache: registers are dearer
            int c = i * WARP + lane;
            if (c >= C) continue;
            float x_hat = (load(xs[c]) - mu - rest) * scale, g = load(d[c]) * (weight ? weight[c] : 1.0f);
            float own = (g - mean_g - x_hat * mean_g_hat) * scale;
            store(dx[row * C + c], stream[i] + own);
        }
    }
    for (int turn = 0, turns = blockDim.x / WARP; turn < turns; turn++) {
        if (turn == warp % turns)
            FOR_MINE(i) {
                int c = i * WARP + lane;
                sums[0][c] = turn ? sums[0][c] + dweight[i] : dweight[i];
                sums[1][c] = turn ? sums[1][c] + dbias[i] : dbias[i];
            }
        __syncthreads();
    }
    partial += 2ll * blockIdx.x * C;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        partial[c] = sums[0][c];
        partial[C + c] = sums[1][c];
    }
}
