// Sums down the columns of a (rows, C) array: the last step of every parameter gradient that all rows share.
//
// A block owns 32 columns and a stretch of rows. Its 32 warps take the rows in turns; within a warp, lane i reads column i, so that
// a read is one stretch of memory. The warps' sums meet in shared memory, where each column is added up by one warp. Where there are
// many rows, blockIdx.y counts the stretches: each writes a row of partial sums, and a second launch adds those. From a row to the next
// are `stride` numbers.

#include "common.cuh"

extern "C" __global__ void sum_rows(const Real* x, float* y, int rows, int rows_a_block, int C,
                                    long long stride) {
    __shared__ float parts[WARP][WARP + 1];  // one more a row: a column then lies in 32 different banks
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, column = blockIdx.x * WARP + lane;
    int first = blockIdx.y * rows_a_block, last = min(first + rows_a_block, rows);

    float sum = 0;
    if (column < C)
        for (int row = first + warp; row < last; row += WARP) sum += load(x[row * stride + column]);
    parts[warp][lane] = sum;
    __syncthreads();

    sum = warp_sum(parts[lane][warp]);  // now the warp owns a column: `warp` of this block's 32
    column = blockIdx.x * WARP + warp;
    if (lane == 0 && column < C) y[(long long)blockIdx.y * C + column] = sum;
}
