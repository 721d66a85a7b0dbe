// The kernels on the CPU. Each call is one parallel region over all its tensors.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>

#include "arithmetic.h"
#include "kernels.h"

// On x86-64, GCC compiles each marked loop three times: for processors with AVX-512 (x86-64-v4),
// with AVX2 (v3), and for all others. The loader picks one, so a single binary is fast everywhere.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && \
    __GNUC__ >= 12
#define GAN_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define GAN_CLONES
#endif

namespace gan {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <typename T>
GAN_CLONES void clip_loop(T* p, int64_t n, Arithmetic<T> c) {
    for (int64_t i = 0; i < n; ++i) {
        p[i] = T(clip(Arithmetic<T>(p[i]), c));
    }
}

template <typename T>
GAN_CLONES void rmsprop_clip_loop(T* __restrict p, const T* __restrict g, T* __restrict v,
                                  int64_t n, Step<Arithmetic<T>> step) {
    for (int64_t i = 0; i < n; ++i) {
        Arithmetic<T> weight = p[i];
        Arithmetic<T> square = v[i];
        rmsprop_clip_element(weight, Arithmetic<T>(g[i]), square, step);
        p[i] = T(weight);
        v[i] = T(square);
    }
}

template <typename T>
GAN_CLONES double square_sum_loop(const T* x, int64_t n) {
    // A compiler must not reorder floating-point additions. Independent sums let it use vectors.
    constexpr int kLanes = 64;
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

// Calls f(tensor, offset, n) for parts of all tensors in a list, in one parallel region.
//
// PyTorch's own elementwise loops give each thread at least kTorchGrain elements. We split every
// tensor in the same way, so that a thread finds in its core's cache what it has just computed
// there.
template <typename F>
void for_each_part(const Weights* weights, int64_t count, const F& f) {
    constexpr int64_t kTorchGrain = 32768;
    int64_t threads = 0;
    for (int64_t t = 0; t < count; ++t) {
        threads = std::max(threads, divide_up(weights[t].numel, kTorchGrain));
    }
    threads = std::min<int64_t>(threads, torch::stable::get_num_threads());
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
        for (int64_t t = 0; t < count; ++t) {
            const int64_t numel = weights[t].numel;
            const int64_t parts = std::min(threads, divide_up(numel, kTorchGrain));
            const int64_t part_size = divide_up(numel, parts);
            const int64_t first = std::min(begin * part_size, numel);
            const int64_t last = std::min(end * part_size, numel);
            if (first < last) {
                f(weights[t], first, last - first);
            }
        }
    });
}

// Calls f(chunk, sample, offset, n) for the n elements of each chunk of each sample, in parallel.
// Chunks are numbered over the whole batch, and offset counts from its first element.
template <typename F>
void for_each_chunk(Gradients grad, const F& f) {
    constexpr int64_t kChunksPerThread = 4;  // for fewer it is not worth waking a thread
    const int64_t chunks = chunks_of(grad.size);
    const auto run = [&](int64_t begin, int64_t end) {
        for (int64_t chunk = begin; chunk < end; ++chunk) {
            const int64_t sample = chunk / chunks;
            const int64_t offset = chunk % chunks * kChunk;  // within the sample
            const int64_t n = std::min(kChunk, grad.size - offset);
            f(chunk, sample, sample * grad.size + offset, n);
        }
    };
    torch::stable::parallel_for(0, grad.batch * chunks, kChunksPerThread, run);
}

const char* clip_weights(Type type, const Weights* weights, int64_t count, double c, void*) {
    with_type<Half, BFloat16>(type, [&](auto tag) {
        using T = typename decltype(tag)::type;
        for_each_part(weights, count, [&](const Weights& w, int64_t offset, int64_t n) {
            clip_loop(static_cast<T*>(w.param) + offset, n, Arithmetic<T>(c));
        });
    });
    return nullptr;
}

const char* rmsprop_clip(Type type, const Weights* weights, int64_t count, double lr, double alpha,
                         double eps, double c, void*) {
    with_type<Half, BFloat16>(type, [&](auto tag) {
        using T = typename decltype(tag)::type;
        const Step<Arithmetic<T>> step(lr, alpha, eps, c);
        for_each_part(weights, count, [&](const Weights& w, int64_t offset, int64_t n) {
            T* p = static_cast<T*>(w.param) + offset;
            const T* g = static_cast<const T*>(w.grad) + offset;
            T* v = static_cast<T*>(w.square_avg) + offset;
            rmsprop_clip_loop(p, g, v, n, step);
        });
    });
    return nullptr;
}

const char* gradient_penalty(Type type, Gradients grad, double target, double* partial,
                             double* norms, void* penalty, void*) {
    with_type<Half, BFloat16>(type, [&](auto tag) {
        using T = typename decltype(tag)::type;
        for_each_chunk(grad, [&](int64_t chunk, int64_t /* sample */, int64_t offset, int64_t n) {
            partial[chunk] = square_sum_loop(static_cast<const T*>(grad.data) + offset, n);
        });
        const int64_t chunks = chunks_of(grad.size);
        double sum = 0;
        for (int64_t sample = 0; sample < grad.batch; ++sample) {
            double squares = 0;
            for (int64_t chunk = 0; chunk < chunks; ++chunk) {
                squares += partial[sample * chunks + chunk];
            }
            const double norm = std::sqrt(squares);
            norms[sample] = norm;
            sum += (norm - target) * (norm - target);
        }
        const Arithmetic<T> mean = sum / grad.batch;
        *static_cast<T*>(penalty) = T(mean);
    });
    return nullptr;
}

const char* gradient_penalty_backward(Type type, Gradients grad, double target, const double* norms,
                                      const void* out_grad, void* grad_grad, void*) {
    with_type<Half, BFloat16>(type, [&](auto tag) {
        using T = typename decltype(tag)::type;
        using A = Arithmetic<T>;
        const T* x = static_cast<const T*>(grad.data);
        T* y = static_cast<T*>(grad_grad);
        const A factor = *static_cast<const T*>(out_grad);
        for_each_chunk(grad, [&](int64_t /* chunk */, int64_t sample, int64_t offset, int64_t n) {
            const A slope = penalty_slope(factor, A(norms[sample]), A(target), A(grad.batch));
            scale_loop(x + offset, y + offset, n, slope);
        });
    });
    return nullptr;
}

}  // namespace

const Backend kCpu{clip_weights, rmsprop_clip, gradient_penalty, gradient_penalty_backward};

}  // namespace gan
