// Division by the root mean square, on the GPU. The derivation is in tensorlite/ops/rmsnorm.py.
//
// The same as layer normalisation without the mean (layernorm.cu says more): a warp owns a row, as rows.cuh says, and the gradient of the
// weight is summed in registers over all rows of a warp, then over the warps of a block.

#include "rows.cuh"

extern "C" __global__ void rmsnorm_forward(const In* __restrict__ x, const float* __restrict__ weight, Out* __restrict__ y,
                                           float* inverse_rms, int rows, int C, float eps) {
    long long row = (long long)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;

    float values[PerLane], squares = 0;
    FOR_GROUPS(k) {
        float numbers[Wide] = {};
        if (column_of(k) < C) take(x + row * C + column_of(k), numbers);
        FOR_EACH(j) {
            values[k * Wide + j] = numbers[j];
            squares += numbers[j] * numbers[j];
        }
    }
    float scale = 1 / sqrtf(warp_sum(squares) / C + eps);

    FOR_GROUPS(k) {
        int c = column_of(k);
        if (c >= C) continue;
        float w[Wide], numbers[Wide];
        take_or(1, weight, c, w);
        FOR_EACH(j) numbers[j] = values[k * Wide + j] * scale * w[j];
        put(y + row * C + c, numbers);
    }
    if (threadIdx.x % WARP == 0) inverse_rms[row] = scale;
}

// dx = (g - x̂ mean(g ∘ x̂)) / rms with g = dy ∘ weight and x̂ = x / rms;   partial_dweight: (blocks, C).
// accumulated, which may be null, is the gradient of x from the residual connection: dx is the sum of both. rounded, which may be null,
// is dx in the dtype of dy.
extern "C" __global__ void rmsnorm_backward(const Out* __restrict__ dy, const In* __restrict__ x, const float* __restrict__ weight,
                                            const float* inverse_rms, const In* __restrict__ accumulated, In* __restrict__ dx,
                                            Out* __restrict__ rounded, float* partial_dweight, int rows, int C) {
    __shared__ float sums[PerLane * WARP];
    int warp = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, warps = gridDim.x * (blockDim.x / WARP);

    float dweight[PerLane];
    FOR_MINE(i) dweight[i] = 0;

    for (long long row = warp; row < rows; row += warps) {
        const Out* d = dy + row * C;
        const In* xs = x + row * C;
        float stream[PerLane / Wide][Wide] = {};  // loaded before it is needed, so that the memory works during the sums
        if (accumulated) FOR_GROUPS(k) if (column_of(k) < C) take(accumulated + row * C + column_of(k), stream[k]);

        float scale = inverse_rms[row], sum_g_hat = 0;
        FOR_GROUPS(k) {
            int c = column_of(k);
            if (c >= C) continue;
            float dys[Wide], x_hat[Wide], w[Wide];
            take(d + c, dys);
            take(xs + c, x_hat);
            take_or(1, weight, c, w);
            FOR_EACH(j) {
                x_hat[j] *= scale;
                sum_g_hat += dys[j] * w[j] * x_hat[j];
                dweight[k * Wide + j] += dys[j] * x_hat[j];
            }
        }
        float mean_g_hat = warp_sum(sum_g_hat) / C;

        FOR_GROUPS(k) {  // read x and dy again, from the cache: there are too few registers to keep them
            int c = column_of(k);
            if (c >= C) continue;
            float dys[Wide], x_hat[Wide], w[Wide];
            take(d + c, dys);
            take(xs + c, x_hat);
            take_or(1, weight, c, w);
            FOR_EACH(j) stream[k][j] += (dys[j] * w[j] - x_hat[j] * scale * mean_g_hat) * scale;
            put(dx + row * C + c, stream[k]);
            if (rounded) put(rounded + row * C + c, stream[k]);
        }
    }
    for (int turn = 0, turns = blockDim.x / WARP; turn < turns; turn++) {
        if (turn == warp % turns)
            FOR_MINE(i) {
                int c = column_of(i / Wide) + i % Wide;
                sums[c] = turn ? sums[c] + dweight[i] : dweight[i];
            }
        __syncthreads();
    }
    for (int c = threadIdx.x; c < C; c += blockDim.x) partial_dweight[(long long)blockIdx.x * C + c] = sums[c];
}
