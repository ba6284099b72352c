// Rounding float32 numbers to a half precision, on their way into a product.
//
// CuPy's astype does the same, one number a thread; here a thread reads four numbers at once and writes four.

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
