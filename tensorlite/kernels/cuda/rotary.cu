// Rotary positions on the GPU. The mathematics is told in tensorlite/ops/rotary.py.
//
// A thread rotates one pair: the numbers i and i + half of a row. Neighbouring threads have neighbouring i, so that a warp reads and
// writes two stretches of memory. The cosines and sines of a position are the same for all heads and stay in the cache.
// direction is 1 forward, and -1 for the rotation back.

#include "common.cuh"

extern "C" __global__ void rotate(const Real* x, const float* cosines, const float* sines, Real* y, float direction, int T, int half,
                                  long long pairs) {
    long long stride = (long long)gridDim.x * blockDim.x;
    for (long long pair = (long long)blockIdx.x * blockDim.x + threadIdx.x; pair < pairs; pair += stride) {
        long long row = pair / half, i = pair % half, angle = row % T * half + i;
        float cosine = cosines[angle], sine = direction * sines[angle];
        const Real* from = x + 2 * row * half + i;
        Real* into = y + 2 * row * half + i;
        float first = load(from[0]), second = load(from[half]);
        store(into[0], first * cosine - second * sine);
        store(into[half], second * cosine + first * sine);
    }
}
