// Cross-entropy of rows of logits on the GPU. The mathematics is told in tensorlite/ops/cross_entropy.py.
//
// A block owns a row of V logits. The probabilities are never stored: forward needs log Σ exp(x) only, backward makes
// p = exp(x - log Σ exp(x)) again, and writes (p - q) · dy / rows straight over what would have been their place.
//
// log Σ exp(x) is found in one pass over the row: each thread keeps the largest logit it has seen and the sum of the exponentials
// relative to it, and when a larger one comes, the sum so far is scaled down. Two such pairs are joined in the same way, first
// between lanes, then between warps.

#include "common.cuh"

struct LogSum {
    float most, sum;  // Σ exp(x) = sum · exp(most)
};

__device__ inline LogSum join(LogSum a, LogSum b) {
    float most = fmaxf(a.most, b.most);
    if (most == -infinity()) return {most, 0.0f};  // nothing seen on either side: exp(-inf - -inf) would be NaN
    return {most, a.sum * expf(a.most - most) + b.sum * expf(b.most - most)};
}

__device__ inline LogSum warp_join(LogSum a) {
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        a = join(a, {__shfl_xor_sync(ALL_LANES, a.most, distance), __shfl_xor_sync(ALL_LANES, a.sum, distance)});
    return a;
}

// loss[row] = log Σ exp(x) - x[target], or with smoothing ε: log Σ exp(x) - (1 - ε) x[target] - ε mean(x).
extern "C" __global__ void cross_entropy_rows(const Real* x, const long long* target, float* log_sum, float* loss, int V,
                                              long long ignore_index, float smoothing) {
    __shared__ float most[WARP], sums[WARP], scratch[WARP];
    int row = blockIdx.x, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x += (long long)row * V;

    LogSum mine = {-infinity(), 0.0f};
    float total = 0;
    for (int v = threadIdx.x; v < V; v += blockDim.x) {
        float logit = load(x[v]);
        if (logit > mine.most) {
            mine.sum *= expf(mine.most - logit);
            mine.most = logit;
        }
        mine.sum += logit == mine.most ? 1.0f : expf(logit - mine.most);  // also where both are infinite
        total += logit;
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
        bool is_class = t >= 0 && t < V;  // a target that is none, and is not ignored, is loud: its loss is not a number
        float at_target = is_class ? load(x[t]) : __int_as_float(0x7fffffff);
        float nats = lse - (1 - smoothing) * at_target;
        if (smoothing > 0) nats -= smoothing * total / V;
        log_sum[row] = lse;
        loss[row] = t == ignore_index ? 0.0f : nats;
    }
}

// One block: the sum of the rows' losses, and how many of them count.
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

// dx = (p - q) dy / count. dy has one number for all rows (dy_step 0), or one a row (1); without a count it is 1.
extern "C" __global__ void cross_entropy_backward(const float* dy, int dy_step, const Real* x, const long long* target, const float* log_sum,
                                                  const float* count, Real* dx, int V, long long ignore_index, float smoothing) {
    int row = blockIdx.x;
    long long t = target[row];
    float lse = log_sum[row], scale = t == ignore_index ? 0.0f : dy[row * dy_step] / (count ? count[0] : 1.0f);
    x += (long long)row * V;
    dx += (long long)row * V;
    for (int v = threadIdx.x; v < V; v += blockDim.x) {
        float q = smoothing / V + (v == t ? 1 - smoothing : 0.0f);
        store(dx[v], (expf(load(x[v]) - lse) - q) * scale);
    }
}
