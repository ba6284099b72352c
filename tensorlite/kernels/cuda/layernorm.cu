// Layer normalisation on the GPU. The mathematics is told in tensorlite/ops/layernorm.py.
//
// Forward: a block owns a row. Its threads stride over the C numbers, each with its own partial sum; two block sums give the
// mean and the variance, a third pass writes y. A row is read from memory once: the second and third time it is in the cache.
//
// Backward: a block owns `rows_a_block` rows, one after the other. dx needs two sums over the row. dweight and dbias need
// sums down the columns: thread t owns the columns t, t + blockDim, … in all of the block's rows, and keeps its running sums in
// shared memory, where nobody else touches them. At the end each block writes one row of partial sums, and `sum_rows` adds
// those up, in a fixed order: no atomics, the same bits every time.

#include "common.cuh"

// In and Out are two types: under half precision x is the float32 residual stream, and y what the next product reads.
extern "C" __global__ void layernorm_forward(const In* x, const float* weight, const float* bias, Out* y, float* mean, float* inverse_std,
                                             int C, float eps) {
    __shared__ float scratch[WARP];
    long long row = blockIdx.x;
    x += row * C;
    y += row * C;

    float sum = 0;
    for (int c = threadIdx.x; c < C; c += blockDim.x) sum += load(x[c]);
    float mu = block_sum(sum, scratch) / C;

    // Two passes, as in the book: E[x²] - E[x]² would subtract two large, nearly equal numbers. The first mean is rounded to a
    // number as large as itself; what it leaves over is taken away as well.
    float rest = 0, squares = 0;
    for (int c = threadIdx.x; c < C; c += blockDim.x) rest += load(x[c]) - mu;
    rest = block_sum(rest, scratch) / C;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        float centred = load(x[c]) - mu - rest;
        squares += centred * centred;
    }
    float scale = 1 / sqrtf(block_sum(squares, scratch) / C + eps);

    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        float x_hat = (load(x[c]) - mu - rest) * scale;
        store(y[c], x_hat * (weight ? weight[c] : 1.0f) + (bias ? bias[c] : 0.0f));
    }
    if (threadIdx.x == 0) {
        mean[2 * row] = mu;
        mean[2 * row + 1] = rest;
        inverse_std[row] = scale;
    }
}

// dx = (1/σ) (g - mean(g) - x̂ mean(g ∘ x̂)) with g = dy ∘ weight;   partial_dweight, partial_dbias: (blocks, C).
extern "C" __global__ void layernorm_backward(const Out* dy, const In* x, const float* weight, const float* mean, const float* inverse_std,
                                              In* dx, float* partial_dweight, float* partial_dbias, int rows, int rows_a_block, int C) {
    __shared__ float scratch[WARP];
    DYNAMIC_SHARED(float, columns);  // (2, C): running sums of dy ∘ x̂ and of dy
    float *dweight = columns, *dbias = columns + C;
    for (int c = threadIdx.x; c < C; c += blockDim.x) dweight[c] = dbias[c] = 0;

    int first = blockIdx.x * rows_a_block, last = min(first + rows_a_block, rows);
    for (long long row = first; row < last; row++) {
        const Out* d = dy + row * C;
        const In* xs = x + row * C;
        float mu = mean[2 * row], rest = mean[2 * row + 1], scale = inverse_std[row];

        float sum_g = 0, sum_g_hat = 0;
        for (int c = threadIdx.x; c < C; c += blockDim.x) {
            float dyc = load(d[c]), x_hat = (load(xs[c]) - mu - rest) * scale, g = dyc * (weight ? weight[c] : 1.0f);
            sum_g += g;
            sum_g_hat += g * x_hat;
            dweight[c] += dyc * x_hat;
            dbias[c] += dyc;
        }
        float mean_g = block_sum(sum_g, scratch) / C, mean_g_hat = block_sum(sum_g_hat, scratch) / C;

        for (int c = threadIdx.x; c < C; c += blockDim.x) {
            float x_hat = (load(xs[c]) - mu - rest) * scale, g = load(d[c]) * (weight ? weight[c] : 1.0f);
            store(dx[row * C + c], (g - mean_g - x_hat * mean_g_hat) * scale);
        }
    }
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        partial_dweight[(long long)blockIdx.x * C + c] = dweight[c];
        partial_dbias[(long long)blockIdx.x * C + c] = dbias[c];
    }
}
