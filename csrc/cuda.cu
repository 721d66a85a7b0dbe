// The kernels on the GPU. Compiles with nvcc alone: nvcc -c -arch=sm_90 csrc/cuda.cu
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "arithmetic.h"
#include "kernels.h"

namespace gan::cuda {
namespace {

constexpr int kThreads = 256;  // of a block
constexpr int kWarp = 32;

// What a thread takes at once: 16 bytes, loaded or stored by one instruction.
template <typename T>
struct alignas(16) Pack {
    static constexpr int kSize = sizeof(uint4) / sizeof(T);
    T values[kSize];
};

// Elements that a block takes at once.
template <typename T>
constexpr int kBlock = kThreads * Pack<T>::kSize;

template <typename T>
__device__ bool is_whole(const T* pointer, int64_t n) {
    return n >= Pack<T>::kSize && reinterpret_cast<uintptr_t>(pointer) % sizeof(uint4) == 0;
}

// The elements of a pack of which the first n, or all, are there; zeros for the others.
template <typename T>
__device__ Pack<T> load(const T* pointer, int64_t n) {
    Pack<T> pack;
    if (is_whole(pointer, n)) {
        reinterpret_cast<uint4&>(pack) = *reinterpret_cast<const uint4*>(pointer);
        return pack;
    }
#pragma unroll
    for (int k = 0; k < Pack<T>::kSize; ++k) {
        pack.values[k] = k < n ? pointer[k] : T(0.f);
    }
    return pack;
}

// Stores the first n of them, or all.
template <typename T>
__device__ void store(T* pointer, int64_t n, const Pack<T>& pack) {
    if (is_whole(pointer, n)) {
        __stwb(reinterpret_cast<uint4*>(pointer), reinterpret_cast<const uint4&>(pack));  // = would be cut in four
        return;
    }
#pragma unroll
    for (int k = 0; k < Pack<T>::kSize; ++k) {
        if (k < n) {
            pointer[k] = pack.values[k];
        }
    }
}

// A list of tensors, small enough to travel with the launch as its argument: no copy to the GPU, nothing to free, and a
// captured graph holds it. kLists is 1 (params) or 3 (params, grads, square_avgs).
template <int kLists, int kCapacity>
struct TensorList {
    void* data[kLists][kCapacity];
    int64_t numel[kCapacity];
    int64_t first_block[kCapacity + 1];
    int64_t count;
};

// Kernel arguments may take 32,764 bytes (4 KiB before CUDA 12.1). Few lists are long, so most launches carry the short
// one.
#if CUDART_VERSION >= 12010
constexpr int kLong = 800;
#else
constexpr int kLong = 80;
#endif
constexpr int kShort = 40;
static_assert(sizeof(TensorList<3, 800>) <= 32764 - 64 && sizeof(TensorList<3, 80>) <= 4096 - 64);

// Each thread clamps one pack.
template <typename T, int kCapacity>
__global__ void __launch_bounds__(kThreads)
    clip_kernel(const __grid_constant__ TensorList<1, kCapacity> list, const Arithmetic<T> c) {
    using A = Arithmetic<T>;
    const int64_t t = find_tensor(list.first_block, list.count, blockIdx.x);
    const int64_t i = (blockIdx.x - list.first_block[t]) * kBlock<T> + threadIdx.x * Pack<T>::kSize;
    const int64_t n = list.numel[t] - i;
    T* p = static_cast<T*>(list.data[0][t]) + i;

    Pack<T> weights = load(p, n);
#pragma unroll
    for (T& weight : weights.values) {
        weight = T(clip(A(weight), c));
    }
    store(p, n, weights);
}

// Each thread takes the RMSprop step and clamps, for one pack.
template <typename T, int kCapacity>
__global__ void __launch_bounds__(kThreads)
    rmsprop_clip_kernel(const __grid_constant__ TensorList<3, kCapacity> list, const Step<Arithmetic<T>> step) {
    using A = Arithmetic<T>;
    const int64_t t = find_tensor(list.first_block, list.count, blockIdx.x);
    const int64_t i = (blockIdx.x - list.first_block[t]) * kBlock<T> + threadIdx.x * Pack<T>::kSize;
    const int64_t n = list.numel[t] - i;
    T* p = static_cast<T*>(list.data[0][t]) + i;
    T* v = static_cast<T*>(list.data[2][t]) + i;

    Pack<T> weights = load(p, n), squares = load(v, n);
    const Pack<T> grads = load(static_cast<const T*>(list.data[1][t]) + i, n);
#pragma unroll
    for (int k = 0; k < Pack<T>::kSize; ++k) {
        A weight = A(weights.values[k]), square = A(squares.values[k]);
        rmsprop_clip(weight, A(grads.values[k]), square, step);
        weights.values[k] = T(weight);
        squares.values[k] = T(square);
    }
    store(p, n, weights);
    store(v, n, squares);
}

// The sums over groups of so many neighbouring threads, a power of two up to a warp; right in the first of each group.
template <typename A>
__device__ A group_sum(A value, int threads) {
    for (int offset = threads / 2; offset > 0; offset /= 2) {
        value += __shfl_down_sync(0xffffffff, value, offset);
    }
    return value;
}

// The sum over a block, right in thread 0. To be called once in a kernel.
template <typename A>
__device__ A block_sum(A value) {
    __shared__ A warps[kThreads / kWarp];
    value = group_sum(value, kWarp);
    if (threadIdx.x % kWarp == 0) {
        warps[threadIdx.x / kWarp] = value;
    }
    __syncthreads();
    return group_sum(threadIdx.x < kThreads / kWarp ? warps[threadIdx.x] : A(0), kWarp);
}

// One block sums the squares of one chunk of one sample.
template <typename T>
__global__ void __launch_bounds__(kThreads) squares_kernel(const T* grad, const int64_t size, double* partial) {
    using A = Arithmetic<T>;
    const int64_t chunks = chunks_of(size), sample = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
    const T* x = grad + sample * size;

    constexpr int kRounds = kChunk / kBlock<T>;
    Pack<T> packs[kRounds];
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {  // all loads, then all sums: so they do not wait for each other
        const int64_t i = chunk * kChunk + round * kBlock<T> + threadIdx.x * Pack<T>::kSize;
        packs[round] = load(x + i, size - i);
    }
    A sum = 0;
#pragma unroll
    for (const Pack<T>& pack : packs) {
#pragma unroll
        for (const T& value : pack.values) {
            sum += A(value) * A(value);
        }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
    }
}

// A single block adds them up to the norms, and these to the penalty. As many threads share a sample as it has chunks,
// rounded up to a power of two, but no more than a warp: so the order of additions depends on the shape alone.
template <typename T>
__global__ void __launch_bounds__(kThreads) norms_kernel(const double* partial, const int64_t batch, const int64_t size,
                                                         const double target, double* norms, T* penalty) {
    const int64_t chunks = chunks_of(size);
    int threads = 1;  // for a sample
    while (threads < chunks && threads < kWarp) {
        threads *= 2;
    }
    double sum = 0;
    for (int64_t first = 0; first < batch; first += kThreads / threads) {  // whole warps, for the shuffles
        const int64_t sample = first + threadIdx.x / threads;
        double squares = 0;
        for (int64_t chunk = threadIdx.x % threads; sample < batch && chunk < chunks; chunk += threads) {
            squares += partial[sample * chunks + chunk];
        }
        squares = group_sum(squares, threads);
        if (sample < batch && threadIdx.x % threads == 0) {
            const double norm = sqrt(squares);
            norms[sample] = norm;
            sum += (norm - target) * (norm - target);
        }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        *penalty = T(Arithmetic<T>(sum / batch));
    }
}

// Each thread scales one pack of one sample.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    gradient_penalty_backward_kernel(const T* grad, const int64_t batch, const int64_t size, const double target,
                                     const double* norms, const T* out_grad, T* grad_grad) {
    using A = Arithmetic<T>;
    const int64_t blocks = chunks_of(size, kBlock<T>), sample = blockIdx.x / blocks;
    const int64_t i = blockIdx.x % blocks * kBlock<T> + threadIdx.x * Pack<T>::kSize;

    Pack<T> pack = load(grad + sample * size + i, size - i);
    const A slope = penalty_slope(A(*out_grad), A(norms[sample]), A(target), A(batch));
#pragma unroll
    for (T& value : pack.values) {
        value = T(slope * A(value));
    }
    store(grad_grad + sample * size + i, size - i, pack);
}

// What went wrong with the launches before, or null. Asking for it also forgets it: the next call begins anew.
const char* launch_error() {
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Calls f(list, blocks) for the tensors in lists of up to kCapacity.
template <typename T, int kLists, int kCapacity, typename F>
void for_each_list(const Weights* weights, int64_t count, const F& f) {
    for (int64_t first = 0; first < count; first += kCapacity) {
        TensorList<kLists, kCapacity> list;
        list.count = std::min<int64_t>(kCapacity, count - first);
        list.first_block[0] = 0;
        for (int64_t t = 0; t < list.count; ++t) {
            const Weights& w = weights[first + t];
            void* const pointers[] = {w.param, const_cast<void*>(w.grad), w.square_avg};
            for (int i = 0; i < kLists; ++i) {
                list.data[i][t] = pointers[i];
            }
            list.numel[t] = w.numel;
            list.first_block[t + 1] = list.first_block[t] + chunks_of(w.numel, kBlock<T>);
        }
        f(list, static_cast<unsigned>(list.first_block[list.count]));
    }
}

// The same with the capacity that suits the count.
template <typename T, int kLists, typename F>
void for_each_list(const Weights* weights, int64_t count, const F& f) {
    if (count <= kShort) {
        for_each_list<T, kLists, kShort>(weights, count, f);
    } else {
        for_each_list<T, kLists, kLong>(weights, count, f);
    }
}

}  // namespace

const char* clip_weights(Type type, const Weights* weights, int64_t count, double c, void* stream) {
    with_type<__half, __nv_bfloat16>(type, [&](auto* null) {
        using T = std::remove_pointer_t<decltype(null)>;
        for_each_list<T, 1>(weights, count, [&](const auto& list, unsigned blocks) {
            clip_kernel<T><<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(list, Arithmetic<T>(c));
        });
    });
    return launch_error();
}

const char* rmsprop_clip(Type type, const Weights* weights, int64_t count, double lr, double alpha, double eps,
                         double c, void* stream) {
    with_type<__half, __nv_bfloat16>(type, [&](auto* null) {
        using T = std::remove_pointer_t<decltype(null)>;
        using A = Arithmetic<T>;
        const Step<A> step{A(lr), A(alpha), A(1 - alpha), A(eps), A(c)};
        for_each_list<T, 3>(weights, count, [&](const auto& list, unsigned blocks) {
            rmsprop_clip_kernel<T><<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(list, step);
        });
    });
    return launch_error();
}

const char* gradient_penalty(Type type, Gradients grad, double target, double* partial, double* norms, void* penalty,
                             void* stream) {
    with_type<__half, __nv_bfloat16>(type, [&](auto* null) {
        using T = std::remove_pointer_t<decltype(null)>;
        const auto blocks = static_cast<unsigned>(grad.batch * chunks_of(grad.size));
        if (blocks > 0) {
            squares_kernel<T><<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
                static_cast<const T*>(grad.data), grad.size, partial);
        }
        norms_kernel<T><<<1, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(partial, grad.batch, grad.size, target,
                                                                               norms, static_cast<T*>(penalty));
    });
    return launch_error();
}

const char* gradient_penalty_backward(Type type, Gradients grad, double target, const double* norms,
                                      const void* out_grad, void* grad_grad, void* stream) {
    with_type<__half, __nv_bfloat16>(type, [&](auto* null) {
        using T = std::remove_pointer_t<decltype(null)>;
        const auto blocks = static_cast<unsigned>(grad.batch * chunks_of(grad.size, kBlock<T>));
        gradient_penalty_backward_kernel<T><<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
            static_cast<const T*>(grad.data), grad.batch, grad.size, target, norms, static_cast<const T*>(out_grad),
            static_cast<T*>(grad_grad));
    });
    return launch_error();
}

}  // namespace gan::cuda
