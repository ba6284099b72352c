// Sums down the columns of a (rows, C) array of floats: the last step of every parameter gradient that blocks have summed in parts.
//
// A block owns 32 columns. Its 32 warps take the rows in turns; within a warp, lane i reads column i, so that a read is one
// stretch of memory. The warps' sums meet in shared memory, where each column is added up by one warp.

#include "common.cuh"

extern "C" __global__ void sum_rows(const float* x, float* y, int rows, int C) {
    __shared__ float parts[WARP][WARP + 1];  // one more a row: a column then lies in 32 different banks
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, column = blockIdx.x * WARP + lane;

    float sum = 0;
    if (column < C)
        for (int row = warp; row < rows; row += WARP) sum += x[(long long)row * C + column];
    parts[warp][lane] = sum;
    __syncthreads();

    sum = warp_sum(parts[lane][warp]);  // now the warp owns a column: `warp` of this block's 32
    column = blockIdx.x * WARP + warp;
    if (lane == 0 && column < C) y[column] = sum;
}
