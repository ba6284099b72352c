// Products of tiles, by one warp, from shared memory into its registers.
//
// A tile in shared memory has rows of `Tile::STRIDE` numbers: WIDTH numbers that are used, and 16 bytes of padding, which distribute
// neighbouring rows over the memory's 32 banks. Without them eight threads that read eight rows would wait for the same bank.
//
// A product in registers is `float c[M][N][4]`: 16 M rows and 8 N columns, cut into M × N tiles of 16 × 8 as mma.cuh draws them, so
// that a thread holds in c[m][n] four numbers, at
//
//      rows     16 m + lane / 4, and 8 rows lower (c[..][0], c[..][1] and c[..][2], c[..][3])
//      columns  8 n + lane % 4 * 2, and the next
//
// Attention needs two products. Each has a version for tensor cores and one in plain float32:
//
//      multiply_abt     c += a · bᵀ     a and b in shared memory; the axis of the sum is contiguous in both
//      multiply_ab      c += p · b      p is such a product in registers, and stays there; b in shared memory

#pragma once
#include "mma.cuh"

__device__ inline int lane() { return threadIdx.x % WARP; }
__device__ inline int row_of(int m, int half) { return 16 * m + 8 * half + lane() / 4; }   // of c[m][..][2 * half + ..]
__device__ inline int column_of(int n, int i) { return 8 * n + lane() % 4 * 2 + i; }       // of c[..][n][i] and c[..][n][2 + i]

// T: the storage type; D: the numbers in a row; ON_TENSOR_CORES: whether tensor cores multiply. Float32 on tensor cores is tf32.
template <typename T, int D, bool ON_TENSOR_CORES>
struct Tile {
    static constexpr int CHUNK = 16 / sizeof(T);                                  // numbers in 16 bytes
    static constexpr int WIDTH = sizeof(T) == 2 ? (D + 15) / 16 * 16 : D;         // one mma takes 32 bytes of a row
    static constexpr int STRIDE = WIDTH + CHUNK;

    // Begin to copy a tile of ROWS rows, of which only the first `rows` exist; the others become zeros, and their addresses are not read.
    // All threads of the block take part.
    //
    // If the threads fill whole rows, each stays in its column and moves down by the same number of rows. Its addresses then differ by
    // constants. Otherwise row and column are computed for every 16 bytes.
    template <int ROWS, int THREADS>
    static __device__ void copy(T* tile, const T* source, long long row_stride, int rows) {
        constexpr int CHUNKS = WIDTH / CHUNK, TOTAL = ROWS * CHUNKS;  // of 16 bytes: in a row, and in the tile
        if constexpr (THREADS % CHUNKS == 0 && TOTAL % THREADS == 0) {
            constexpr int DOWN = THREADS / CHUNKS;
            int row = threadIdx.x / CHUNKS, column = threadIdx.x % CHUNKS * CHUNK;
            tile += row * STRIDE + column;
            const T* from = source + row * row_stride + column;
#pragma unroll
            for (int i = 0; i < ROWS / DOWN; i++) {
                bool there = row + i * DOWN < rows && column < D;
                copy_16_bytes(tile + i * DOWN * STRIDE, from + i * DOWN * row_stride, there);
            }
        } else {
            for (int i = threadIdx.x; i < TOTAL; i += THREADS) {
                int row = i / CHUNKS, column = i % CHUNKS * CHUNK;
                bool there = row < rows && column < D;
                copy_16_bytes(tile + row * STRIDE + column, source + row * row_stride + column, there);
            }
        }
    }

    // The left factor of multiply_abt: 16 M rows in shared memory. A tile that is multiplied often can be HELD: read only once, into
    // the registers from which mma reads.
    template <int M, bool HELD = false>
    struct Left {
        const T* rows;
        unsigned held[HELD ? WIDTH / CHUNK / 2 : 1][M][4];

        // If it is held, the tile must be complete.
        __device__ explicit Left(const T* rows) : rows(rows) {
            if constexpr (HELD)
#pragma unroll
                for (int k = 0; k < WIDTH; k += 2 * CHUNK) load(held[k / CHUNK / 2], k);
        }
        // The columns k to k + 2 CHUNK, in the registers of mma.
        __device__ void take(unsigned (&words)[M][4], int k) const {
            if constexpr (HELD)
#pragma unroll
                for (int i = 0; i < 4 * M; i++) words[i / 4][i % 4] = held[k / CHUNK / 2][i / 4][i % 4];
            else
                load(words, k);
        }
        __device__ void load(unsigned (&words)[M][4], int k) const {
#pragma unroll
            for (int m = 0; m < M; m++) {
                load_matrices(words[m], rows + (16 * m + lane() % 16) * STRIDE + lane() / 16 * CHUNK + k);
                round_words(words[m]);
            }
        }
    };

    // c += a · bᵀ:   a has 16 M rows, b has 8 N.
    template <int M, int N>
    static __device__ void multiply_abt(float (&c)[M][N][4], const T* a, const T* b) { multiply_abt(c, Left<M>(a), b); }

    template <int M, int N, bool HELD>
    static __device__ void multiply_abt(float (&c)[M][N][4], const Left<M, HELD>& a, const T* b) {
        static_assert(N % 2 == 0, "load_matrices brings two tiles of b at once");
        if constexpr (ON_TENSOR_CORES) {
            b += (lane() / 16 * 8 + lane() % 8) * STRIDE + lane() / 8 % 2 * CHUNK;
#pragma unroll
            for (int k = 0; k < WIDTH; k += 2 * CHUNK) {
                unsigned left[M][4];
                a.take(left, k);
#pragma unroll
                for (int n = 0; n < N; n += 2) {
                    unsigned words[4];
                    load_matrices(words, b + 8 * n * STRIDE + k);
                    round_words(words);
                    unsigned right[2][2] = {{words[0], words[1]}, {words[2], words[3]}};
#pragma unroll
                    for (int m = 0; m < M; m++) {
                        mma(c[m][n], left[m], right[0], T());
                        mma(c[m][n + 1], left[m], right[1], T());
                    }
                }
            }
        } else {
#pragma unroll 1
            for (int k = 0; k < WIDTH; k += 4) {
                float4 left[M][2];
#pragma unroll
                for (int i = 0; i < 2 * M; i++) left[i / 2][i % 2] = load4(a.rows + row_of(i / 2, i % 2) * STRIDE + k);
#pragma unroll
                for (int n = 0; n < N; n++) {
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        float4 right = load4(b + column_of(n, j) * STRIDE + k);
#pragma unroll
                        for (int i = 0; i < 2 * M; i++) {
                            float4 x = left[i / 2][i % 2];
                            float& sum = c[i / 2][n][i % 2 * 2 + j];
                            sum = fmaf(x.w, right.w, fmaf(x.z, right.z, fmaf(x.y, right.y, fmaf(x.x, right.x, sum))));
                        }
                    }
                }
            }
        }
    }

    // c += p · b:   p has 8 N columns, b has 8 N rows.
    template <int M, int N>
    static __device__ void multiply_ab(float (&c)[M][WIDTH / 8][4], const float (&p)[M][N][4], const T* b) {
        if constexpr (ON_TENSOR_CORES && sizeof(T) == 2) {
            // A thread holds the same elements of two tiles of p as it must hold of a. They are only rounded, and packed two to a word.
            b += lane() % 16 * STRIDE + lane() / 16 * CHUNK;
#pragma unroll
            for (int n = 0; n < N; n += 2) {
                unsigned left[M][4];
#pragma unroll
                for (int i = 0; i < 4 * M; i++) {
                    const float* pair = p[i / 4][n + i % 4 / 2] + i % 2 * 2;
                    left[i / 4][i % 4] = pack(pair[0], pair[1], T());
                }
#pragma unroll
                for (int d = 0; d < WIDTH / 8; d += 2) {
                    unsigned words[4];
                    load_matrices<true>(words, b + 8 * n * STRIDE + 8 * d);
                    unsigned right[2][2] = {{words[0], words[1]}, {words[2], words[3]}};
#pragma unroll
                    for (int m = 0; m < M; m++) {
                        mma(c[m][d], left[m], right[0], T());
                        mma(c[m][d + 1], left[m], right[1], T());
                    }
                }
            }
        } else if constexpr (ON_TENSOR_CORES) {
            // In tf32 p has the columns 2w and 2w + 1 where a needs w and w + 4. A sum may be taken in any order: so call them w and
            // w + 4, and read the rows of b in that order, too.
            b += lane() % 4 * 2 * STRIDE + lane() / 4;
#pragma unroll
            for (int n = 0; n < N; n++) {
                unsigned left[M][4];
#pragma unroll
                for (int i = 0; i < 4 * M; i++) left[i / 4][i % 4] = as_tf32(p[i / 4][n][i % 2 * 2 + i % 4 / 2]);
#pragma unroll
                for (int d = 0; d < WIDTH / 8; d++) {
                    const T* place = b + 8 * n * STRIDE + 8 * d;
                    unsigned right[2] = {as_tf32(load(place[0])), as_tf32(load(place[STRIDE]))};
#pragma unroll
                    for (int m = 0; m < M; m++) mma(c[m][d], left[m], right, T());
                }
            }
        } else {
            // A thread needs whole rows of p, which are distributed over the four threads of its row: they exchange them by shuffles.
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll 1
                for (int owner = 0; owner < 4; owner++) {
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        float left[M][2];
#pragma unroll
                        for (int i = 0; i < 2 * M; i++)
                            left[i / 2][i % 2] = __shfl_sync(ALL_LANES, p[i / 2][n][i % 2 * 2 + j], lane() / 4 * 4 + owner);
                        const T* row = b + (8 * n + 2 * owner + j) * STRIDE;
#pragma unroll
                        for (int d = 0; d < WIDTH / 8; d++) {
                            float right[2] = {load(row[column_of(d, 0)]), load(row[column_of(d, 1)])};
#pragma unroll
                            for (int i = 0; i < 4 * M; i++) {
                                float& sum = c[i / 4][d][i % 4];
                                sum = fmaf(left[i / 4][i % 4 / 2], right[i % 2], sum);
                            }
                        }
                    }
                }
            }
        }
    }

private:
    static __device__ void round_words(unsigned (&words)[4]) {
        if constexpr (sizeof(T) == 4) {
#pragma unroll
            for (int i = 0; i < 4; i++) words[i] = as_tf32(__uint_as_float(words[i]));
        }
    }
};
