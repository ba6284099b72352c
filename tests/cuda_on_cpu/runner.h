// CUDA's words for the host compiler, so that a .cu file of ours can be run, thread by thread, on a CPU.
//
// Each thread of a block is a fibre: a stack of its own, and a turn that lasts until it comes to a meeting point
// (__syncthreads, a warp exchange) or leaves the kernel. The scheduler hands out the turns in an order that is asked for,
// ascending, descending or shuffled; a warp whose threads have met goes on at once, as far ahead of the others as barriers let it. That is
// much stricter than a GPU, where warps take turns, and the 32 threads of one mostly move together: who reads what another thread
// has not written yet, because a barrier is missing, reads poison here.
//
//   __shared__             a static array in a section of its own, filled with NaN before each block
//   __syncthreads()        wait until every thread of the block is here; a thread that has left is an error
//   __shfl_*_sync, …       wait until the 32 threads of the warp are here, then exchange; the mask must name all of them
//   atomicAdd, …           the plain operation: one fibre runs at a time
//   copies to shared       take place when the thread waits for them: until then poison is read
//   a wide read or write   at an address that is not a multiple of its size is an error, as on a GPU, where x86 would forgive it
//   denormal numbers       are 0, read and written: CuPy compiles with -ftz=true
//   memory of others       a page that may not be touched (see fenced() in __init__.py) is an error of the thread that touches it
//
// What the hardware has beyond C++ (conversions to half precision, tensor cores) is in common.cuh and mma.cuh, which have
// a branch for the host each.

#pragma once

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#define CUDA_ON_CPU 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("cuda_shared"), aligned(16)))

struct dim3 { unsigned x, y, z; };
struct __attribute__((aligned(8))) uint2 { unsigned x, y; };
struct __attribute__((aligned(16))) uint4 { unsigned x, y, z, w; };
struct __attribute__((aligned(8))) int2 { int x, y; };
struct __attribute__((aligned(16))) int4 { int x, y, z, w; };
struct __attribute__((aligned(8))) float2 { float x, y; };
struct __attribute__((aligned(16))) float4 { float x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace cuda_on_cpu {

constexpr int WARP = 32, MAX_THREADS = 1024;
constexpr size_t STACK = 256 * 1024, RED_ZONE = 4096;

enum State { READY, AT_BLOCK_BARRIER, AT_WARP_EXCHANGE, GONE };

struct Copy { void* to; const void* from; size_t size, there; };
constexpr int MAX_COPIES = 256;

struct Fibre {
    ucontext_t start;
    jmp_buf place;
    bool begun;
    State state;
    const char* meeting;  // what it waits at
    unsigned exchanges;   // how many warp exchanges it has taken part in
    dim3 index;
    Copy copies[MAX_COPIES];  // begun, and not waited for
    int copying;
};

Fibre* running;  // the fibre whose turn it is
Fibre fibres[MAX_THREADS];
char* stacks;
jmp_buf scheduler;
dim3 grid_size, block_size, block_index;
int threads;
constexpr size_t SLOT = 32;  // bytes
alignas(16) char slots[MAX_THREADS / WARP][2][WARP * SLOT];  // what the lanes of each warp hold out, twice: see gather()
char* dynamic_shared;
size_t dynamic_shared_bytes;
char error[512];
void (*body)(void**);
void** arguments;

extern "C" char __start_cuda_shared[] __attribute__((weak));
extern "C" char __stop_cuda_shared[] __attribute__((weak));

[[noreturn]] inline void fail(const char* what) {
    snprintf(error, sizeof error, "block (%u, %u, %u), thread (%u, %u, %u): %s", block_index.x, block_index.y, block_index.z,
             running->index.x, running->index.y, running->index.z, what);
    _longjmp(scheduler, 2);
}

inline int thread_number() { return int(running - fibres); }

/// Give up the turn until the scheduler says that all who must be here are.
__attribute__((noinline)) inline void wait_at(State state, const char* meeting) {
    running->state = state;
    running->meeting = meeting;
    if (_setjmp(running->place) == 0) _longjmp(scheduler, 1);
}

inline void sync_block() { wait_at(AT_BLOCK_BARRIER, "__syncthreads"); }

/// Hold out `value`, meet the warp, and see what all 32 lanes hold out: until this thread comes to its next exchange. There are two
/// sets of slots: a lane that is already at the next exchange must not overwrite what a slower one still has to read; two exchanges
/// ahead nobody can be.
template <typename T>
const T* gather(const T& value, const char* meeting) {
    static_assert(sizeof(T) <= SLOT && std::is_trivially_copyable_v<T>, "a warp exchange moves a few registers");
    int thread = thread_number();
    T* held = reinterpret_cast<T*>(slots[thread / WARP][running->exchanges++ % 2]);
    held[thread % WARP] = value;
    wait_at(AT_WARP_EXCHANGE, meeting);
    return held;
}

/// The same, and take what one lane, `source`, holds out.
template <typename T>
T exchange(unsigned mask, T value, int source, const char* meeting) {
    if (mask != 0xffffffffu) fail("a warp exchange must name all 32 lanes in its mask here");
    return gather(value, meeting)[source % WARP];
}

/// Copy `there` bytes, and zeros up to `size`, but as late as the hardware may: when the thread waits for its copies.
inline void copy_later(void* to, const void* from, size_t size, size_t there) {
    if (running->copying == MAX_COPIES) fail("more copies are under way than this runner can hold");
    if (reinterpret_cast<uintptr_t>(to) % size || reinterpret_cast<uintptr_t>(from) % size) fail("a copy is not aligned to its size");
    running->copies[running->copying++] = {to, from, size, there};
}

inline void finish_copies() {
    for (int i = 0; i < running->copying; i++) {
        const Copy& copy = running->copies[i];
        memcpy(copy.to, copy.from, copy.there);
        memset(static_cast<char*>(copy.to) + copy.there, 0, copy.size - copy.there);
    }
    running->copying = 0;
}

inline void fibre_main() {
    body(arguments);
    running->state = GONE;
    _longjmp(scheduler, 1);
}

/// Let the warp of a fibre that has come to an exchange go on if all its lanes are there; says whether they may.
inline bool release_warp(const Fibre& last) {
    Fibre* lanes = fibres + (&last - fibres) / WARP * WARP;
    for (int i = 0; i < WARP; i++)
        if (lanes[i].state != AT_WARP_EXCHANGE || lanes[i].meeting != last.meeting || lanes[i].exchanges != last.exchanges) return false;
    for (int i = 0; i < WARP; i++) lanes[i].state = READY;
    return true;
}

/// The same for the block at a barrier, when no fibre can go on.
inline bool release_block() {
    int at_barrier = 0, gone = 0;
    for (int i = 0; i < threads; i++) {
        at_barrier += fibres[i].state == AT_BLOCK_BARRIER;
        gone += fibres[i].state == GONE;
    }
    if (at_barrier == threads)
        for (int i = 0; i < threads; i++) fibres[i].state = READY;
    if (at_barrier == threads || gone == threads) return gone != threads;
    for (int i = 0; i < threads; i++) {  // stuck: say where the first fibre is, and one that is elsewhere
        if (fibres[i].state == fibres[0].state && (fibres[i].state == GONE || fibres[i].meeting == fibres[0].meeting)) continue;
        snprintf(error, sizeof error, "block (%u, %u, %u) is stuck: thread 0 %s%s, thread %d %s%s", block_index.x, block_index.y,
                 block_index.z, fibres[0].state == GONE ? "has left the kernel" : "waits at ",
                 fibres[0].state == GONE ? "" : fibres[0].meeting, i, fibres[i].state == GONE ? "has left the kernel" : "waits at ",
                 fibres[i].state == GONE ? "" : fibres[i].meeting);
        return false;
    }
    snprintf(error, sizeof error, "block (%u, %u, %u) is stuck at %s", block_index.x, block_index.y, block_index.z, fibres[0].meeting);
    return false;
}

inline void turn(Fibre& fibre) {
    running = &fibre;
    int back = _setjmp(scheduler);
    if (back == 2) return;  // fail() has left its message in `error`
    if (back == 1) return;  // it waits, or is gone
    if (!fibre.begun) {
        fibre.begun = true;
        setcontext(&fibre.start);
    }
    _longjmp(fibre.place, 1);
}

inline void run_block(const int* order) {
    memset(dynamic_shared, 0xff, dynamic_shared_bytes + RED_ZONE);
    if (__start_cuda_shared) memset(__start_cuda_shared, 0xff, size_t(__stop_cuda_shared - __start_cuda_shared));
    for (int i = 0; i < threads; i++) {
        Fibre& fibre = fibres[i];
        fibre.begun = false;
        fibre.state = READY;
        fibre.exchanges = 0;
        fibre.copying = 0;
        fibre.index = {i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y};
        getcontext(&fibre.start);
        fibre.start.uc_stack.ss_sp = stacks + size_t(i) * STACK;
        fibre.start.uc_stack.ss_size = STACK;
        fibre.start.uc_link = nullptr;
        makecontext(&fibre.start, fibre_main, 0);
    }
    do {
        for (int i = 0; i < threads && !error[0]; i++) {
            Fibre& fibre = fibres[order[i]];
            if (fibre.state != READY) continue;
            turn(fibre);
            if (fibre.state == AT_WARP_EXCHANGE && release_warp(fibre)) i = -1;  // its first thread in the order goes on
        }
    } while (!error[0] && release_block());
    for (size_t i = 0; i < RED_ZONE && !error[0]; i++)
        if (dynamic_shared[dynamic_shared_bytes + i] != char(0xff))
            snprintf(error, sizeof error, "block (%u, %u, %u) wrote past the %zu bytes of dynamic shared memory that it was launched with",
                     block_index.x, block_index.y, block_index.z, dynamic_shared_bytes);
}

/// Takes the place of the system's answer to a wrong address, or to the compiler's own check of alignment (-fsanitize=alignment).
inline void on_wrong_address(int signal, siginfo_t* what, void*) {
    if (signal == SIGILL || signal == SIGTRAP) fail("reads or writes several numbers at once at an address that is not a multiple of their size");
    char text[64];
    snprintf(text, sizeof text, "touches address %p, which is in none of its arrays", what->si_addr);
    fail(text);
}

/// While it lives, a wrong address is an error like others.
struct Watch {
    static constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP};
    struct sigaction before[4];
    Watch() {
        struct sigaction ours = {};
        ours.sa_sigaction = on_wrong_address;
        ours.sa_flags = SA_SIGINFO | SA_NODEFER;  // fail() never returns, so the signal must not stay blocked
        for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &ours, &before[i]);
    }
    ~Watch() {
        for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &before[i], nullptr);
    }
};

/// While it lives, numbers too small to be normal are 0, where they are read and where they result. A fibre begins with what is set here.
struct FlushToZero {
#if defined(__SSE2__)
    unsigned before = __builtin_ia32_stmxcsr();
    FlushToZero() { __builtin_ia32_ldmxcsr(before | 0x8040); }  // FTZ and DAZ
    ~FlushToZero() { __builtin_ia32_ldmxcsr(before); }
#elif defined(__aarch64__)
    uint64_t before;
    FlushToZero() {
        asm volatile("mrs %0, fpcr" : "=r"(before));
        asm volatile("msr fpcr, %0" ::"r"(before | 1ull << 24));  // FZ
    }
    ~FlushToZero() { asm volatile("msr fpcr, %0" ::"r"(before)); }
#else
#error "How are denormal numbers flushed on this processor?"
#endif
};

/// Run a grid. `order`: the order in which the threads of a block get their turns; blocks run in ascending order, or descending.
inline const char* launch(void (*kernel)(void**), void** args, const unsigned* grid, const unsigned* block, size_t shared_bytes,
                          const int* order, bool blocks_descending) {
    error[0] = 0;
    body = kernel;
    arguments = args;
    grid_size = {grid[0], grid[1], grid[2]};
    block_size = {block[0], block[1], block[2]};
    threads = int(block[0] * block[1] * block[2]);
    if (threads % WARP != 0 || threads > MAX_THREADS || threads == 0) {
        snprintf(error, sizeof error, "a block of %d threads: here it must be a multiple of 32, at most 1024", threads);
        return error;
    }
    if (!stacks) {
        void* memory = mmap(nullptr, STACK * MAX_THREADS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) {
            snprintf(error, sizeof error, "no memory for the stacks of %d threads", MAX_THREADS);
            return error;
        }
        stacks = static_cast<char*>(memory);
    }
    dynamic_shared_bytes = shared_bytes;
    dynamic_shared = static_cast<char*>(aligned_alloc(128, (shared_bytes + RED_ZONE + 127) / 128 * 128));
    Watch watch;
    FlushToZero flush;
    unsigned long long blocks = 1ull * grid[0] * grid[1] * grid[2];
    for (unsigned long long i = 0; i < blocks && !error[0]; i++) {
        unsigned long long n = blocks_descending ? blocks - 1 - i : i;
        block_index = {unsigned(n % grid[0]), unsigned(n / grid[0] % grid[1]), unsigned(n / grid[0] / grid[1])};
        run_block(order);
    }
    free(dynamic_shared);
    return error;
}

template <auto kernel>
struct Launcher;

/// Unpacks the arguments, and tells of what kind they are: p a pointer, i an int, l a 64-bit integer, f a float, u unsigned.
template <typename... P, void (*kernel)(P...)>
struct Launcher<kernel> {
    template <typename T>
    static constexpr char kind() {
        if (std::is_pointer_v<T>) return 'p';
        if (std::is_same_v<T, float>) return 'f';
        if (std::is_same_v<T, int>) return 'i';
        if (std::is_same_v<T, unsigned>) return 'u';
        if (std::is_integral_v<T> && sizeof(T) == 8) return 'l';
        return '?';
    }
    static constexpr char text[] = {kind<std::remove_cv_t<P>>()..., 0};
    static const char* kinds() { return text; }
    template <size_t... I>
    static void call(void** args, std::index_sequence<I...>) {
        kernel(*static_cast<std::remove_cv_t<P>*>(args[I])...);
    }
    static void run(void** args) { call(args, std::index_sequence_for<P...>()); }
};

// Libraries made from other sources are loaded beside this one: they see nothing of it but these two functions.
#define CUDA_ON_CPU_EXPORT extern "C" __attribute__((visibility("default")))

struct Entry {
    void (*run)(void**);
    const char* kinds;
};
extern const Entry kernels[];  // follows the source: one for each __global__ function

CUDA_ON_CPU_EXPORT const char* cuda_on_cpu_kinds(int number) { return kernels[number].kinds; }

CUDA_ON_CPU_EXPORT const char* cuda_on_cpu_launch(int number, void** args, const unsigned* grid, const unsigned* block,
                                                  size_t shared_bytes, const int* order, bool blocks_descending) {
    return launch(kernels[number].run, args, grid, block, shared_bytes, order, blocks_descending);
}

}  // namespace cuda_on_cpu

#define threadIdx (cuda_on_cpu::running->index)
#define blockIdx (cuda_on_cpu::block_index)
#define blockDim (cuda_on_cpu::block_size)
#define gridDim (cuda_on_cpu::grid_size)

inline void __syncthreads() { cuda_on_cpu::sync_block(); }
inline int lane_number() { return cuda_on_cpu::thread_number() % 32; }
inline void __syncwarp(unsigned mask = 0xffffffffu) { cuda_on_cpu::exchange(mask, 0, 0, "__syncwarp"); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    return cuda_on_cpu::exchange(mask, value, lane_number() / width * width + source % width, "__shfl_sync");
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
    return cuda_on_cpu::exchange(mask, value, lane_number() ^ bits, "__shfl_xor_sync");
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, int delta) {
    int source = lane_number() + delta;
    return cuda_on_cpu::exchange(mask, value, source < 32 ? source : lane_number(), "__shfl_down_sync");
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, int delta) {
    int source = lane_number() - delta;
    return cuda_on_cpu::exchange(mask, value, source >= 0 ? source : lane_number(), "__shfl_up_sync");
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    unsigned votes = predicate ? 1u << lane_number() : 0u;
    for (int bits = 1; bits < 32; bits *= 2) votes |= cuda_on_cpu::exchange(mask, votes, lane_number() ^ bits, "__ballot_sync");
    return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == 0xffffffffu; }

template <typename T>
T atomicAdd(T* address, T value) { T old = *address; *address = old + value; return old; }
template <typename T>
T atomicMax(T* address, T value) { T old = *address; if (value > old) *address = value; return old; }
template <typename T>
T atomicMin(T* address, T value) { T old = *address; if (value < old) *address = value; return old; }
template <typename T>
T atomicExch(T* address, T value) { T old = *address; *address = value; return old; }
template <typename T>
T atomicCAS(T* address, T expected, T value) { T old = *address; if (old == expected) *address = value; return old; }
template <typename T>
T atomicOr(T* address, T value) { T old = *address; *address = old | value; return old; }
inline void __threadfence() {}

template <typename T>
T __ldg(const T* address) { return *address; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
inline int __float_as_int(float x) { return int(__float_as_uint(x)); }
inline float __int_as_float(int x) { return __uint_as_float(unsigned(x)); }
template <typename T>
T min(T a, T b) { return b < a ? b : a; }
template <typename T>
T max(T a, T b) { return a < b ? b : a; }
