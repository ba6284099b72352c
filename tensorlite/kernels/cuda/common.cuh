// Shared code of the kernels: the storage types, sums over a warp and over a block, and random bits.
//
// A kernel is compiled once for each type that it stores, by -DReal=float32, -DReal=float16 or -DReal=bfloat16. Numbers are
// stored in that type and computed in float; load() and store() convert. The source needs no CUDA header, so
// the compiler alone (NVRTC) is enough. If CUDA_ON_CPU is defined, the host compiler builds the same source;
// in this way the kernels are tested without a GPU.
//
// The terms: a *thread* has registers; the 32 threads of a *warp* run together and can read each other's registers
// (shuffles); the warps of a *block* share fast memory (__shared__) and can wait for each other (__syncthreads); blocks
// of the *grid* run in any order, and cannot wait for each other.

#pragma once

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

#ifdef CUDA_ON_CPU
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(cuda_on_cpu::dynamic_shared)
#else
// Shared memory whose size is an argument of the launch.
#define DYNAMIC_SHARED(type, name)                              \
    extern __shared__ __align__(128) unsigned char name##_bytes[]; \
    type* name = reinterpret_cast<type*>(name##_bytes)
#endif

__device__ inline float infinity() { return __int_as_float(0x7f800000); }

// --- storage types ---------------------------------------------------------------------------------------

typedef float float32;
struct float16 { unsigned short bits; };   // 1 sign, 5 exponent, 10 fraction: up to 65504
struct bfloat16 { unsigned short bits; };  // 1 sign, 8 exponent, 7 fraction: the upper half of a float32

__device__ inline float load(float32 x) { return x; }
__device__ inline float load(bfloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }
__device__ inline float load(float16 x) {
#ifdef CUDA_ON_CPU
    _Float16 value;
    memcpy(&value, &x, 2);
    return float(value);
#else
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#endif
}

// Rounded to the nearest number of the type, ties to even.
__device__ inline void store(float32& place, float x) { place = x; }
__device__ inline void store(bfloat16& place, float x) {
#if defined(CUDA_ON_CPU) || __CUDA_ARCH__ < 800  // before Ampere there is no instruction for it
    unsigned bits = __float_as_uint(x);
    place.bits = x != x ? 0x7fff : (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(place.bits) : "f"(x));
#endif
}
__device__ inline void store(float16& place, float x) {
#ifdef CUDA_ON_CPU
    _Float16 value = _Float16(x);
    memcpy(&place, &value, 2);
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(place.bits) : "f"(x));
#endif
}

// Four neighbours at once, in the widest transactions of the memory. The address must be a
// multiple of four numbers.
__device__ inline float4 load4(const float32* x) { return *reinterpret_cast<const float4*>(x); }
template <typename T>
__device__ inline float4 load4(const T* x) {
    struct __align__(8) Four { T a, b, c, d; };
    Four four = *reinterpret_cast<const Four*>(x);
    return make_float4(load(four.a), load(four.b), load(four.c), load(four.d));
}
__device__ inline void store4(float32* place, float4 x) { *reinterpret_cast<float4*>(place) = x; }
template <typename T>
__device__ inline void store4(T* place, float4 x) {
    struct __align__(8) Four { T a, b, c, d; };
    Four four;
    store(four.a, x.x);
    store(four.b, x.y);
    store(four.c, x.z);
    store(four.d, x.w);
    *reinterpret_cast<Four*>(place) = four;
}

// Two neighbours, at an even address.
template <typename T>
__device__ inline void store2(T* place, float x, float y) {
    struct __align__(2 * sizeof(T)) Two { T a, b; };
    Two two;
    store(two.a, x);
    store(two.b, y);
    *reinterpret_cast<Two*>(place) = two;
}

// As many neighbours as 16 bytes hold. The address must be a multiple of 16.
template <typename T>
struct __align__(16) Chunk { T numbers[16 / sizeof(T)]; };
template <typename T>
__device__ inline Chunk<T> load_chunk(const T* x) { return *reinterpret_cast<const Chunk<T>*>(x); }
template <typename T>
__device__ inline void store_chunk(T* place, const Chunk<T>& chunk) { *reinterpret_cast<Chunk<T>*>(place) = chunk; }

// --- powers ----------------------------------------------------------------------------------------------

constexpr float LOG2_E = 1.44269504f;  // exp(x) = 2^(x log₂ e): the hardware computes powers of 2

__device__ inline float power_of_2(float x) {
#ifdef CUDA_ON_CPU
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// --- reductions ------------------------------------------------------------------------------------------

// The sum over the 32 threads of a warp; all get the same bits. This is a butterfly: first each thread
// adds its neighbour's number, then the sum of the neighbouring pair, … five exchanges instead of 31.
__device__ inline float warp_sum(float x) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}

__device__ inline float warp_max(float x) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x;
}

// The sum over all threads of a block; all get it. It is taken first within each warp, then over the sums of the warps, which are in
// `scratch` (32 floats in shared memory). Every thread of the block must call this. The order of the additions depends
// only on the size of the block, so the same numbers give the same bits in every run.
__device__ inline float block_sum(float x, float* scratch) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    __syncthreads();  // a slower warp may still read the previous result from scratch
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? scratch[lane] : 0.0f);
}

__device__ inline float block_max(float x, float* scratch) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_max(x);
    __syncthreads();
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    return warp_max(lane < warps ? scratch[lane] : -infinity());
}

// --- random bits -----------------------------------------------------------------------------------------

// 128 random bits for each counter: Philox-4x32 with ten rounds. The generator has no state:
// the same key and counter give the same bits in every thread, so backward draws the same bits as forward.
// Source: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
__device__ inline uint4 philox(uint2 key, uint4 counter) {
    for (int round = 0; round < 10; round++) {
        unsigned high0 = __umulhi(0xD2511F53u, counter.x), low0 = 0xD2511F53u * counter.x;
        unsigned high1 = __umulhi(0xCD9E8D57u, counter.z), low1 = 0xCD9E8D57u * counter.z;
        counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
        key.x += 0x9E3779B9u;  // the golden ratio, and √3 - 1: any odd constants would do
        key.y += 0xBB67AE85u;
    }
    return counter;
}
