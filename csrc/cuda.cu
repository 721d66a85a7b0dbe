// The kernels on the GPU. Compiles with nvcc alone: nvcc -c -arch=sm_90 csrc/cuda.cu
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "arithmetic.h"
#include "kernels.h"

namespace gan::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;

// 16 bytes, which a thread loads or stores by one instruction.
template <typename T>
struct alignas(16) Pack {
    static constexpr int kSize = 16 / sizeof(T);
    T values[kSize];
};

template <typename T>
__device__ bool aligned(const T* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % sizeof(Pack<T>) == 0;
}

// A list of tensors, small enough to travel with the launch as its argument: no copy to the GPU, nothing to free, and a
// captured graph holds it. kLists is 1 (params) or 3 (params, grads, square_avgs).
template <int kLists, int kCapacity>
struct TensorList {
    void* data[kLists][kCapacity];
    int64_t numel[kCapacity];
    int64_t first_chunk[kCapacity + 1];
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

// One block clamps one chunk.
template <typename T, int kCapacity>
__global__ void __launch_bounds__(kThreads)
    clip_kernel(const __grid_constant__ TensorList<1, kCapacity> list, const Arithmetic<T> c) {
    using A = Arithmetic<T>;
    const int64_t t = find_tensor(list.first_chunk, list.count, blockIdx.x);
    const int64_t offset = (blockIdx.x - list.first_chunk[t]) * kChunk;
    const int n = static_cast<int>(min(kChunk, list.numel[t] - offset));
    T* p = static_cast<T*>(list.data[0][t]) + offset;

    const int packs = aligned(p) ? n / Pack<T>::kSize : 0;
    for (int i = threadIdx.x; i < packs; i += kThreads) {
        Pack<T> weights = reinterpret_cast<Pack<T>*>(p)[i];
#pragma unroll
        for (T& weight : weights.values) {
            weight = T(clip(A(weight), c));
        }
        reinterpret_cast<Pack<T>*>(p)[i] = weights;
    }
    for (int i = packs * Pack<T>::kSize + threadIdx.x; i < n; i += kThreads) {
        p[i] = T(clip(A(p[i]), c));
    }
}

// One block takes the RMSprop step and clamps, for one chunk.
template <typename T, int kCapacity>
__global__ void __launch_bounds__(kThreads)
    rmsprop_clip_kernel(const __grid_constant__ TensorList<3, kCapacity> list, const Step<Arithmetic<T>> step) {
    using A = Arithmetic<T>;
    const int64_t t = find_tensor(list.first_chunk, list.count, blockIdx.x);
    const int64_t offset = (blockIdx.x - list.first_chunk[t]) * kChunk;
    const int n = static_cast<int>(min(kChunk, list.numel[t] - offset));
    T* p = static_cast<T*>(list.data[0][t]) + offset;
    const T* g = static_cast<const T*>(list.data[1][t]) + offset;
    T* v = static_cast<T*>(list.data[2][t]) + offset;

    const int packs = aligned(p) && aligned(g) && aligned(v) ? n / Pack<T>::kSize : 0;
    for (int i = threadIdx.x; i < packs; i += kThreads) {
        Pack<T> weights = reinterpret_cast<Pack<T>*>(p)[i], squares = reinterpret_cast<Pack<T>*>(v)[i];
        const Pack<T> grads = reinterpret_cast<const Pack<T>*>(g)[i];
#pragma unroll
        for (int k = 0; k < Pack<T>::kSize; ++k) {
            A weight = A(weights.values[k]), square = A(squares.values[k]);
            rmsprop_clip(weight, A(grads.values[k]), square, step);
            weights.values[k] = T(weight);
            squares.values[k] = T(square);
        }
        reinterpret_cast<Pack<T>*>(p)[i] = weights;
        reinterpret_cast<Pack<T>*>(v)[i] = squares;
    }
    for (int i = packs * Pack<T>::kSize + threadIdx.x; i < n; i += kThreads) {
        A weight = A(p[i]), square = A(v[i]);
        rmsprop_clip(weight, A(g[i]), square, step);
        p[i] = T(weight);
        v[i] = T(square);
    }
}

template <typename A>
__device__ A warp_sum(A value) {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        value += __shfl_down_sync(0xffffffff, value, offset);
    }
    return value;  // right in lane 0
}

template <typename A>
__device__ A block_sum(A value) {
    __shared__ A warps[kThreads / kWarp];
    value = warp_sum(value);
    __syncthreads();  // the last sum has been read
    if (threadIdx.x % kWarp == 0) {
        warps[threadIdx.x / kWarp] = value;
    }
    __syncthreads();
    return warp_sum(threadIdx.x < kThreads / kWarp ? warps[threadIdx.x] : A(0));  // right in thread 0
}

// The sum of squares of each chunk; then, when all blocks have come so far, the first one adds them up to the norms and
// the penalty. A cooperative launch: all blocks are on the GPU at once, so that they can wait for each other.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    gradient_penalty_kernel(const T* grad, const int64_t batch, const int64_t size, const double target,
                            double* partial, double* norms, T* penalty) {
    using A = Arithmetic<T>;
    const int64_t chunks = chunks_of(size);  // of a sample
    for (int64_t chunk = blockIdx.x; chunk < batch * chunks; chunk += gridDim.x) {
        const int64_t offset = chunk % chunks * kChunk;
        const int n = static_cast<int>(min(kChunk, size - offset));
        const T* x = grad + chunk / chunks * size + offset;
        A sum = 0;
        const int packs = aligned(x) ? n / Pack<T>::kSize : 0;
#pragma unroll 4
        for (int i = threadIdx.x; i < packs; i += kThreads) {
            const Pack<T> pack = reinterpret_cast<const Pack<T>*>(x)[i];
#pragma unroll
            for (const T& value : pack.values) {
                sum += A(value) * A(value);
            }
        }
        for (int i = packs * Pack<T>::kSize + threadIdx.x; i < n; i += kThreads) {
            sum += A(x[i]) * A(x[i]);
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) {
            partial[chunk] = sum;
        }
    }
    cooperative_groups::this_grid().sync();
    if (blockIdx.x > 0) {
        return;
    }
    const int lanes = chunks < kWarp ? 1 : kWarp;  // threads that share a sample
    double sum = 0;
    for (int64_t sample = threadIdx.x / lanes; sample < batch; sample += kThreads / lanes) {
        double squares = 0;
        for (int64_t chunk = threadIdx.x % lanes; chunk < chunks; chunk += lanes) {
            squares += partial[sample * chunks + chunk];
        }
        if (lanes == kWarp) {
            squares = warp_sum(squares);
        }
        if (threadIdx.x % lanes == 0) {
            const double norm = sqrt(squares);
            norms[sample] = norm;
            sum += (norm - target) * (norm - target);
        }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        *penalty = T(A(sum / batch));
    }
}

// One block scales one chunk of one sample.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    gradient_penalty_backward_kernel(const T* grad, const int64_t batch, const int64_t size, const double target,
                                     const double* norms, const T* out_grad, T* grad_grad) {
    using A = Arithmetic<T>;
    const int64_t chunks = chunks_of(size), sample = blockIdx.x / chunks, offset = blockIdx.x % chunks * kChunk;
    const int n = static_cast<int>(min(kChunk, size - offset));
    const A slope = penalty_slope(A(*out_grad), A(norms[sample]), A(target), A(batch));
    const T* x = grad + sample * size + offset;
    T* y = grad_grad + sample * size + offset;

    const int packs = aligned(x) && aligned(y) ? n / Pack<T>::kSize : 0;
    for (int i = threadIdx.x; i < packs; i += kThreads) {
        Pack<T> pack = reinterpret_cast<const Pack<T>*>(x)[i];
#pragma unroll
        for (T& value : pack.values) {
            value = T(slope * A(value));
        }
        reinterpret_cast<Pack<T>*>(y)[i] = pack;
    }
    for (int i = packs * Pack<T>::kSize + threadIdx.x; i < n; i += kThreads) {
        y[i] = T(slope * A(x[i]));
    }
}

const char* error_of(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

// Calls f(list, blocks) for the tensors in lists of up to kCapacity.
template <int kLists, int kCapacity, typename F>
void for_each_list(const Weights* weights, int64_t count, const F& f) {
    for (int64_t first = 0; first < count; first += kCapacity) {
        TensorList<kLists, kCapacity> list;
        list.count = std::min<int64_t>(kCapacity, count - first);
        list.first_chunk[0] = 0;
        for (int64_t t = 0; t < list.count; ++t) {
            const Weights& w = weights[first + t];
            void* const pointers[] = {w.param, const_cast<void*>(w.grad), w.square_avg};
            for (int i = 0; i < kLists; ++i) {
                list.data[i][t] = pointers[i];
            }
            list.numel[t] = w.numel;
            list.first_chunk[t + 1] = list.first_chunk[t] + chunks_of(w.numel);
        }
        f(list, static_cast<unsigned>(list.first_chunk[list.count]));
    }
}

// The same with the capacity that suits the count.
template <int kLists, typename F>
void for_each_list(const Weights* weights, int64_t count, const F& f) {
    if (count <= kShort) {
        for_each_list<kLists, kShort>(weights, count, f);
    } else {
        for_each_list<kLists, kLong>(weights, count, f);
    }
}

}  // namespace

const char* clip_weights(Type type, const Weights* weights, int64_t count, double c, void* stream) {
    with_type<__half, __nv_bfloat16>(type, [&](auto* null) {
        using T = std::remove_pointer_t<decltype(null)>;
        for_each_list<1>(weights, count, [&](const auto& list, unsigned blocks) {
            clip_kernel<T><<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(list, Arithmetic<T>(c));
        });
    });
    return error_of(cudaGetLastError());
}

const char* rmsprop_clip(Type type, const Weights* weights, int64_t count, double lr, double alpha, double eps,
                         double c, void* stream) {
    with_type<__half, __nv_bfloat16>(type, [&](auto* null) {
        using T = std::remove_pointer_t<decltype(null)>;
        using A = Arithmetic<T>;
        const Step<A> step{A(lr), A(alpha), A(1 - alpha), A(eps), A(c)};
        for_each_list<3>(weights, count, [&](const auto& list, unsigned blocks) {
            rmsprop_clip_kernel<T><<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(list, step);
        });
    });
    return error_of(cudaGetLastError());
}

const char* gradient_penalty(Type type, Gradients grad, double target, double* partial, double* norms, void* penalty,
                             void* stream) {
    cudaError_t error = cudaSuccess;
    with_type<__half, __nv_bfloat16>(type, [&](auto* null) {
        using T = std::remove_pointer_t<decltype(null)>;
        int device = 0, multiprocessors = 0, blocks_each = 0;
        cudaGetDevice(&device);
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_each, gradient_penalty_kernel<T>, kThreads, 0);
        const int64_t room = int64_t{multiprocessors} * blocks_each, chunks = grad.batch * chunks_of(grad.size);
        const auto blocks = static_cast<unsigned>(std::max<int64_t>(1, std::min(room, chunks)));
        const T* data = static_cast<const T*>(grad.data);
        T* result = static_cast<T*>(penalty);
        void* arguments[] = {&data, &grad.batch, &grad.size, &target, &partial, &norms, &result};
        error = cudaLaunchCooperativeKernel(gradient_penalty_kernel<T>, blocks, kThreads, arguments, 0,
                                            static_cast<cudaStream_t>(stream));
    });
    return error_of(error);
}

const char* gradient_penalty_backward(Type type, Gradients grad, double target, const double* norms,
                                      const void* out_grad, void* grad_grad, void* stream) {
    with_type<__half, __nv_bfloat16>(type, [&](auto* null) {
        using T = std::remove_pointer_t<decltype(null)>;
        const auto blocks = static_cast<unsigned>(grad.batch * chunks_of(grad.size));
        gradient_penalty_backward_kernel<T><<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
            static_cast<const T*>(grad.data), grad.batch, grad.size, target, norms, static_cast<const T*>(out_grad),
            static_cast<T*>(grad_grad));
    });
    return error_of(cudaGetLastError());
}

}  // namespace gan::cuda
