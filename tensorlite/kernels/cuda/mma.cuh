// The instructions for fast matrix products: one for tensor cores, and two that load their operands. Ampere (sm_80) and later have them.
//
//   mma                c += a · b for a 16 × 8 tile c, by the 32 threads of a warp together, on the tensor cores
//   load_matrices      load four small matrices from shared memory into the registers from which mma reads
//   copy_16_bytes      copy from global into shared memory, without registers, while the thread does something else
//
// A tile of a warp is distributed over its 32 threads. The hardware fixes which thread holds which part. In words of 32
// bits, two halves or one float32, with row = lane / 4 and word = lane % 4, a thread holds
//
//        a: 16 rows of 8 words                b: 8 columns of 8 words             c: 16 rows of 8 floats
//        (row,     word)      a[0]            (column row, word)      b[0]        (row,     2 word + {0, 1})   c[0], c[1]
//        (row + 8, word)      a[1]            (column row, word + 4)  b[1]        (row + 8, 2 word + {0, 1})   c[2], c[3]
//        (row,     word + 4)  a[2]
//        (row + 8, word + 4)  a[3]
//
// A row of a and a column of b are thus 32 bytes: 16 halves (the instruction m16n8k16), or 8 float32 (m16n8k8), of which the
// tensor cores read the 19 upper bits, a type called tf32. The sums are float32 in all of them.
// Source: NVIDIA, "Parallel Thread Execution ISA", matrix multiply-accumulate instructions.

#pragma once
#include "common.cuh"

#ifdef CUDA_ON_CPU

// The stand-ins compute the result of the instruction with loops. Each word is read from the lane that holds it.
__device__ inline float word_product(unsigned a, unsigned b, float32) {
    return __uint_as_float(a & ~0x1fffu) * __uint_as_float(b & ~0x1fffu);  // tf32: the lowest 13 bits are ignored
}
template <typename Half>
__device__ inline float word_product(unsigned a, unsigned b, Half) {
    Half x[2], y[2];
    memcpy(x, &a, 4);
    memcpy(y, &b, 4);
    return load(x[0]) * load(y[0]) + load(x[1]) * load(y[1]);
}

template <typename T>
__device__ inline void mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], T type) {
    struct Held { unsigned a[4], b[2]; };
    const Held* lanes = cuda_on_cpu::gather(Held{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, "mma");
    int row = lane_number() / 4, column = lane_number() % 4 * 2;
    for (int i = 0; i < 4; i++)
        for (int word = 0; word < 8; word++)
            c[i] += word_product(lanes[row * 4 + word % 4].a[i / 2 + word / 4 * 2], lanes[(column + i % 2) * 4 + word % 4].b[word / 4], type);
}

template <bool TRANSPOSED = false>
__device__ inline void load_matrices(unsigned (&words)[4], const void* row) {
    const void* const* rows = cuda_on_cpu::gather(row, "ldmatrix");
    int lane = lane_number();
    if (reinterpret_cast<uintptr_t>(row) % 16) cuda_on_cpu::fail("load_matrices reads rows that begin at multiples of 16 bytes");
    for (int i = 0; i < 4; i++) {
        const unsigned short* halves[2];
        for (int j = 0; j < 2; j++) {
            int r = TRANSPOSED ? lane % 4 * 2 + j : lane / 4, column = TRANSPOSED ? lane / 4 : lane % 4 * 2 + j;
            halves[j] = static_cast<const unsigned short*>(rows[i * 8 + r]) + column;
        }
        words[i] = *halves[0] | unsigned(*halves[1]) << 16;
    }
}

__device__ inline void copy_16_bytes(void* shared, const void* global, bool there) { cuda_on_cpu::copy_later(shared, global, 16, there ? 16 : 0); }
__device__ inline void wait_for_copies() { cuda_on_cpu::finish_copies(); }

__device__ inline unsigned as_tf32(float x) { return (__float_as_uint(x) + 0x1000u) & ~0x1fffu; }
template <typename Half>
__device__ inline unsigned pack(float low, float high, Half) {
    Half pair[2];
    unsigned word;
    store(pair[0], low);
    store(pair[1], high);
    memcpy(&word, pair, 4);
    return word;
}

#else

#define MMA(shape, types)                                                                                                                  \
    asm volatile("mma.sync.aligned." shape ".row.col.f32." types ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"    \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
__device__ inline void mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], float16) { MMA("m16n8k16", "f16.f16"); }
__device__ inline void mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], bfloat16) { MMA("m16n8k16", "bf16.bf16"); }
__device__ inline void mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], float32) { MMA("m16n8k8", "tf32.tf32"); }
#undef MMA

__device__ inline unsigned shared_address(const void* shared) { return unsigned(__cvta_generic_to_shared(shared)); }

// Four matrices of 8 rows of 16 bytes each: lane i passes the address of row i % 8 of matrix i / 8, and gets in words[m] the word
// (lane / 4, lane % 4) of matrix m. TRANSPOSED, in halves: those in column lane / 4 of the rows 2 (lane % 4) and 2 (lane % 4) + 1.
template <bool TRANSPOSED = false>
__device__ inline void load_matrices(unsigned (&words)[4], const void* row) {
    if constexpr (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(shared_address(row)));
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(shared_address(row)));
}

// If not `there`, zeros are written instead. After a wait the thread's copies are in shared memory, and after a barrier the other
// threads can read them.
__device__ inline void copy_16_bytes(void* shared, const void* global, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(shared_address(shared)), "l"(global), "r"(there ? 16 : 0) : "memory");
}
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// A float32 for mma: rounded to tf32, because the tensor cores would truncate it.
__device__ inline unsigned as_tf32(float x) {
    unsigned word;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(x));
    return word;
}

// Two floats as the two halves of a word.
__device__ inline unsigned pack(float low, float high, float16) {
    unsigned word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
__device__ inline unsigned pack(float low, float high, bfloat16) {
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

#endif
