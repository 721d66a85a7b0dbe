// The kernels on the CPU: one parallel region a call, over the chunks of all tensors together.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <vector>

#include "arithmetic.h"
#include "kernels.h"

// The compiler makes each loop three times, for the vector units of x86-64-v4 (AVX-512), -v3 (AVX2) and of every
// x86-64, and the loader takes the best that the processor has: one binary for all. Other processors have one version.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define GAN_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define GAN_CLONES
#endif

namespace gan::cpu {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// A thread is worth waking for this many chunks; fewer run where they are.
constexpr int64_t kGrain = 4;

template <typename T>
GAN_CLONES void clip_loop(T* p, int64_t n, Arithmetic<T> c) {
    for (int64_t i = 0; i < n; ++i) {
        p[i] = T(clip(Arithmetic<T>(p[i]), c));
    }
}

template <typename T>
GAN_CLONES void rmsprop_clip_loop(T* __restrict p, const T* __restrict g, T* __restrict v, int64_t n,
                                  Step<Arithmetic<T>> step) {
    for (int64_t i = 0; i < n; ++i) {
        Arithmetic<T> weight = p[i], square = v[i];
        rmsprop_clip(weight, Arithmetic<T>(g[i]), square, step);
        p[i] = T(weight);
        v[i] = T(square);
    }
}

template <typename T>
GAN_CLONES double square_sum_loop(const T* x, int64_t n) {
    constexpr int kLanes = 64;  // independent sums, so that additions need not wait for each other
    Arithmetic<T> sums[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) {
            const Arithmetic<T> value = x[i + lane];
            sums[lane] += value * value;
        }
    }
    double sum = 0;
    for (; i < n; ++i) {
        sum += double(x[i]) * double(x[i]);
    }
    for (const Arithmetic<T> lane : sums) {
        sum += lane;
    }
    return sum;
}

template <typename T>
GAN_CLONES void scale_loop(const T* __restrict x, T* __restrict y, int64_t n, Arithmetic<T> slope) {
    for (int64_t i = 0; i < n; ++i) {
        y[i] = T(slope * Arithmetic<T>(x[i]));
    }
}

// Calls f(tensor, offset, n) for parts of all tensors of the list, in one parallel region. Each thread takes the part
// of a tensor that it gets in PyTorch's own loops, such as the optimizer's, so that it finds it in its core's cache.
template <typename F>
void for_each_part(const Weights* weights, int64_t count, const F& f) {
    constexpr int64_t kGrain = 32768;  // of PyTorch's elementwise loops
    int64_t threads = 0;
    for (int64_t t = 0; t < count; ++t) {
        threads = std::max(threads, (weights[t].numel + kGrain - 1) / kGrain);
    }
    threads = std::min<int64_t>(threads, torch::stable::get_num_threads());
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
        for (int64_t t = 0; t < count; ++t) {
            const int64_t numel = weights[t].numel;
            const int64_t parts = std::min(threads, (numel + kGrain - 1) / kGrain), size = (numel + parts - 1) / parts;
            const int64_t first = std::min(begin * size, numel), last = std::min(end * size, numel);
            if (first < last) {
                f(weights[t], first, last - first);
            }
        }
    });
}

// Calls f(chunk, sample, offset into the data, n) for every chunk of every sample, in parallel.
template <typename F>
void for_each_chunk(Gradients grad, const F& f) {
    const int64_t chunks = chunks_of(grad.size);
    torch::stable::parallel_for(0, grad.batch * chunks, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t chunk = begin; chunk < end; ++chunk) {
            const int64_t sample = chunk / chunks, offset = chunk % chunks * kChunk;
            f(chunk, sample, sample * grad.size + offset, std::min(kChunk, grad.size - offset));
        }
    });
}

}  // namespace

const char* clip_weights(Type type, const Weights* weights, int64_t count, double c, void*) {
    with_type<Half, BFloat16>(type, [&](auto* null) {
        using T = std::remove_pointer_t<decltype(null)>;
        for_each_part(weights, count, [&](const Weights& w, int64_t offset, int64_t n) {
            clip_loop(static_cast<T*>(w.param) + offset, n, Arithmetic<T>(c));
        });
    });
    return nullptr;
}

const char* rmsprop_clip(Type type, const Weights* weights, int64_t count, double lr, double alpha, double eps,
                         double c, void*) {
    with_type<Half, BFloat16>(type, [&](auto* null) {
        using T = std::remove_pointer_t<decltype(null)>;
        using A = Arithmetic<T>;
        const Step<A> step{A(lr), A(alpha), A(1 - alpha), A(eps), A(c)};
        for_each_part(weights, count, [&](const Weights& w, int64_t offset, int64_t n) {
            rmsprop_clip_loop(static_cast<T*>(w.param) + offset, static_cast<const T*>(w.grad) + offset,
                              static_cast<T*>(w.square_avg) + offset, n, step);
        });
    });
    return nullptr;
}

const char* gradient_penalty(Type type, Gradients grad, double target, double* partial, double* norms, void* penalty,
                             void*) {
    with_type<Half, BFloat16>(type, [&](auto* null) {
        using T = std::remove_pointer_t<decltype(null)>;
        for_each_chunk(grad, [&](int64_t chunk, int64_t, int64_t offset, int64_t n) {
            partial[chunk] = square_sum_loop(static_cast<const T*>(grad.data) + offset, n);
        });
        double sum = 0;
        for (int64_t sample = 0; sample < grad.batch; ++sample) {
            double squares = 0;
            for (int64_t chunk = 0; chunk < chunks_of(grad.size); ++chunk) {
                squares += *partial++;
            }
            norms[sample] = std::sqrt(squares);
            sum += (norms[sample] - target) * (norms[sample] - target);
        }
        *static_cast<T*>(penalty) = T(Arithmetic<T>(sum / grad.batch));
    });
    return nullptr;
}

const char* gradient_penalty_backward(Type type, Gradients grad, double target, const double* norms,
                                      const void* out_grad, void* grad_grad, void*) {
    with_type<Half, BFloat16>(type, [&](auto* null) {
        using T = std::remove_pointer_t<decltype(null)>;
        using A = Arithmetic<T>;
        for_each_chunk(grad, [&](int64_t, int64_t sample, int64_t offset, int64_t n) {
            const A slope =
                penalty_slope(A(*static_cast<const T*>(out_grad)), A(norms[sample]), A(target), A(grad.batch));
            scale_loop(static_cast<const T*>(grad.data) + offset, static_cast<T*>(grad_grad) + offset, n, slope);
        });
    });
    return nullptr;
}

}  // namespace gan::cpu
