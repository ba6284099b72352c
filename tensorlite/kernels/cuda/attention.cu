// Attention on the GPU, without the T x S array of weights. The derivation is in tensorlite/ops/attention.py.
//
// Weights are computed tile by tile, used at once, and not stored. A block owns neighbouring queries (or keys) of one head, 16 M for each
// of its warps, and loops over their keys (or queries), 8 N at a step. `.` is never computed, in `\` the causal mask hides a part:
//
//                  keys →                                  forward, dq: a block owns queries and moves to the right
//                ┌───┬───┬───┬───┐
//      queries   │ \ │ . │ . │ . │                         dk, dv:      a block owns keys and moves down
//         ↓      ├───┼───┼───┼───┤
//                │ → │ \ │ . │ . │  a block of forward     There is a double buffer: the next tile is copied into one half while the
//                ├───┼───┼───┼───┤                         tile in the other half is multiplied. One barrier a step is enough: after
//                │   │ ↓ │ \ │ . │                         it the new tile is complete, and all warps have read the old one.
//                ├───┼───┼───┼───┤
//                │   │ ↓ │   │ \ │
//                └───┴───┴───┴───┘
//                      a block of dk, dv
//
// Softmax divides by the sum over a row, which is known only at the end of the row. So y and the sum are kept separately, both relative to
// the highest score so far. If a tile has a higher one, both are multiplied by the same factor:
//
//      shrink = exp(highest - higher)      sum = shrink sum + Σ exp(s - higher)      y = shrink y + exp(s - higher) · v
//
// Backward computes the weights again, from the scores and one number for each row, log Σ exp. The sum over a row in softmax's gradient is
// delta = Σ dy y, which is computed before. Weights and their gradients are computed twice, for dq and for dk and dv. So one thread
// adds up each number in a fixed order: no atomics, the same bits every time.
//
// Sources: Milakov, Gimelshein 2018, "Online normalizer calculation for softmax"; Dao 2023, "FlashAttention-2".
//
// q is (B, T, H, D) and k and v are (B, S, KV, D) with `row` numbers from one position to the next: they may be parts of a larger array.
// Each of the KV heads of keys serves `group` heads of queries, which are neighbours; a block of dk and dv adds up the gradients of all of
// them. H = KV = 1 with a `group` is a batch of heads with B texts of queries for each B / group of keys.
// y, dy are (B, T, H, D); lse and delta (B, H, padded(T)). Macros: Real, HEAD_SIZE, TENSOR_CORES, DROPOUT, STAGED, each kernel's M, N,
// BLOCKS (on a multiprocessor) and HELD (whether a warp keeps its own tile in registers).

#include "tiles.cuh"

constexpr int D = HEAD_SIZE, WARPS = 4, THREADS = WARPS * WARP;

using Numbers = Tile<Real, D, TENSOR_CORES>;
constexpr int STRIDE = Numbers::STRIDE, DEPTH = Numbers::WIDTH / 8;

// The length of a row of lse and delta. The queries from T on do not exist; their lse is infinite, so their weights are 0.
__device__ inline int padded(int T) { return (T + 63) / 64 * 64; }

// How many keys query t sees, counted from the first key.
__device__ inline int seen_by(int t, int S, bool is_causal) { return is_causal ? min(t + 1, S) : S; }

// The head of a block, and which of its `tiles`. The last tile of a causal text takes the longest. So the last ones of all heads start
// first, and the short ones fill the gaps at the end.
struct Place {
    int head, tile;
    __device__ Place(int tiles) : head(blockIdx.x % (gridDim.x / tiles)), tile(tiles - 1 - blockIdx.x / (gridDim.x / tiles)) {}
};

// Where a head begins in an array of (B, length, H, D) numbers, and how many heads of keys a text has.
__device__ inline long long offset(int head, int length, int H, int row) { return (long long)(head / H) * length * row + head % H * D; }
__device__ inline int heads_of_keys(int H, int group) { return (H + group - 1) / group; }

// Dropout of weights, drawn again wherever a weight is computed: 16 random bits each, a function of the key, the number of the call, the
// head and the position. Eight positions share the 128 bits of one draw: for queries t and t + 8, the keys s, s + 8, s + 16 and s + 24. One
// thread has these positions, whether queries are its rows or its columns.
struct Dropout {
    uint2 key;
    int call, threshold, head;
    float factor;  // for weights that are kept
    __device__ Dropout(const unsigned* key, int call, int threshold, float factor, int head)
        : key(DROPOUT ? make_uint2(key[0], key[1]) : make_uint2(0, 0)), call(call), threshold(threshold), head(head), factor(factor) {}

    // Bit 4i + j says whether (t + 8i, s + 8j) is kept, if this is one of the eight positions that share a draw with (t, s).
    __device__ unsigned kept(int t, int s) const {
        if constexpr (!DROPOUT) return ~0u;
        uint4 bits = philox(key, make_uint4(t / 16 * 8 + t % 8, s / 32 * 8 + s % 8, call, head));
        unsigned words[4] = {bits.x, bits.y, bits.z, bits.w}, mask = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) mask |= unsigned(int(words[i / 2] >> i % 2 * 16 & 0xffff) >= threshold) << i;
        return mask >> (t / 8 % 2 * 4 + s / 8 % 4);
    }
};

// Scores that the causal mask hides, or whose key does not exist, become -infinity. The tile begins at query t and key s.
template <int M, int N>
__device__ inline void hide(float (&scores)[M][N][4], int t, int s, int S, bool is_causal) {
#pragma unroll
    for (int i = 0; i < 2 * M; i++) {
        int seen = seen_by(t + row_of(i / 2, i % 2), S, is_causal) - s - column_of(0, 0);
#pragma unroll
        for (int j = 0; j < 2 * N; j++)
            if (8 * (j / 2) + j % 2 >= seen) scores[i / 2][j / 2][2 * (i % 2) + j % 2] = -infinity();
    }
}

// Sums and maxima over a row of a product, which is spread over four neighbouring threads.
__device__ inline float row_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}
__device__ inline float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

// Write a warp's rows, each times its factor; only rows that exist.
template <int M>
__device__ inline void write(Real* to, long long row_stride, int rows, const float (&c)[M][DEPTH][4], const float (&factor)[M][2]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            if (row_of(m, half) < rows)
#pragma unroll
                for (int d = 0; d < DEPTH; d++)
                    if (8 * d < D)
                        store2(to + row_of(m, half) * row_stride + column_of(d, 0), c[m][d][2 * half] * factor[m][half],
                               c[m][d][2 * half + 1] * factor[m][half]);
}

extern "C" __global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS)
attention_forward(const Real* q, const Real* k, const Real* v, Real* y, float* lse, int T, int S, int H, int group, int row, float scale,
                  int is_causal, const unsigned* key, int call, int threshold, float kept_factor) {
    constexpr int M = FORWARD_M, N = FORWARD_N, GROUPS = (N + 3) / 4, OWN = 16 * M * WARPS, STEP = 8 * N;
    DYNAMIC_SHARED(Real, queries);  // (OWN, STRIDE)
    Real *keys = queries + OWN * STRIDE, *values = keys + 2 * STEP * STRIDE;  // (2, STEP, STRIDE) each

    Place here((T + OWN - 1) / OWN);
    int first = here.tile * OWN, mine = first + threadIdx.x / WARP * 16 * M;  // the first query of the block, and of the warp
    int last_seen = seen_by(min(first + OWN, T) - 1, S, is_causal);
    k += offset(here.head / group, S, heads_of_keys(H, group), row);
    v += offset(here.head / group, S, heads_of_keys(H, group), row);
    Numbers::copy<OWN, THREADS>(queries, q + offset(here.head, T, H, row) + (long long)first * row, row, T - first);
    Numbers::copy<STEP, THREADS>(keys, k, row, S);
    Numbers::copy<STEP, THREADS>(values, v, row, S);

    Dropout dropout(key, call, threshold, kept_factor, here.head);
    float out[M][DEPTH][4] = {}, highest[M][2], sum[M][2] = {};
    for (int i = 0; i < 2 * M; i++) highest[i / 2][i % 2] = -infinity();
    float to_power = scale * LOG2_E;
    wait_for_copies();
    __syncthreads();
    Numbers::Left<M, FORWARD_HELD> my_queries(queries + (mine - first) * STRIDE);
    for (int s0 = 0, buffer = 0; s0 < last_seen; s0 += STEP, buffer ^= 1) {
        wait_for_copies();
        __syncthreads();
        if (s0 + STEP < last_seen) {
            int next = s0 + STEP, place = (buffer ^ 1) * STEP * STRIDE;
            Numbers::copy<STEP, THREADS>(keys + place, k + (long long)next * row, row, S - next);
            Numbers::copy<STEP, THREADS>(values + place, v + (long long)next * row, row, S - next);
        }
        if (s0 >= seen_by(mine + 16 * M - 1, S, is_causal)) continue;  // this warp's queries see none of these

        float scores[M][N][4] = {};
        Numbers::multiply_abt(scores, my_queries, keys + buffer * STEP * STRIDE);
        if (s0 + STEP > seen_by(mine, S, is_causal)) hide(scores, mine, s0, S, is_causal);

#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float higher = highest[m][half], added = 0;
#pragma unroll
                for (int n = 0; n < N; n++) higher = fmaxf(higher, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
                higher = row_max(higher);
                float shrink = power_of_2((highest[m][half] - higher) * to_power), shift = higher * to_power;
#pragma unroll
                for (int i = 0; i < 2 * N; i++) {
                    float& x = scores[m][i / 2][2 * half + i % 2];
                    x = power_of_2(fmaf(x, to_power, -shift));
                    added += x;
                }
                highest[m][half] = higher;
                sum[m][half] = sum[m][half] * shrink + added;  // of this thread's columns
#pragma unroll
                for (int i = 0; i < 2 * DEPTH; i++) out[m][i / 2][2 * half + i % 2] *= shrink;
            }
        if constexpr (DROPOUT)  // after the sum: weights that are dropped count in it
#pragma unroll
            for (int i = 0; i < 2 * M * GROUPS; i++) {
                int m = i / (2 * GROUPS), group = i / 2 % GROUPS * 4;
                unsigned kept = dropout.kept(mine + row_of(m, 0), s0 + column_of(group, i % 2));
#pragma unroll
                for (int n = group; n < min(group + 4, N); n++) {
                    if (!(kept >> (n - group) & 1)) scores[m][n][i % 2] = 0;
                    if (!(kept >> (n - group + 4) & 1)) scores[m][n][2 + i % 2] = 0;
                }
            }
        Numbers::multiply_ab(out, scores, values + buffer * STEP * STRIDE);
    }

    float inverse[M][2];
    for (int m = 0; m < M; m++)
        for (int half = 0; half < 2; half++) {
            float total = row_sum(sum[m][half]);
            inverse[m][half] = dropout.factor / total;
            int t = mine + row_of(m, half);
            if (t < padded(T) && lane() % 4 == 0)
                lse[(long long)here.head * padded(T) + t] = t < T ? highest[m][half] * to_power + log2f(total) : infinity();
        }
    long long y_row = H * D;
    write(y + offset(here.head, T, H, y_row) + mine * y_row, y_row, T - mine, out, inverse);
}

// delta = Σ dy y, row by row. A warp owns four rows of D numbers: eight threads read a row.
extern "C" __global__ void attention_delta(const Real* dy, const Real* y, float* delta, int T, int H, int rows) {
    long long place = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / 8, head = place / padded(T), t = place % padded(T);
    float sum = 0;
    if (place < rows && t < T) {
        long long row = (head / H * T + t) * H + head % H;
        for (int d = threadIdx.x % 8 * 4; d < D; d += 32) {
            float4 a = load4(dy + row * D + d), b = load4(y + row * D + d);
            sum += a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
        }
    }
    for (int distance = 4; distance > 0; distance /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, distance);
    if (place < rows && threadIdx.x % 8 == 0) delta[place] = sum;
}

// The gradient of a weight and of its score, where the score was s:   p = 2^(s scale log₂ e - lse)   ds = p (dp - delta).

extern "C" __global__ void __launch_bounds__(THREADS, Q_BLOCKS)
attention_backward_q(const Real* q, const Real* k, const Real* v, const Real* dy, const float* lse, const float* delta, Real* dq, int T,
                     int S, int H, int group, int row, float scale,
                  int is_causal, const unsigned* key, int call, int threshold, float kept_factor) {
    constexpr int M = Q_M, N = Q_N, GROUPS = (N + 3) / 4, OWN = 16 * M * WARPS, STEP = 8 * N;
    DYNAMIC_SHARED(Real, queries);  // (OWN, STRIDE), as `changes`, their dy
    Real *changes = queries + OWN * STRIDE, *keys = changes + OWN * STRIDE, *values = keys + 2 * STEP * STRIDE;

    Place here((T + OWN - 1) / OWN);
    int first = here.tile * OWN, mine = first + threadIdx.x / WARP * 16 * M, y_row = H * D;
    int last_seen = seen_by(min(first + OWN, T) - 1, S, is_causal);
    k += offset(here.head / group, S, heads_of_keys(H, group), row);
    v += offset(here.head / group, S, heads_of_keys(H, group), row);
    Numbers::copy<OWN, THREADS>(queries, q + offset(here.head, T, H, row) + (long long)first * row, row, T - first);
    Numbers::copy<OWN, THREADS>(changes, dy + offset(here.head, T, H, y_row) + (long long)first * y_row, y_row, T - first);
    Numbers::copy<STEP, THREADS>(keys, k, row, S);
    Numbers::copy<STEP, THREADS>(values, v, row, S);

    Dropout dropout(key, call, threshold, kept_factor, here.head);
    float out[M][DEPTH][4] = {}, row_lse[M][2], row_delta[M][2], to_power = scale * LOG2_E;
    lse += (long long)here.head * padded(T);
    delta += (long long)here.head * padded(T);
    for (int i = 0; i < 2 * M; i++) {  // the tile may reach further than the rows of these two
        int t = mine + row_of(i / 2, i % 2);
        row_lse[i / 2][i % 2] = t < T ? lse[t] : infinity();
        row_delta[i / 2][i % 2] = t < T ? delta[t] : 0;
    }
    wait_for_copies();
    __syncthreads();
    Numbers::Left<M, Q_HELD> my_queries(queries + (mine - first) * STRIDE), my_changes(changes + (mine - first) * STRIDE);
    for (int s0 = 0, buffer = 0; s0 < last_seen; s0 += STEP, buffer ^= 1) {
        wait_for_copies();
        __syncthreads();
        if (s0 + STEP < last_seen) {
            int next = s0 + STEP, place = (buffer ^ 1) * STEP * STRIDE;
            Numbers::copy<STEP, THREADS>(keys + place, k + (long long)next * row, row, S - next);
            Numbers::copy<STEP, THREADS>(values + place, v + (long long)next * row, row, S - next);
        }
        if (s0 >= seen_by(mine + 16 * M - 1, S, is_causal)) continue;

        float p[M][N][4] = {}, ds[M][N][4] = {};
        Numbers::multiply_abt(p, my_queries, keys + buffer * STEP * STRIDE);
        if (s0 + STEP > seen_by(mine, S, is_causal)) hide(p, mine, s0, S, is_causal);
        Numbers::multiply_abt(ds, my_changes, values + buffer * STEP * STRIDE);  // dp as yet
#pragma unroll
        for (int i = 0; i < 2 * M * GROUPS; i++) {
            int m = i / (2 * GROUPS), group = i / 2 % GROUPS * 4;
            unsigned kept = dropout.kept(mine + row_of(m, 0), s0 + column_of(group, i % 2));
#pragma unroll
            for (int n = group; n < min(group + 4, N); n++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float weight = power_of_2(fmaf(p[m][n][2 * half + i % 2], to_power, -row_lse[m][half]));
                    float& x = ds[m][n][2 * half + i % 2];
                    x = weight * ((kept >> (n - group + 4 * half) & 1 ? x * dropout.factor : 0) - row_delta[m][half]);
                }
        }
        Numbers::multiply_ab(out, ds, keys + buffer * STEP * STRIDE);
    }

    float factor[M][2];
    for (int i = 0; i < 2 * M; i++) factor[i / 2][i % 2] = scale;
    write(dq + offset(here.head, T, H, row) + (long long)mine * row, row, T - mine, out, factor);
}

// Here everything is transposed: a row of p and of ds is a key, a column is a query.
extern "C" __global__ void __launch_bounds__(THREADS, KV_BLOCKS)
attention_backward_kv(const Real* q, const Real* k, const Real* v, const Real* dy, const float* lse, const float* delta, Real* dk, Real* dv,
                      int T, int S, int H, int group, int row, float scale,
                  int is_causal, const unsigned* key, int call, int threshold, float kept_factor) {
    constexpr int M = KV_M, N = KV_N, OWN = 16 * M * WARPS, STEP = 8 * N;
    DYNAMIC_SHARED(Real, keys);  // (OWN, STRIDE), as `values`
    Real *values = keys + OWN * STRIDE, *queries = values + OWN * STRIDE, *changes = queries + 2 * STEP * STRIDE;
    float *lse_tile = reinterpret_cast<float*>(changes + 2 * STEP * STRIDE), *delta_tile = lse_tile + 2 * STEP;  // (2, STEP) each, if STAGED

    int tiles = (S + OWN - 1) / OWN;
    Place here(tiles);
    int first = (tiles - 1 - here.tile) * OWN, mine = first + threadIdx.x / WARP * 16 * M, y_row = H * D;  // here the first has most to do
    int start = is_causal ? first / STEP * STEP : 0;  // queries before see none of these keys
    long long own = offset(here.head, S, heads_of_keys(H, group), row) + (long long)first * row;
    Numbers::copy<OWN, THREADS>(keys, k + own, row, S - first);
    Numbers::copy<OWN, THREADS>(values, v + own, row, S - first);
    // The queries of the `group` heads that share these keys, one head after the other. STAGED: their lse and delta come with each tile.
    int head = here.head * group;
    long long next_q = offset(1, T, H, row), next_dy = offset(1, T, H, y_row);  // from one of these heads to the next
    q += offset(head, T, H, row), dy += offset(head, T, H, y_row);
    lse += (long long)head * padded(T), delta += (long long)head * padded(T);
    auto load = [&](int number, int t0, int buffer) {
        int place = buffer * STEP * STRIDE;
        Numbers::copy<STEP, THREADS>(queries + place, q + number * next_q + (long long)t0 * row, row, T - t0);
        Numbers::copy<STEP, THREADS>(changes + place, dy + number * next_dy + (long long)t0 * y_row, y_row, T - t0);
        int four = threadIdx.x * 4, from = number * padded(T) + t0 + four;
        if (STAGED && four < STEP) copy_16_bytes(lse_tile + buffer * STEP + four, lse + from, true);
        if (STAGED && four < STEP) copy_16_bytes(delta_tile + buffer * STEP + four, delta + from, true);
    };
    int number = 0, t0 = start, heads = start < T ? group : 0;
    if (heads > 0) load(number, t0, 0);
    wait_for_copies();
    __syncthreads();
    Numbers::Left<M, KV_HELD> my_keys(keys + (mine - first) * STRIDE), my_values(values + (mine - first) * STRIDE);

    float sum_k[M][DEPTH][4] = {}, sum_v[M][DEPTH][4] = {}, to_power = scale * LOG2_E;
    for (int buffer = 0, next_number, next; number < heads; number = next_number, t0 = next, buffer ^= 1) {
        bool is_last = t0 + STEP >= T;
        next_number = number + is_last, next = is_last ? start : t0 + STEP;
        wait_for_copies();
        __syncthreads();
        if (next_number < heads) load(next_number, next, buffer ^ 1);
        if (is_causal && t0 + STEP <= mine) continue;  // none of these queries sees one of this warp's keys

        float p[M][N][4] = {}, ds[M][N][4] = {};
        Numbers::multiply_abt(p, my_keys, queries + buffer * STEP * STRIDE);
        if (is_causal && t0 < mine + 16 * M - 1)
#pragma unroll
            for (int i = 0; i < 2 * M; i++) {
                int hidden = mine + row_of(i / 2, i % 2) - t0 - column_of(0, 0);
#pragma unroll
                for (int j = 0; j < 2 * N; j++)
                    if (8 * (j / 2) + j % 2 < hidden) p[i / 2][j / 2][2 * (i % 2) + j % 2] = -infinity();
            }
        Numbers::multiply_abt(ds, my_values, changes + buffer * STEP * STRIDE);  // dp as yet
        Dropout dropout(key, call, threshold, kept_factor, head + number);
        const float* row_lse = STAGED ? lse_tile + buffer * STEP : lse + (long long)number * padded(T) + t0;
        const float* row_delta = STAGED ? delta_tile + buffer * STEP : delta + (long long)number * padded(T) + t0;
        unsigned kept[2] = {};
#pragma unroll
        for (int n = 0; n < N; n++) {  // two columns, which are queries t and t + 1
            int column = column_of(n, 0), t = t0 + column;
            float2 pair_lse = *reinterpret_cast<const float2*>(row_lse + column);
            float2 pair_delta = *reinterpret_cast<const float2*>(row_delta + column);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (n % 2 == 0) kept[i] = dropout.kept(t + i, mine + row_of(0, 0));  // and of t + i + 8
#pragma unroll
                for (int j = 0; j < 2 * M; j++) {
                    float &weight = p[j / 2][n][j % 2 * 2 + i], &x = ds[j / 2][n][j % 2 * 2 + i];
                    weight = power_of_2(fmaf(weight, to_power, -(i ? pair_lse.y : pair_lse.x)));
                    bool is_kept = kept[i] >> (j + 4 * (n % 2)) & 1;
                    x = weight * ((is_kept ? x * dropout.factor : 0) - (i ? pair_delta.y : pair_delta.x));
                    weight = is_kept ? weight : 0;
                }
            }
        }
        Numbers::multiply_ab(sum_v, p, changes + buffer * STEP * STRIDE);
        Numbers::multiply_ab(sum_k, ds, queries + buffer * STEP * STRIDE);
    }

    float factor[M][2];
    for (int i = 0; i < 2 * M; i++) factor[i / 2][i % 2] = kept_factor;
    long long at = own + (long long)(mine - first) * row;
    write(dv + at, row, S - mine, sum_v, factor);
    for (int i = 0; i < 2 * M; i++) factor[i / 2][i % 2] = scale;
    write(dk + at, row, S - mine, sum_k, factor);
}
