// Single-spike LIF neurons (eqs. 6-8) and their back-propagation through time (eqs. 19-23).
//
//     U^t = (leak * U^{t-1} + x^t) - V * 1[U^{t-1} > V]        O^t = 1[U^t > V and never before], NaN where U^t is
//
// Sequences are flat, [steps, size]; states are [size]. A thread owns LANES neighbouring neurons for all steps. Neuron i reads
// element (i / inner) % count of a parameter; without PER_NEURON leak and threshold are one number each, and one partial sum a
// block is enough for their gradients. With it, every neuron writes its own.
//
// T is the number of steps where it is known to the compiler, 0 where it is not: such sequences are taken SEGMENT steps at a
// time. Every operation on U rounds on its own (no fused multiply-add), which makes spikes equal to every other backend's.

#include <cuda_fp16.h>

typedef long long index_t;

constexpr int SEGMENT = 16;
constexpr int MAX_BLOCK = 128;

// Spelled out because older installs of CuPy bring cuda_fp16.h but not cuda_bf16.h.
struct bfloat16 {
    unsigned short bits;
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(bfloat16 x) { return __uint_as_float((unsigned int)x.bits << 16); }

__device__ inline void from_float(float x, float& out) { out = x; }
__device__ inline void from_float(float x, __half& out) { out = __float2half_rn(x); }
__device__ inline void from_float(float x, bfloat16& out) {
    const unsigned int bits = __float_as_uint(x);
    const unsigned int to_nearest_even = 0x7fffu + ((bits >> 16) & 1u);
    out.bits = x != x ? 0x7fffu : (unsigned short)((bits + to_nearest_even) >> 16);
}

// LANES values that one load or store moves, 16 bytes at most at a time.
template <typename value_t, int LANES>
struct alignas(sizeof(value_t) * LANES < 16 ? sizeof(value_t) * LANES : 16) Pack {
    value_t lane[LANES];
};

template <int LANES, typename value_t>
__device__ inline Pack<value_t, LANES> load(const value_t* from) {
    return *reinterpret_cast<const Pack<value_t, LANES>*>(from);
}

template <typename value_t, int LANES>
__device__ inline void store(value_t* to, const Pack<value_t, LANES>& pack) {
    *reinterpret_cast<Pack<value_t, LANES>*>(to) = pack;
}

// 64-bit division is slow and hardly ever needed.
__device__ inline index_t divide(index_t a, index_t b) {
    return ((a | b) >> 32) == 0 ? (index_t)((unsigned int)a / (unsigned int)b) : a / b;
}

template <int LANES, bool PER_NEURON>
__device__ inline void load_parameter(float (&out)[LANES], const float* values, index_t inner, index_t count, index_t neuron) {
    for (int lane = 0; lane < LANES; ++lane) {
        const index_t group = PER_NEURON ? divide(neuron + lane, inner) : 0;
        out[lane] = PER_NEURON || lane == 0 ? values[group - divide(group, count) * count] : out[0];
    }
}

template <int LANES>
__device__ inline Pack<float, LANES> load_or_zero(const float* from, index_t at) {
    if (from) return load<LANES>(from + at);
    return Pack<float, LANES>();
}

__device__ inline float next_u(float u, float x, float leak, float threshold) {
    const float charged = __fadd_rn(__fmul_rn(leak, u), x);
    return u > threshold ? __fsub_rn(charged, threshold) : charged;
}

template <typename scalar, int T, int LANES, bool PER_NEURON>
__global__ void __launch_bounds__(MAX_BLOCK, 1) lif_forward(
    const scalar* __restrict__ x_seq, const float* __restrict__ v, const bool* __restrict__ fired,
    scalar* __restrict__ s_seq, float* __restrict__ v_last, bool* __restrict__ fired_last, float* __restrict__ v_seq,
    const float* __restrict__ leak_values, const float* __restrict__ threshold_values,
    index_t leak_inner, index_t leak_count, index_t threshold_inner, index_t threshold_count,
    index_t steps, index_t size, bool single_spike) {
    constexpr int STEPS = T ? T : SEGMENT;
    if (T) steps = T;
    const index_t neuron = ((index_t)blockIdx.x * blockDim.x + threadIdx.x) * LANES;
    if (neuron >= size) return;

    float leak[LANES], threshold[LANES];
    load_parameter<LANES, PER_NEURON>(leak, leak_values, leak_inner, leak_count, neuron);
    load_parameter<LANES, PER_NEURON>(threshold, threshold_values, threshold_inner, threshold_count, neuron);
    Pack<float, LANES> u = load_or_zero<LANES>(v, neuron);
    Pack<bool, LANES> crossed = Pack<bool, LANES>();
    if (fired) crossed = load<LANES>(fired + neuron);

    for (index_t start = 0; start < steps; start += STEPS) {
        Pack<scalar, LANES> x[STEPS];
#pragma unroll
        for (int s = 0; s < STEPS; ++s)
            if (start + s < steps) x[s] = load<LANES>(x_seq + (start + s) * size + neuron);
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            if (start + s >= steps) continue;
            Pack<scalar, LANES> spikes;
#pragma unroll
            for (int lane = 0; lane < LANES; ++lane) {
                u.lane[lane] = next_u(u.lane[lane], to_float(x[s].lane[lane]), leak[lane], threshold[lane]);
                const bool above = u.lane[lane] > threshold[lane];
                const float spike = above && !(single_spike && crossed.lane[lane]) ? 1.0f : 0.0f;
                from_float(u.lane[lane] != u.lane[lane] ? u.lane[lane] : spike, spikes.lane[lane]);
                crossed.lane[lane] = crossed.lane[lane] || above;
            }
            store(s_seq + (start + s) * size + neuron, spikes);
            if (v_seq) store(v_seq + (start + s) * size + neuron, u);
        }
    }
    if (v_last) store(v_last + neuron, u);
    if (fired_last) store(fired_last + neuron, crossed);
}

// Adds up two values a thread in a fixed order; the sums are at [0] of the shared arrays once every thread has returned.
__device__ inline void sum_over_block(float a, float b, float* shared_a, float* shared_b) {
    shared_a[threadIdx.x] = a;
    shared_b[threadIdx.x] = b;
    __syncthreads();
    for (unsigned int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            shared_a[threadIdx.x] += shared_a[threadIdx.x + half];
            shared_b[threadIdx.x] += shared_b[threadIdx.x + half];
        }
        __syncthreads();
    }
}

// With S^t = gamma * max(0, 1 - |U^t / V - 1|) and G^{T+1} the gradient of the last state:
//     G^t     = gO^t * S^t / V + leak * G^{t+1}
//     dL/dx^t = G^t
//     dL/dleak = sum_t <G^t, U^{t-1}>
//     dL/dV    = sum_t [ -<gO^t * S^t, U^t> / V^2 - <G^t, 1[U^{t-1} > V]> ]
// U is computed again from x: a first pass keeps U at the start of every segment in `checkpoints` (not needed where T is
// known), then each segment, the last one first, is replayed into registers and differentiated. Whether a neuron had fired
// before step t is one comparison with the step of its first crossing.
template <typename scalar, int T, int LANES, bool PER_NEURON>
__global__ void __launch_bounds__(MAX_BLOCK, 1) lif_backward(
    const scalar* __restrict__ grad_s_seq, const float* __restrict__ grad_v, const float* __restrict__ grad_v_seq,
    const scalar* __restrict__ x_seq, const float* __restrict__ v, const bool* __restrict__ fired,
    scalar* __restrict__ grad_x_seq, float* __restrict__ grad_v_initial,
    const float* __restrict__ leak_values, const float* __restrict__ threshold_values,
    float* __restrict__ sums, float* __restrict__ checkpoints,
    index_t leak_inner, index_t leak_count, index_t threshold_inner, index_t threshold_count,
    index_t steps, index_t size, float gamma, bool grad_after_spike, bool temporal_gradient) {
    constexpr int STEPS = T ? T : SEGMENT;
    if (T) steps = T;
    const index_t neuron = ((index_t)blockIdx.x * blockDim.x + threadIdx.x) * LANES;
    Pack<float, LANES> leak_sum = Pack<float, LANES>(), threshold_sum = Pack<float, LANES>();

    if (neuron < size) {
        float leak[LANES], threshold[LANES], inverse[LANES];
        load_parameter<LANES, PER_NEURON>(leak, leak_values, leak_inner, leak_count, neuron);
        load_parameter<LANES, PER_NEURON>(threshold, threshold_values, threshold_inner, threshold_count, neuron);
        Pack<float, LANES> u = load_or_zero<LANES>(v, neuron);
        int first_crossing[LANES];
#pragma unroll
        for (int lane = 0; lane < LANES; ++lane) {
            inverse[lane] = 1.0f / threshold[lane];
            first_crossing[lane] = fired && fired[neuron + lane] ? -1 : (int)steps;
        }

        const index_t last_start = T ? 0 : (steps - 1) / STEPS * STEPS;
#pragma unroll 8
        for (index_t t = 0; t < last_start; ++t) {
            if (t % STEPS == 0) store(checkpoints + t / STEPS * size + neuron, u);
            const Pack<scalar, LANES> x = load<LANES>(x_seq + t * size + neuron);
#pragma unroll
            for (int lane = 0; lane < LANES; ++lane) {
                u.lane[lane] = next_u(u.lane[lane], to_float(x.lane[lane]), leak[lane], threshold[lane]);
                if (u.lane[lane] > threshold[lane] && t < first_crossing[lane]) first_crossing[lane] = (int)t;
            }
        }

        Pack<float, LANES> carried = load_or_zero<LANES>(grad_v, neuron);
        for (index_t start = last_start; start >= 0; start -= STEPS) {
            if (start != last_start) u = load<LANES>(checkpoints + start / STEPS * size + neuron);
            Pack<scalar, LANES> grad_s[STEPS];
            float trace[STEPS + 1][LANES];
#pragma unroll
            for (int s = 0; s < STEPS; ++s)
                if (grad_s_seq && start + s < steps)
                    grad_s[s] = load<LANES>(grad_s_seq + (start + s) * size + neuron);
#pragma unroll
            for (int lane = 0; lane < LANES; ++lane) trace[0][lane] = u.lane[lane];
#pragma unroll
            for (int s = 0; s < STEPS; ++s) {
                if (start + s >= steps) continue;
                const Pack<scalar, LANES> x = load<LANES>(x_seq + (start + s) * size + neuron);
#pragma unroll
                for (int lane = 0; lane < LANES; ++lane) {
                    trace[s + 1][lane] = next_u(trace[s][lane], to_float(x.lane[lane]), leak[lane], threshold[lane]);
                    if (trace[s + 1][lane] > threshold[lane] && start + s < first_crossing[lane])
                        first_crossing[lane] = (int)start + s;
                }
            }
#pragma unroll
            for (int s = STEPS - 1; s >= 0; --s) {
                if (start + s >= steps) continue;
                const Pack<float, LANES> of_u = load_or_zero<LANES>(grad_v_seq, (start + s) * size + neuron);
                Pack<scalar, LANES> grad_x;
#pragma unroll
                for (int lane = 0; lane < LANES; ++lane) {
                    const float u_now = trace[s + 1][lane], u_before = trace[s][lane];
                    const float height = 1.0f - fabsf(u_now * inverse[lane] - 1.0f);
                    float through_spike = 0.0f;
                    if (grad_s_seq && height > 0.0f && (grad_after_spike || start + s <= first_crossing[lane]))
                        through_spike = gamma * height * to_float(grad_s[s].lane[lane]) * inverse[lane];
                    const float total = through_spike + carried.lane[lane] + of_u.lane[lane];
                    leak_sum.lane[lane] += total * u_before;
                    threshold_sum.lane[lane] -= through_spike * u_now * inverse[lane];
                    if (u_before > threshold[lane]) threshold_sum.lane[lane] -= total;
                    carried.lane[lane] = temporal_gradient ? leak[lane] * total : 0.0f;
                    from_float(total, grad_x.lane[lane]);
                }
                store(grad_x_seq + (start + s) * size + neuron, grad_x);
            }
        }
        if (grad_v_initial) store(grad_v_initial + neuron, carried);
        if (PER_NEURON) {
            store(sums + neuron, leak_sum);
            store(sums + size + neuron, threshold_sum);
        }
    }

    if (!PER_NEURON) {
        __shared__ float leaks[MAX_BLOCK], thresholds[MAX_BLOCK];
        float leak_of_thread = 0.0f, threshold_of_thread = 0.0f;
        for (int lane = 0; lane < LANES; ++lane) {
            leak_of_thread += leak_sum.lane[lane];
            threshold_of_thread += threshold_sum.lane[lane];
        }
        sum_over_block(leak_of_thread, threshold_of_thread, leaks, thresholds);
        if (threadIdx.x == 0) {
            sums[blockIdx.x] = leaks[0];
            sums[gridDim.x + blockIdx.x] = thresholds[0];
        }
    }
}
