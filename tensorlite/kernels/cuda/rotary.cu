// Rotary positions on the GPU. The mathematics is told in tensorlite/ops/rotary.py.
//
// A position has `heads` heads of 2 HALF numbers, side by side. Of these, `taken` are read and written, the first `rotated` of them rotated
// and the rest copied. A thread takes Wide neighbouring pairs (4, or 1 where HALF is no multiple of 4): the numbers i and i + HALF of a
// head. Neighbouring threads have neighbouring i, so that a warp reads and writes stretches of memory. The cosines and sines of a position
// are the same for all heads and stay in the cache. direction is 1 forward, and -1 for the rotation back. y may be x.

#include "common.cuh"

struct Pair {
    float first, second;
    __device__ Pair(float x, float x_half, float cosine, float sine) : first(x * cosine - x_half * sine), second(x_half * cosine + x * sine) {}
};

extern "C" __global__ void rotate(const Real* x, const float* cosines, const float* sines, Real* y, float direction, int T, int heads,
                                  int taken, int rotated, long long pairs) {
    long long stride = (long long)Wide * gridDim.x * blockDim.x;
    for (long long pair = Wide * ((long long)blockIdx.x * blockDim.x + threadIdx.x); pair < pairs; pair += stride) {
        int row = pair / HALF, position = row / taken, head = row % taken;
        int i = pair % HALF;
        long long place = ((long long)position * heads + head) * 2 * HALF + i, angle = (long long)(position % T) * HALF + i;
        if (Wide == 4) {
            float4 a = load4(x + place), b = load4(x + place + HALF);
            if (head < rotated) {
                float4 cosine = load4(cosines + angle), sine = load4(sines + angle);
                Pair p(a.x, b.x, cosine.x, direction * sine.x), q(a.y, b.y, cosine.y, direction * sine.y);
                Pair r(a.z, b.z, cosine.z, direction * sine.z), s(a.w, b.w, cosine.w, direction * sine.w);
                a = make_float4(p.first, q.first, r.first, s.first);
                b = make_float4(p.second, q.second, r.second, s.second);
            }
            store4(y + place, a);
            store4(y + place + HALF, b);
        } else {
            float a = load(x[place]), b = load(x[place + HALF]);
            if (head < rotated) {
                Pair p(a, b, cosines[angle], direction * sines[angle]);
                a = p.first;
                b = p.second;
            }
            store(y[place], a);
            store(y[place + HALF], b);
        }
    }
}
