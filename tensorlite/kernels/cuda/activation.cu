// Activations on the GPU, element by element. The derivation is in tensorlite/ops/activation.py.
//
// Memory traffic limits these kernels. So a thread reads and writes four numbers at a time, and backward computes the slope from x again
// instead of reading one that forward has stored. A thread processes four neighbours, then the four that are one whole grid further on, and
// so on: the threads of a warp always read one contiguous piece of memory.
//
// Curve is a struct of activation.cuh. The arrays begin at a multiple of four numbers; the last few numbers are processed one by one.

#include "common.cuh"
#include "activation.cuh"

extern "C" __global__ void activation_forward(const Real* x, Real* y, long long count) {
    long long stride = 4LL * gridDim.x * blockDim.x;
    for (long long i = 4 * ((long long)blockIdx.x * blockDim.x + threadIdx.x); i < count; i += stride) {
        if (i + 4 <= count) {
            float4 X = load4(x + i);
            store4(y + i, make_float4(Curve::value(X.x), Curve::value(X.y), Curve::value(X.z), Curve::value(X.w)));
        } else {
            for (long long j = i; j < count; j++) store(y[j], Curve::value(load(x[j])));
        }
    }
}

extern "C" __global__ void activation_backward(const Real* dy, const Real* x, Real* dx, long long count) {
    long long stride = 4LL * gridDim.x * blockDim.x;
    for (long long i = 4 * ((long long)blockIdx.x * blockDim.x + threadIdx.x); i < count; i += stride) {
        if (i + 4 <= count) {
            float4 D = load4(dy + i), X = load4(x + i);
            store4(dx + i, make_float4(Curve::gradient(D.x, X.x), Curve::gradient(D.y, X.y), Curve::gradient(D.z, X.z),
                                       Curve::gradient(D.w, X.w)));
        } else {
            for (long long j = i; j < count; j++) store(dx[j], Curve::gradient(load(dy[j]), load(x[j])));
        }
    }
}
