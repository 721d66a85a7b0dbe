// What the kernels compute, for one element or one sample, and how they cut the work into chunks.
//
// Written once, included by the CPU and the CUDA kernels alike: a test on the CPU runs the arithmetic of the GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#ifdef __CUDACC__
#define GAN_HOST_DEVICE __host__ __device__
#else
#define GAN_HOST_DEVICE
#endif

namespace gan {

// The type to compute in.
template <typename T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

// x clamped to [-c, c]. NaN stays NaN, as in torch.clamp, because both comparisons are false.
template <typename A>
GAN_HOST_DEVICE inline A clip(A x, A c) {
    x = x < -c ? -c : x;
    return x > c ? c : x;
}

// The numbers of one step of RMSprop and of the clipping after it.
template <typename A>
struct Step {
    A lr, alpha, beta, eps, c;  // beta is 1 - alpha, rounded once
};

// One weight p with gradient g and running mean v of g^2: v <- alpha v + (1 - alpha) g^2, p <- p - lr g / (sqrt(v) +
// eps) as torch.optim.RMSprop does it, then p clamped to [-c, c] (WGAN, Arjovsky et al. 2017, Algorithm 1, lines 6, 7).
template <typename A>
GAN_HOST_DEVICE inline void rmsprop_clip(A& p, A g, A& v, const Step<A>& step) {
    v = step.alpha * v + step.beta * g * g;
    p = clip(p - step.lr * g / (std::sqrt(v) + step.eps), step.c);
}

// d penalty / d g = slope * g for the gradient g of one sample, where penalty = mean over the batch of (|g| - target)^2
// and out_grad is the gradient of what follows (WGAN-GP, Gulrajani et al. 2017, section 4). At g = 0, where the norm
// has no derivative, it is 0.
template <typename A>
GAN_HOST_DEVICE inline A penalty_slope(A out_grad, A norm, A target, A batch) {
    return norm == A(0) ? A(0) : out_grad * A(2) / batch * (A(1) - target / norm);
}

// Sums are made chunk by chunk and then over the chunks in an order that only the shape decides, so that the result
// does not depend on the number of threads or of multiprocessors.
constexpr int64_t kChunk = 4096;  // elements

GAN_HOST_DEVICE inline int64_t chunks_of(int64_t numel, int64_t chunk = kChunk) { return (numel + chunk - 1) / chunk; }

// In a list of tensors whose chunks are numbered through, tensor t has those from first_chunk[t] up to, not including,
// first_chunk[t + 1]. Returns the tensor that a chunk belongs to, by bisection.
GAN_HOST_DEVICE inline int64_t find_tensor(const int64_t* first_chunk, int64_t count, int64_t chunk) {
    int64_t low = 0;
    for (int64_t high = count; high - low > 1;) {
        const int64_t middle = (low + high) / 2;
        if (first_chunk[middle] <= chunk) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

}  // namespace gan
