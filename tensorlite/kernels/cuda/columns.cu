// Sums over the rows of a (rows, C) array: the last step of the gradient of every parameter that all rows share.
//
// A block owns 128 columns of some neighbouring rows. Its 32 warps take the rows in turns. Each lane of a warp reads four neighbouring
// columns at once if they are aligned, and otherwise one by one. The sums of the warps are written to shared memory, where one thread adds
// up a column, in the order of the warps. If there are many rows, blockIdx.y counts their parts, and each block writes a row of partial
// sums. The last block to finish, of those with the same columns, adds these rows in their order, so the bits do not depend on which
// block that is. The distance from one row to the next is `stride` numbers.
//
// The first `split` columns go to y, the others to `second`: the weight and the bias of a layer norm have their gradients in two places.

#include "common.cuh"

constexpr int COLUMNS = 4 * WARP;

// add: 1 adds to what is in y, 2 to what is in second, 3 to both. `arrived` counts the blocks that have written their partial sums, for each
// 128 columns; it is 0 before and after.
extern "C" __global__ void sum_rows(const Real* x, float* partial, unsigned* arrived, float* y, float* second, int split, int add, int rows,
                                    int rows_a_block, int C, long long stride) {
    __shared__ __align__(16) float parts[WARP][COLUMNS];
    __shared__ bool is_last;
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
    bool has_column = threadIdx.x < COLUMNS && column < C;
    float total = 0;
    if (has_column)
        for (int i = 0; i < WARP; i++) total += parts[i][threadIdx.x];

    if (gridDim.y > 1) {
        if (has_column) partial[(long long)blockIdx.y * C + column] = total;
        __threadfence();  // before this block is counted, all others can see what it has written
        __syncthreads();
        if (threadIdx.x == 0) is_last = atomicAdd(arrived + blockIdx.x, 1u) == gridDim.y - 1;
        __syncthreads();
        if (!is_last) return;
        if (threadIdx.x == 0) arrived[blockIdx.x] = 0;  // for the next launch
        total = 0;
        const volatile float* written = partial;  // by other blocks: not to be taken from this multiprocessor's cache
        if (has_column)
            for (unsigned i = 0; i < gridDim.y; i++) total += written[(long long)i * C + column];
    }
    if (!has_column) return;
    bool is_first = column < split;
    float* place = is_first ? y + column : second + (column - split);
    *place = add & (is_first ? 1 : 2) ? *place + total : total;
}
