// AdamW over a part of the flat buffer. The derivation is in tensorlite/optim/adam.py.
//
// A thread updates four neighbouring numbers: it reads p, g, m and v once, in one transaction each, and writes p, m and v once. Memory
// traffic limits an update, and it cannot be less than this. So two other passes over these numbers are part of it: the gradient is
// multiplied by the factor that clips it, and the new p is also written in the half precision that products read.
//
// Three rates are the same for all numbers but change from step to step. One thread computes them before. It gets the
// learning rate and the step count by value, or, if their addresses are given, from the device's memory. A captured
// CUDA graph is always launched with the same arguments, but it reads the new values from memory. A step
// of 0 means no step: the gradient has overflowed, which only the device knows, and nothing is changed.

#include "common.cuh"

// betaⁿ by squaring: at most two products for each bit of n.
__device__ inline double power(double beta, int n) {
    double result = 1;
    for (; n > 0; n >>= 1) {
        if (n & 1) result *= beta;
        beta *= beta;
    }
    return result;
}

// rates = 1 - lr · weight_decay, lr / (1 - β₁ᵗ), √(1 - β₂ᵗ), and whether there is a step at all.
// forget1 = 1 - β₁, forget2 = 1 - β₂: computed here from a float 0.999, the difference would have only four right digits. The powers are
// computed in double for the same reason.
extern "C" __global__ void adamw_rates(const float* lr_at, float lr, const int* step_at, int step, float forget1, float forget2,
                                       float weight_decay, float* rates) {
    if (threadIdx.x > 0) return;
    if (lr_at) lr = *lr_at;
    if (step_at) step = *step_at;
    rates[0] = float(1 - double(lr) * weight_decay);
    rates[1] = float(lr / (1 - power(1 - double(forget1), step)));
    rates[2] = float(sqrt(1 - power(1 - double(forget2), step)));
    rates[3] = step > 0;
}

// One number. v_max is AMSGrad's, or v itself.
__device__ inline void update(float& p, float g, float& m, float& v, float& v_max, bool amsgrad, const float* rates, float forget1,
                              float forget2, float eps) {
    m += forget1 * (g - m);
    v = v * (1 - forget2) + forget2 * g * g;
    v_max = amsgrad ? (v > v_max || v != v ? v : v_max) : v;  // keeps nan, unlike fmaxf
    p = p * rates[0] - rates[1] * m / (sqrtf(v_max) / rates[2] + eps);
}

// v_max, factor and rounded may be null. count is a multiple of four.
extern "C" __global__ void adamw(float* p, const float* g, float* m, float* v, float* v_max, const float* factor, Half* rounded,
                                 const float* rates, float forget1, float forget2, float eps, long long count) {
    long long i = 4 * ((long long)blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count || rates[3] == 0) return;
    float4 P = load4(p + i), G = load4(g + i), M = load4(m + i), V = load4(v + i), X = v_max ? load4(v_max + i) : V;
    if (factor) G = make_float4(G.x * *factor, G.y * *factor, G.z * *factor, G.w * *factor);
    update(P.x, G.x, M.x, V.x, X.x, v_max, rates, forget1, forget2, eps);
    update(P.y, G.y, M.y, V.y, X.y, v_max, rates, forget1, forget2, eps);
    update(P.z, G.z, M.z, V.z, X.z, v_max, rates, forget1, forget2, eps);
    update(P.w, G.w, M.w, V.w, X.w, v_max, rates, forget1, forget2, eps);
    store4(p + i, P);
    store4(m + i, M);
    store4(v + i, V);
    if (v_max) store4(v_max + i, X);
    if (rounded) store4(rounded + i, P);
}
