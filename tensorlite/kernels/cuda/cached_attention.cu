// Attention of one new token in each text, on the GPU: its queries search the keys of the tokens before it, which are kept in a cache.
//
// A block computes one head of one text:
//     1. rotate the query and the new key, if there are rotary positions; write the new key and value into the cache
//     2. a thread for each key computes scores. A cache of keys is stored column by column, (D, room), so neighbours read neighbours
//     3. softmax, without the division, over the scores, which are in shared memory
//     4. a thread for each of D columns, several times over, adds up values; then the parts are added and divided by the sum of 3.
// A key that a group of heads shares is written by the first of them; blocks cannot wait for each other, so all take the new one from k.
//
// Where a text ends is read from memory, because a CUDA graph is launched again and again with the same arguments: places[text] is the
// position of the new token, or -1 for a text that has none, of which nothing is computed.
//
// q is (texts, H, D), k and v are (texts, KV, D) with `row` numbers from one text to the next: they are parts of one array. keys is
// (texts, KV, D, room), values (texts, KV, room, D), y (texts, H, D); cosines and sines (positions, D/2), or null.
//
// A thread waits for the memory most of the time. So it reads AT_ONCE numbers before it uses the first of them.

#include "common.cuh"

constexpr int D = HEAD_SIZE, TURNS = THREADS / D, AT_ONCE = 32;

// Number d of the head x, rotated by the angles of a position (tensorlite/ops/rotary.py).
__device__ inline float rotated(const float* x, int d, const float* cosines, const float* sines) {
    if (!cosines) return x[d];
    constexpr int half = D / 2;
    int pair = d % half;
    return d < half ? x[d] * cosines[pair] - x[d + half] * sines[pair] : x[d] * cosines[pair] + x[d - half] * sines[pair];
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attend_cached(const float* q, const float* k, const float* v, long long row, const float* cosines, const float* sines,
              const long long* places, float* keys, float* values, float* y, int H, int group, int room, float scale) {
    DYNAMIC_SHARED(float, scores);  // (room,)
    float *query = scores + room, *key = query + D, *parts = key + D;  // (D,), (D,), (THREADS,)
    __shared__ float scratch[WARP];
    int text = blockIdx.x / H, head = blockIdx.x % H, thread = threadIdx.x;
    int place = int(places[text]);
    y += (long long)blockIdx.x * D;
    if (place < 0) {
        if (thread < D) y[thread] = 0;
        return;
    }
    q += text * row + head * D;
    k += text * row + head / group * D;
    v += text * row + head / group * D;
    long long cache = ((long long)text * (H / group) + head / group) * room * D;
    keys += cache;
    values += cache;
    if (cosines) {
        cosines += place * (D / 2);
        sines += place * (D / 2);
    }
    if (thread < D) {
        query[thread] = scale * rotated(q, thread, cosines, sines);
        key[thread] = rotated(k, thread, cosines, sines);
        if (head % group == 0) {
            keys[(long long)thread * room + place] = key[thread];
            values[(long long)place * D + thread] = v[thread];
        }
    }
    __syncthreads();

    float highest = -infinity(), total = 0;
    for (int s = thread; s < place; s += THREADS) {
        float sum = 0;
        for (int first = 0; first < D; first += AT_ONCE) {
            float numbers[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) numbers[i] = first + i < D ? keys[(long long)(first + i) * room + s] : 0;
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) sum += first + i < D ? query[first + i] * numbers[i] : 0;
        }
        scores[s] = sum;
        highest = fmaxf(highest, sum);
    }
    if (thread < WARP) {  // the new one, by one warp
        float sum = 0;
        for (int d = thread; d < D; d += WARP) sum += query[d] * key[d];
        sum = warp_sum(sum);
        if (thread == 0) scores[place] = sum;
        highest = fmaxf(highest, sum);
    }
    highest = block_max(highest, scratch);  // its barriers also let all threads see all scores
    for (int s = thread; s <= place; s += THREADS) {
        scores[s] = power_of_2((scores[s] - highest) * LOG2_E);
        total += scores[s];
    }
    total = block_sum(total, scratch);

    int turn = thread / D, column = thread % D;
    float sum = 0;
    for (int first = turn; turn < TURNS && first < place; first += AT_ONCE * TURNS) {
        float numbers[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int s = first + i * TURNS;
            numbers[i] = s < place ? values[(long long)s * D + column] : 0;
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (first + i * TURNS < place) sum += scores[first + i * TURNS] * numbers[i];
    }
    if (turn == 0) sum += scores[place] * v[column];
    parts[thread] = sum;
    __syncthreads();
    if (thread >= D) return;
#pragma unroll
    for (int i = 1; i < TURNS; i++) sum += parts[i * D + thread];
    y[thread] = sum / total;
}
