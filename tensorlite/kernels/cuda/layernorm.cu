// Layer normalisation on the GPU. The derivation is in tensorlite/ops/layernorm.py.
//
// A warp owns a row, as rows.cuh says. Every sum over the row is a sum in each lane and five shuffles: no shared memory, no barrier, and the
// row is read from memory once. The warps of a block are independent.
//
// In backward a warp processes many rows, one after the other. dx needs two sums over each row, as above. dweight and dbias need sums
// over the rows: a lane has the same columns in every row, so it adds them up in registers. At the end the warps of a block add their
// sums in shared memory, one after the other, and the block writes one row of partial sums, for both parameters side by side; sum_rows
// (columns.cu) adds these in a fixed order: no atomics, the same bits every time.
//
// In and Out are two types: under half precision x is the float32 residual stream, and y has the dtype that the next product reads.

#include "rows.cuh"

extern "C" __global__ void layernorm_forward(const In* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias,
                                             Out* __restrict__ y, float* mean, float* inverse_std, int rows, int C, float eps) {
    int lane = threadIdx.x % WARP;
    long long row = (long long)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    x += row * C;
    y += row * C;

    float values[PerLane], sum = 0;
    FOR_GROUPS(k) {
        float numbers[Wide] = {};
        if (column_of(k) < C) take(x + column_of(k), numbers);
        FOR_EACH(j) {
            values[k * Wide + j] = numbers[j];
            sum += numbers[j];
        }
    }
    float mu = warp_sum(sum) / C;

    // Two passes, as in the book: E[x²] - E[x]² would subtract two large, nearly equal numbers. The first mean is rounded, so the
    // mean of the remainder is subtracted as well.
    float rest = 0, squares = 0;
    FOR_MINE(i) {
        values[i] = column_of(i / Wide) < C ? values[i] - mu : 0.0f;
        rest += values[i];
    }
    rest = warp_sum(rest) / C;
    FOR_MINE(i) {
        values[i] = column_of(i / Wide) < C ? values[i] - rest : 0.0f;
        squares += values[i] * values[i];
    }
    float scale = 1 / sqrtf(warp_sum(squares) / C + eps);

    FOR_GROUPS(k) {
        int c = column_of(k);
        if (c >= C) continue;
        float w[Wide], b[Wide], numbers[Wide];
        take_or(1, weight, c, w);
        take_or(0, bias, c, b);
        FOR_EACH(j) numbers[j] = values[k * Wide + j] * scale * w[j] + b[j];
        put(y + c, numbers);
    }
    if (lane == 0) {
        mean[2 * row] = mu;
        mean[2 * row + 1] = rest;
        inverse_std[row] = scale;
    }
}

// dx = (1/σ) (g - mean(g) - x̂ mean(g ∘ x̂)) with g = dy ∘ weight;   partial: (blocks, 2, C), of dweight and dbias.
// accumulated, which may be null, is the gradient of x from the residual connection: dx is the sum of both. rounded, which may be null,
// is dx in the dtype of dy.
extern "C" __global__ void layernorm_backward(const Out* __restrict__ dy, const In* __restrict__ x, const float* __restrict__ weight,
                                              const float* mean, const float* inverse_std, const In* __restrict__ accumulated,
                                              In* __restrict__ dx, Out* __restrict__ rounded, float* partial, int rows, int C) {
    __shared__ float sums[2][PerLane * WARP];
    int warp = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, warps = gridDim.x * (blockDim.x / WARP);

    constexpr bool EARLY = PerLane <= 32;  // the widest rows leave no registers for it
    float dweight[PerLane], dbias[PerLane];
    FOR_MINE(i) dweight[i] = dbias[i] = 0;

    for (long long row = warp; row < rows; row += warps) {
        const Out* d = dy + row * C;
        const In* xs = x + row * C;
        float mu = mean[2 * row], rest = mean[2 * row + 1], scale = inverse_std[row];

        float stream[PerLane / Wide][Wide] = {};  // loaded before it is needed, so that the memory works during the sums
        if (EARLY && accumulated) FOR_GROUPS(k) if (column_of(k) < C) take(accumulated + row * C + column_of(k), stream[k]);

        float sum_g = 0, sum_g_hat = 0;
        FOR_GROUPS(k) {
            int c = column_of(k);
            if (c >= C) continue;
            float dys[Wide], x_hat[Wide], w[Wide];
            take(d + c, dys);
            take(xs + c, x_hat);
            take_or(1, weight, c, w);
            FOR_EACH(j) {
                x_hat[j] = (x_hat[j] - mu - rest) * scale;
                sum_g += dys[j] * w[j];
                sum_g_hat += dys[j] * w[j] * x_hat[j];
                dweight[k * Wide + j] += dys[j] * x_hat[j];
                dbias[k * Wide + j] += dys[j];
            }
        }
        float mean_g = warp_sum(sum_g) / C, mean_g_hat = warp_sum(sum_g_hat) / C;

        FOR_GROUPS(k) {  // read x and dy again, from the cache: there are too few registers to keep them
            int c = column_of(k);
            if (c >= C) continue;
            float dys[Wide], x_hat[Wide], w[Wide];
            take(d + c, dys);
            take(xs + c, x_hat);
            take_or(1, weight, c, w);
            if (!EARLY && accumulated) take(accumulated + row * C + c, stream[k]);
            FOR_EACH(j) {
                x_hat[j] = (x_hat[j] - mu - rest) * scale;
                stream[k][j] += (dys[j] * w[j] - mean_g - x_hat[j] * mean_g_hat) * scale;
            }
            put(dx + row * C + c, stream[k]);
            if (rounded) put(rounded + row * C + c, stream[k]);
        }
    }
    for (int turn = 0, turns = blockDim.x / WARP; turn < turns; turn++) {
        if (turn == warp % turns)
            FOR_MINE(i) {
                int c = column_of(i / Wide) + i % Wide;
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
