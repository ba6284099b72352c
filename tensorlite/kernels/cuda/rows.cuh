// Shared code of the kernels in which a warp owns a row and keeps it in registers.
//
// The lanes read Wide neighbours at a time, four where the row's length allows it: lane i holds the numbers Wide i up to Wide (i + 1), then
// those that are 32 Wide further on, and so on, PerLane of them in all. Both are constants, so the loops are unrolled and an array of
// PerLane numbers is in registers.

#pragma once
#include "common.cuh"

#define FOR_GROUPS(k) _Pragma("unroll") for (int k = 0; k < PerLane / Wide; k++)
#define FOR_MINE(i) _Pragma("unroll") for (int i = 0; i < PerLane; i++)
#define FOR_EACH(j) _Pragma("unroll") for (int j = 0; j < Wide; j++)

__device__ inline int column_of(int group) { return (group * WARP + int(threadIdx.x % WARP)) * Wide; }  // of its first number

// Copy neighbours from memory to registers, and back.
template <typename T>
__device__ inline void take(const T* from, float (&numbers)[1]) { numbers[0] = load(*from); }
template <typename T>
__device__ inline void take(const T* from, float (&numbers)[4]) {
    float4 four = load4(from);
    numbers[0] = four.x, numbers[1] = four.y, numbers[2] = four.z, numbers[3] = four.w;
}
template <typename T>
__device__ inline void put(T* to, const float (&numbers)[1]) { store(*to, numbers[0]); }
template <typename T>
__device__ inline void put(T* to, const float (&numbers)[4]) { store4(to, make_float4(numbers[0], numbers[1], numbers[2], numbers[3])); }

// The same for a parameter that may be missing.
__device__ inline void take_or(float instead, const float* from, int c, float (&numbers)[Wide]) {
    if (from) take(from + c, numbers);
    else FOR_EACH(j) numbers[j] = instead;
}
