// The functions of tensorlite/ops/activation.py, in float: the value, and the gradient, which is dy times the slope.

#pragma once

struct Relu {
    static __device__ float value(float x) { return x < 0 ? 0.0f : x; }  // nan for nan, unlike fmaxf
    static __device__ float gradient(float dy, float x) { return x > 0 ? dy : 0.0f; }  // not dy · 0, which is nan where dy is infinite
};

// x Φ(x). Φ is computed by erfc, because 1 + erf loses all digits where Φ is small.
struct Gelu {
    static __device__ float gate(float x) { return 0.5f * erfcf(x * -0.70710678f); }
    static __device__ float value(float x) { return x * gate(x); }
    static __device__ float gradient(float dy, float x) { return dy * (gate(x) + x * expf(-0.5f * x * x) * 0.39894228f); }
};

// The gate ½ (1 + tanh u) is the logistic function g = 1 / (1 + exp(-2u)), and then ½ (1 - tanh² u) is 2 g (1 - g). With
// z = exp(-2|u|), which cannot overflow, the larger of g and 1 - g is 1 / (1 + z), and the smaller z / (1 + z), to its last digit.
struct GeluTanh {
    static constexpr float C = 0.79788456f, K = 0.044715f;  // C = √(2/π)
    static __device__ float exponential(float x) { return expf(-2 * C * fabsf(x + K * x * x * x)); }
    static __device__ float value(float x) {
        float z = exponential(x);
        return x * (x < 0 ? z : 1.0f) / (1 + z);
    }
    static __device__ float gradient(float dy, float x) {
        float z = exponential(x), larger = 1 / (1 + z), smaller = z * larger;
        float gate = x < 0 ? smaller : larger;
        if (fabsf(x) > 100) return dy * gate;  // there it is exactly 0 or 1; x² may overflow, and 0 * inf is nan
        return dy * (gate + 2 * x * larger * smaller * C * (1 + 3 * K * x * x));
    }
};
