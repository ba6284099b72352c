// The norm of the gradient, and its clipping. The derivation is in tensorlite/optim/clip.py.
//
// Three kernels, without a host read in between: each block adds up the squares of its numbers; one block adds up
// the sums of the blocks, in their order, and computes the coefficient; then everything is multiplied by it, unless it is 1.
//
// Squares are added in double, where the square of a float does not overflow or underflow. So the norm of gradients of 1e30 is
// right, and it does not depend on the number of blocks, up to the last bits of a float. Memory traffic takes longer than the sums.

#include "common.cuh"

__device__ inline double warp_sum(double x) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}

// As block_sum of common.cuh, in double.
__device__ inline double block_sum(double x, double* scratch) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? scratch[lane] : 0.0);
}

// partial[block] = Σ of the squares of this block's numbers: groups of four neighbours, at a distance of gridDim · blockDim groups.
extern "C" __global__ void sum_squares(const float* g, double* partial, long long count) {
    __shared__ double scratch[WARP];
    double sum = 0;
    long long stride = 4LL * gridDim.x * blockDim.x;
    for (long long i = 4 * ((long long)blockIdx.x * blockDim.x + threadIdx.x); i < count; i += stride) {
        float4 x = load4(g + i);
        sum += double(x.x) * x.x + double(x.y) * x.y + double(x.z) * x.z + double(x.w) * x.w;
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// norm = √ Σ partial, coefficient = min(1, max_norm / (norm + 1e-6)); one block. If the norm is nan, so is
// the coefficient, because comparisons with nan are false.
extern "C" __global__ void clip_coefficient(const double* partial, int blocks, float max_norm, float* norm, float* coefficient) {
    __shared__ double scratch[WARP];
    double sum = 0;
    for (int i = threadIdx.x; i < blocks; i += blockDim.x) sum += partial[i];
    double length = sqrt(block_sum(sum, scratch)), quotient = max_norm / (length + 1e-6);
    if (threadIdx.x > 0) return;
    *norm = float(length);
    *coefficient = quotient >= 1 ? 1.0f : float(quotient);
}

// 0 stays 0: with a factor that is nan the gaps of a flat buffer, where no gradient is ever written, would be nan from then on.
__device__ float shortened(float x, float factor) { return x == 0 ? x : x * factor; }

extern "C" __global__ void scale(float* g, const float* coefficient, long long count) {
    float factor = *coefficient;
    if (factor == 1) return;  // most steps need no clipping: nothing is read then
    long long i = 4 * ((long long)blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count) return;
    float4 x = load4(g + i);
    store4(g + i, make_float4(shortened(x.x, factor), shortened(x.y, factor), shortened(x.z, factor), shortened(x.w, factor)));
}
