// What the kernels compute for one element or one sample.
//
// The CPU and the CUDA kernels both include this file, so a test on the CPU also tests these
// formulas of the GPU.
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

// The type in which to compute with elements of type T: float32 for float16 and bfloat16, T itself
// for float32 and float64.
template <typename T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Clamps x to [-c, c]. NaN stays NaN, as in torch.clamp, because both comparisons are false.
template <typename A>
GAN_HOST_DEVICE inline A clip(A x, A c) {
    x = x < -c ? -c : x;
    return x > c ? c : x;
}

// The settings of RMSprop and of the clip after it.
template <typename A>
struct Step {
    Step(double lr, double alpha, double eps, double c)
        : lr(lr), alpha(alpha), one_minus_alpha(1 - alpha), eps(eps), c(c) {}

    A lr;
    A alpha;
    A one_minus_alpha;  // computed in double, which matters if alpha is close to 1
    A eps;
    A c;
};

// One step of torch.optim.RMSprop, then the clip (WGAN, Arjovsky et al. 2017, Algorithm 1, lines 6
// and 7), for a weight p with gradient g and running mean of squares v:
//     v <- alpha v + (1 - alpha) g^2
//     p <- clip(p - lr g / (sqrt(v) + eps))
template <typename A>
GAN_HOST_DEVICE inline void rmsprop_clip_element(A& p, A g, A& v, const Step<A>& step) {
    v = step.alpha * v + step.one_minus_alpha * g * g;
    p = clip(p - step.lr * g / (std::sqrt(v) + step.eps), step.c);
}

// The gradient penalty is the mean over the batch of (|g| - target)^2, where g is the gradient of
// one sample (WGAN-GP, Gulrajani et al. 2017, section 4). Its derivative with respect to g is g
// times 2 / batch * (1 - target / |g|). This is that factor, times out_grad by the chain rule.
// At g = 0, where the norm has no derivative, we take 0.
template <typename A>
GAN_HOST_DEVICE inline A penalty_slope(A out_grad, A norm, A target, A batch) {
    return norm == A(0) ? A(0) : out_grad * A(2) / batch * (A(1) - target / norm);
}

GAN_HOST_DEVICE inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Squares are added up within chunks of this many elements, then over the chunks. So the shape
// alone decides the order of additions, and the result does not depend on the number of threads.
constexpr int64_t kChunk = 4096;

GAN_HOST_DEVICE inline int64_t chunks_of(int64_t numel) { return divide_up(numel, kChunk); }

}  // namespace gan
