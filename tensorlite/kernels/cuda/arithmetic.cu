// The sum of two arrays of different precisions: the result of a block, in half precision, is added to the float32 residual stream.
// In two steps, a cast and a sum, the larger array would be written and read once more.

#include "common.cuh"

extern "C" __global__ void add_to_stream(const float* stream, const Half* x, float* y, long long n) {
    long long stride = 4ll * gridDim.x * blockDim.x;
    for (long long i = 4ll * (blockIdx.x * blockDim.x + threadIdx.x); i < n; i += stride) {
        if (i + 4 <= n) {
            float4 a = load4(stream + i), b = load4(x + i);
            store4(y + i, make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w));
        } else {
            for (long long j = i; j < n; j++) y[j] = stream[j] + load(x[j]);
        }
    }
}
