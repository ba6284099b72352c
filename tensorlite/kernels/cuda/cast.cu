// Rounding of float32 numbers to a half precision, for the operands of a product.
//
// CuPy's astype does the same with one number for each thread; here a thread reads and writes four numbers at once.

#include "common.cuh"

extern "C" __global__ void cast(const float* x, Half* y, long long count) {
    long long stride = 4LL * gridDim.x * blockDim.x;
    for (long long i = 4 * ((long long)blockIdx.x * blockDim.x + threadIdx.x); i < count; i += stride) {
        if (i + 4 <= count) {
            store4(y + i, load4(x + i));
        } else {
            for (long long j = i; j < count; j++) store(y[j], load(x[j]));
        }
    }
}
