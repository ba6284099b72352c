// A matrix times a few vectors on the GPU, with what comes before and after the product in a layer of a transformer:
//
//     y = curve(W · norm(x) + b) + y        x (rows, in), W (out, in), y (rows, out)
//
// Each part but the product may be missing. A product with few vectors only waits for its matrix, so what counts is that the memory is
// always busy. A warp computes one number of y for each vector: its lanes read a row of W in order, Wide neighbours at a time. The vectors
// stay in the cache, so every warp can afford to read all of x, and to compute its norm. The division by the standard deviation σ, or by
// the root mean square, can wait for the end, because it is the same for all numbers of a vector:
//
//     W · norm(x) = W · (γ ∘ (x - mean)) / σ + W · β
//
// Gated is SwiGLU's layer: W has 2 out rows, and y = silu(the first half) ∘ the second. A block has up to Rows vectors; those
// with the same part of W and other vectors are neighbours in the grid, so that W comes from the memory once.

#include "activation.cuh"
#include "rows.cuh"

struct Identity {
    static __device__ float value(float x) { return x; }
};
struct Silu {
    static __device__ float value(float x) {
        float z = expf(-fabsf(x));  // cannot overflow
        return x * (x < 0 ? z : 1.0f) / (1 + z);
    }
};

constexpr int Matrices = Gated ? 2 : 1;
constexpr int NO_NORM = 0, LAYERNORM = 2;  // 1 is the RMSNorm, whose mean counts as 0

extern "C" __global__ void matvec(const float* __restrict__ weight, const float* x, int norm, const float* __restrict__ gamma,
                                  const float* __restrict__ beta, float eps, const float* __restrict__ bias, float* y, int rows, int in,
                                  int out, int add) {
    int parts = (rows + Rows - 1) / Rows, first = blockIdx.x % parts * Rows;
    int o = blockIdx.x / parts * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (o >= out) return;

    const float* vectors[Rows];
    for (int r = 0; r < Rows; r++) vectors[r] = x + (long long)min(first + r, rows - 1) * in;

    float means[Rows] = {};
    if (norm == LAYERNORM) {
        for (int i = column_of(0); i < in; i += WARP * Wide)
            for (int r = 0; r < Rows; r++) {
                float numbers[Wide];
                take(vectors[r] + i, numbers);
                FOR_EACH(j) means[r] += numbers[j];
            }
        for (int r = 0; r < Rows; r++) means[r] = warp_sum(means[r]) / in;
    }

    float products[Matrices][Rows] = {}, shifts[Matrices] = {}, squares[Rows] = {};
#pragma unroll 4
    for (int i = column_of(0); i < in; i += WARP * Wide) {
        float w[Matrices][Wide], gammas[Wide], betas[Wide];
        for (int m = 0; m < Matrices; m++) take(weight + ((long long)m * out + o) * in + i, w[m]);
        take_or(1, gamma, i, gammas);
        take_or(0, beta, i, betas);
        for (int m = 0; m < Matrices; m++) FOR_EACH(j) shifts[m] += w[m][j] * betas[j];
        for (int r = 0; r < Rows; r++) {
            float numbers[Wide];
            take(vectors[r] + i, numbers);
            FOR_EACH(j) {
                numbers[j] -= means[r];
                squares[r] += numbers[j] * numbers[j];
                for (int m = 0; m < Matrices; m++) products[m][r] += w[m][j] * gammas[j] * numbers[j];
            }
        }
    }

    float constants[Matrices];
    for (int m = 0; m < Matrices; m++) constants[m] = warp_sum(shifts[m]) + (bias ? bias[m * out + o] : 0);
    for (int r = 0; r < Rows; r++) {
        float scale = norm == NO_NORM ? 1 : 1 / sqrtf(warp_sum(squares[r]) / in + eps);
        float value = Curve::value(warp_sum(products[0][r]) * scale + constants[0]);
        if (Gated) value *= warp_sum(products[Matrices - 1][r]) * scale + constants[Matrices - 1];
        if (threadIdx.x % WARP || first + r >= rows) continue;
        float* place = y + (long long)(first + r) * out + o;
        *place = add ? *place + value : value;
    }
}
