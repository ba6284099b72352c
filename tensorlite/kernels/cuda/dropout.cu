// Dropout on the GPU: the mask is not stored, but drawn again in backward. The derivation is in tensorlite/ops/dropout.py.
//
// The random bits of an element are a function of the key, the number of the call, and the element's position (philox in common.cuh). The
// key is in device memory, so a captured CUDA graph draws new masks after the key was changed.

#include "common.cuh"

// y = x · scale where the 16 random bits are at least the threshold, 65536 p, and 0 elsewhere. For backward x is dy.
extern "C" __global__ void dropout(const Real* x, Real* y, const unsigned* key, int call, int threshold, float scale, long long n) {
    long long stride = 4ll * gridDim.x * blockDim.x;
    for (long long i = 4ll * (blockIdx.x * blockDim.x + threadIdx.x); i < n; i += stride) {
        unsigned long long group = (unsigned long long)i / 4;  // four elements share 128 bits
        uint4 bits = philox(make_uint2(key[0], key[1]), make_uint4((unsigned)group, (unsigned)(group >> 32), (unsigned)call, 0));
        bool keep[4] = {int(bits.x >> 16) >= threshold, int(bits.y >> 16) >= threshold, int(bits.z >> 16) >= threshold,
                        int(bits.w >> 16) >= threshold};
        if (i + 4 <= n) {
            float4 v = load4(x + i);
            store4(y + i, make_float4(keep[0] ? v.x * scale : 0.0f, keep[1] ? v.y * scale : 0.0f, keep[2] ? v.z * scale : 0.0f,
                                      keep[3] ? v.w * scale : 0.0f));
        } else {
            for (int j = 0; j < 4; j++)
                if (i + j < n) store(y[i + j], keep[j] ? load(x[i + j]) * scale : 0.0f);
        }
    }
}
