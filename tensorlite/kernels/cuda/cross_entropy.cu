// Cross-entropy of rows of logits on the GPU. The derivation is in tensorlite/ops/cross_entropy.py.
//
// A block owns a row of V logits. The probabilities are never stored: forward needs only log Σ exp(x), and backward computes
// p = exp(x - log Σ exp(x)) and writes (p - q) · dy / rows directly.
//
// log Σ exp(x) takes one pass over the row: each thread keeps the largest logit so far and the sum of the exponentials
// relative to it. When a larger logit comes, the sum is scaled down. Two such pairs are combined in the same way, first
// between lanes, then between warps.
//
// Memory traffic limits these kernels. So a row is read 16 bytes at a time, and each thread has several reads in flight. A row may begin
// at any address: the numbers before the first multiple of 16 bytes, and after the last, are read one by one. The distance from one row
// to the next is `stride` numbers, of which the first V are logits.

#include "common.cuh"

constexpr int WIDE = 16 / sizeof(Real), UNDER_WAY = 4;

// The parts of a row: up to `first` and from `last` on number by number, between them in `chunks` of WIDE numbers.
struct Parts {
    int first, chunks, last;
    __device__ Parts(const Real* row, int V)
        : first(min(int(-reinterpret_cast<unsigned long long>(row) % 16 / sizeof(Real)), V)), chunks((V - first) / WIDE),
          last(first + chunks * WIDE) {}
    // The i-th of the numbers that are read one by one.
    __device__ int single(int i) const { return i < first ? i : i - first + last; }
};

// Σ exp(x) = sum · exp(most). Relative to 0 where everything so far is -inf: exp(-inf - -inf) would be nan.
struct LogSum {
    float most, sum;
    __device__ static float relative_to(float most) { return most == -infinity() ? 0.0f : most; }

    template <int N>
    __device__ void add(const float (&x)[N]) {
        float higher = most;
#pragma unroll
        for (int i = 0; i < N; i++) higher = fmaxf(higher, x[i]);
        float origin = relative_to(higher);
        sum *= power_of_2((most - origin) * LOG2_E);
#pragma unroll
        for (int i = 0; i < N; i++) sum += power_of_2((x[i] - origin) * LOG2_E);
        most = higher;
    }
};

__device__ inline LogSum join(LogSum a, LogSum b) {
    float most = fmaxf(a.most, b.most), origin = LogSum::relative_to(most);
    return {most, a.sum * expf(a.most - origin) + b.sum * expf(b.most - origin)};
}

__device__ inline LogSum warp_join(LogSum a) {
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        a = join(a, {__shfl_xor_sync(ALL_LANES, a.most, distance), __shfl_xor_sync(ALL_LANES, a.sum, distance)});
    return a;
}

// loss[row] = log Σ exp(x) - x[target], or with smoothing ε: log Σ exp(x) - (1 - ε) x[target] - ε mean(x).
extern "C" __global__ void cross_entropy_rows(const Real* x, const long long* target, float* log_sum, float* loss, int V, int stride,
                                              long long ignore_index, float smoothing) {
    __shared__ float most[WARP], sums[WARP], scratch[WARP];
    int row = blockIdx.x, threads = blockDim.x, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = threads / WARP;
    x += (long long)row * stride;

    LogSum mine = {-infinity(), 0.0f};
    float total = 0;
    Parts parts(x, V);
    for (int c = threadIdx.x; c < parts.chunks; c += UNDER_WAY * threads) {
        Chunk<Real> chunks[UNDER_WAY];
#pragma unroll
        for (int i = 0; i < UNDER_WAY; i++)
            if (c + i * threads < parts.chunks) chunks[i] = load_chunk(x + parts.first + (c + i * threads) * WIDE);
#pragma unroll
        for (int i = 0; i < UNDER_WAY; i++) {
            if (c + i * threads >= parts.chunks) break;
            float logits[WIDE];
#pragma unroll
            for (int j = 0; j < WIDE; j++) logits[j] = load(chunks[i].numbers[j]);
            mine.add(logits);
            if (smoothing > 0)
                for (int j = 0; j < WIDE; j++) total += logits[j];
        }
    }
    for (int i = threadIdx.x; i < V - parts.chunks * WIDE; i += threads) {
        float logit[1] = {load(x[parts.single(i)])};
        mine.add(logit);
        total += logit[0];
    }
    mine = warp_join(mine);
    if (lane == 0) {
        most[warp] = mine.most;
        sums[warp] = mine.sum;
    }
    __syncthreads();
    mine = {-infinity(), 0.0f};
    if (lane < warps) mine = {most[lane], sums[lane]};
    mine = warp_join(mine);
    float lse = mine.most + logf(mine.sum);
    if (smoothing > 0) total = block_sum(total, scratch);

    if (threadIdx.x == 0) {
        long long t = target[row];
        bool is_class = t >= 0 && t < V;  // the loss of an invalid target that is not ignored is nan
        float at_target = is_class ? load(x[t]) : __int_as_float(0x7fffffff);
        float nats = lse - (1 - smoothing) * at_target;
        if (smoothing > 0) nats -= smoothing * total / V;
        log_sum[row] = lse;
        loss[row] = t == ignore_index ? 0.0f : nats;
    }
}

// One block: the sum of the losses of all rows, and the number of rows that are not ignored.
extern "C" __global__ void cross_entropy_total(const float* loss, const long long* target, float* total, float* count, int is_mean, int rows,
                                               long long ignore_index) {
    __shared__ float scratch[WARP];
    float sum = 0, kept = 0;
    for (int row = threadIdx.x; row < rows; row += blockDim.x) {
        sum += loss[row];
        kept += target[row] != ignore_index;
    }
    sum = block_sum(sum, scratch);
    kept = block_sum(kept, scratch);
    if (threadIdx.x == 0) {
        count[0] = kept;
        total[0] = sum / (is_mean ? kept : 1.0f);
    }
}

// dx = (p - q) dy / count. dy has one number for all rows (dy_step 0), or one for each row (1); without a count it is 1. Ignored rows
// get 0, whatever they hold.
extern "C" __global__ void cross_entropy_backward(const float* dy, int dy_step, const Real* x, const long long* target, const float* log_sum,
                                                  const float* count, Real* dx, int V, int stride, int dx_stride, long long ignore_index,
                                                  float smoothing) {
    int row = blockIdx.x, threads = blockDim.x;
    long long t = target[row];
    bool counts = t != ignore_index;
    float lse = log_sum[row], scale = dy[row * dy_step] / (count ? count[0] : 1.0f), smooth = smoothing / V;
    x += (long long)row * stride;
    dx += (long long)row * dx_stride;
    auto gradient = [&](float logit) { return counts ? (power_of_2((logit - lse) * LOG2_E) - smooth) * scale : 0.0f; };

    Parts parts(dx, V);
    if (reinterpret_cast<unsigned long long>(x + parts.first) % 16) {  // x and dx are aligned differently: read all numbers one by one
        parts.chunks = 0;
        parts.last = parts.first;
    }
    for (int c = threadIdx.x; c < parts.chunks; c += UNDER_WAY * threads) {
        Chunk<Real> chunks[UNDER_WAY];
#pragma unroll
        for (int i = 0; i < UNDER_WAY; i++)
            if (c + i * threads < parts.chunks) chunks[i] = load_chunk(x + parts.first + (c + i * threads) * WIDE);
#pragma unroll
        for (int i = 0; i < UNDER_WAY; i++) {
            if (c + i * threads >= parts.chunks) break;
#pragma unroll
            for (int j = 0; j < WIDE; j++) store(chunks[i].numbers[j], gradient(load(chunks[i].numbers[j])));
            store_chunk(dx + parts.first + (c + i * threads) * WIDE, chunks[i]);
        }
    }
    for (int i = threadIdx.x; i < V - parts.chunks * WIDE; i += threads) {
        int v = parts.single(i);
        store(dx[v], gradient(load(x[v])));
    }
    __syncthreads();  // the number of the target is written again, because only there q has the term 1 - ε
    if (threadIdx.x == 0 && counts && t >= 0 && t < V)
        store(dx[t], (power_of_2((load(x[t]) - lse) * LOG2_E) - smooth - (1 - smoothing)) * scale);
}
