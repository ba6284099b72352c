// SwiGLU on the GPU. The mathematics is told in tensorlite/ops/swiglu.py.
//
// x has rows of 2F numbers: F gates, and F numbers that pass through them. A thread takes Wide neighbours (4, or 1 where F is no multiple
// of 4) of a row of y, with their gates. Nothing but the memory takes time here, so backward computes σ again instead of reading it.

#include "common.cuh"

struct Gate {
    float sigma, silu;
    __device__ Gate(float x) {
        float z = expf(-fabsf(x));  // cannot overflow
        sigma = (x < 0 ? z : 1.0f) / (1 + z);
        silu = x * sigma;
    }
    __device__ float slope() const { return sigma + silu * (1 - sigma); }
};

__device__ inline float value(float gate, float up) { return Gate(gate).silu * up; }
__device__ inline float gate_gradient(float dy, float gate, float up) { return dy * up * Gate(gate).slope(); }
__device__ inline float up_gradient(float dy, float gate) { return dy * Gate(gate).silu; }

extern "C" __global__ void swiglu_forward(const Real* x, Real* y, int F, long long count) {
    long long stride = (long long)Wide * gridDim.x * blockDim.x;
    for (long long i = Wide * ((long long)blockIdx.x * blockDim.x + threadIdx.x); i < count; i += stride) {
        const Real* gate = x + i + i / F * F;  // there are F more numbers before each row
        if (Wide == 4) {
            float4 G = load4(gate), U = load4(gate + F);
            store4(y + i, make_float4(value(G.x, U.x), value(G.y, U.y), value(G.z, U.z), value(G.w, U.w)));
        } else {
            store(y[i], value(load(gate[0]), load(gate[F])));
        }
    }
}

extern "C" __global__ void swiglu_backward(const Real* dy, const Real* x, Real* dx, int F, long long count) {
    long long stride = (long long)Wide * gridDim.x * blockDim.x;
    for (long long i = Wide * ((long long)blockIdx.x * blockDim.x + threadIdx.x); i < count; i += stride) {
        long long place = i + i / F * F;
        if (Wide == 4) {
            float4 D = load4(dy + i), G = load4(x + place), U = load4(x + place + F);
            store4(dx + place, make_float4(gate_gradient(D.x, G.x, U.x), gate_gradient(D.y, G.y, U.y), gate_gradient(D.z, G.z, U.z),
                                           gate_gradient(D.w, G.w, U.w)));
            store4(dx + place + F, make_float4(up_gradient(D.x, G.x), up_gradient(D.y, G.y), up_gradient(D.z, G.z), up_gradient(D.w, G.w)));
        } else {
            float D = load(dy[i]), G = load(x[place]);
            store(dx[place], gate_gradient(D, G, load(x[place + F])));
            store(dx[place + F], up_gradient(D, G));
        }
    }
}
