// Sums over the rows of a (rows, C) array: the last step of the gradient of every parameter that all rows share.
//
// A block owns 128 columns of some neighbouring rows. Its 32 warps take the rows in turns. Each lane of a warp reads four neighbouring
// columns at once if they are aligned, and otherwise one by one. The sums of the warps are written to shared memory, where one thread adds
// up a column, in the order of the warps. If there are many rows, blockIdx.y counts their parts: each writes a row of partial sums, and a
// second launch adds these. The distance from one row to the next is `stride` numbers.

#include "common.cuh"

constexpr int COLUMNS = 4 * WARP;

extern "C" __global__ void sum_rows(const Real* x, float* y, int rows, int rows_a_block, int C, long long stride) {
    __shared__ __align__(16) float parts[WARP][COLUMNS];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, column = blockIdx.x * COLUMNS + 4 * lane;
    int first = blockIdx.y * rows_a_block, last = min(first + rows_a_block, rows);
    bool vector_aligned = C % 4 == 0 && stride % 4 == 0 && reinterpret_cast<unsigned long long>(x) % (4 * sizeof(Real)) == 0;

    float4 sum = make_float4(0, 0, 0, 0);
    x += column;
    if (column < C && vector_aligned) {
#pragma unroll 4
        for (int row = first + warp; row < last; row += WARP) {
            float4 four = load4(x + row * stride);
            sum = make_float4(sum.x + four.x, sum.y + four.y, sum.z + four.z, sum.w + four.w);
        }
    } else if (column < C) {
        for (int row = first + warp; row < last; row += WARP) {
            sum.x += load(x[row * stride]);
            if (column + 1 < C) sum.y += load(x[row * stride + 1]);
            if (column + 2 < C) sum.z += load(x[row * stride + 2]);
            if (column + 3 < C) sum.w += load(x[row * stride + 3]);
        }
    }
    store4(&parts[warp][4 * lane], sum);
    __syncthreads();

    column = blockIdx.x * COLUMNS + threadIdx.x;
    if (threadIdx.x >= COLUMNS || column >= C) return;
    float total = 0;
    for (int i = 0; i < WARP; i++) total += parts[i][threadIdx.x];
    y[(long long)blockIdx.y * C + column] = total;
}
