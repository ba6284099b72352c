// AdamW over a stretch of the flat buffer. The mathematics is told in tensorlite/optim/adam.py.
//
// A thread owns four neighbouring numbers: it reads p, g, m and v once, in one transaction each, and writes p, m and v once. That is all
// the traffic there can be, and the memory is what an update waits for.
//
// What is the same for all numbers but changes from step to step, three rates, is worked out by one thread before. It takes the
// learning rate and the count of steps by value, or, where their addresses are given, from the device's memory: a step that was
// captured as a CUDA graph is launched with the arguments it was captured with, but reads there what has been put there since. A step
// of 0 is none: the gradient has overflowed, which is known on the device alone, and everything stays as it is.

#include "common.cuh"

// betaⁿ by squaring: as many products as n has bits.
__device__ inline double power(double beta, int n) {
    double result = 1;
    for (; n > 0; n >>= 1) {
        if (n & 1) result *= beta;
        beta *= beta;
    }
    return result;
}

// rates = 1 - lr · weight_decay, lr / (1 - β₁ᵗ), √(1 - β₂ᵗ), and whether there is a step at all.
// forget1 = 1 - β₁, forget2 = 1 - β₂: as a float, 1 - 0.999 would have only four digits left of 0.999. In double, for the same reason.
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
    v_max = amsgrad ? (v > v_max || v != v ? v : v_max) : v;  // a nan is not lost, as fmaxf would lose it
    p = p * rates[0] - rates[1] * m / (sqrtf(v_max) / rates[2] + eps);
}

// v_max may be null. count is a multiple of four.
extern "C" __global__ void adamw(float* p, const float* g, float* m, float* v, float* v_max, const float* rates, float forget1,
                                 float forget2, float eps, long long count) {
    long long i = 4 * ((long long)blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count || rates[3] == 0) return;
    float4 P = load4(p + i), G = load4(g + i), M = load4(m + i), V = load4(v + i), X = v_max ? load4(v_max + i) : V;
    update(P.x, G.x, M.x, V.x, X.x, v_max, rates, forget1, forget2, eps);
    update(P.y, G.y, M.y, V.y, X.y, v_max, rates, forget1, forget2, eps);
    update(P.z, G.z, M.z, V.z, X.z, v_max, rates, forget1, forget2, eps);
    update(P.w, G.w, M.w, V.w, X.w, v_max, rates, forget1, forget2, eps);
    store4(p + i, P);
    store4(m + i, M);
    store4(v + i, V);
    if (v_max) store4(v_max + i, X);
}
