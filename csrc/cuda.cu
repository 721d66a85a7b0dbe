// The kernels on the GPU. No torch header is included, so nvcc alone compiles this file:
//     nvcc -c -arch=sm_90 csrc/cuda.cu
//
// Large tensors are limited by memory traffic, small ones by the time of a launch. So wherever the
// data are aligned, a thread loads 16 bytes with one instruction, works on them, and stores 16
// bytes with one instruction.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "arithmetic.h"
#include "kernels.h"

// TensorList, below, is larger than that
static_assert(CUDART_VERSION >= 12010, "before CUDA 12.1 a kernel took 4 KiB of arguments only");

namespace gan {
namespace {

constexpr int kWarp = 32;          // threads in a warp
constexpr int kThreads = 256;      // threads in a block, but for norms_kernel
constexpr int kMaxThreads = 1024;  // CUDA allows no more in a block

// The elements that one thread loads and stores at once.
template <typename T>
struct alignas(16) Pack {
    static constexpr int kSize = 16 / sizeof(T);
    T values[kSize];
};

// The elements that the threads of one block load and store at once.
template <typename T>
constexpr int kBlockElements = kThreads * Pack<T>::kSize;

template <typename T>
__device__ bool is_aligned(const T* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// uint4 stands for any 16 bytes.
template <typename T>
__device__ void load_aligned(Pack<T>& pack, const T* pointer) {
    reinterpret_cast<uint4&>(pack) = *reinterpret_cast<const uint4*>(pointer);
}

// Loads a pack from a tensor of which only `left` elements are left. What lies beyond is not read;
// it is zero in the pack.
template <typename T>
__device__ Pack<T> load(const T* pointer, int64_t left) {
    Pack<T> pack;
    if (left >= Pack<T>::kSize && is_aligned(pointer)) {
        load_aligned(pack, pointer);
        return pack;
    }
#pragma unroll
    for (int k = 0; k < Pack<T>::kSize; ++k) {
        pack.values[k] = k < left ? pointer[k] : T(0.f);
    }
    return pack;
}

// Stores a pack into a tensor of which only `left` elements are left. Nothing is written beyond.
template <typename T>
__device__ void store(T* pointer, int64_t left, const Pack<T>& pack) {
    if (left >= Pack<T>::kSize && is_aligned(pointer)) {
        // With a plain assignment nvcc emits four stores here, though a single load above
        __stwb(reinterpret_cast<uint4*>(pointer), reinterpret_cast<const uint4&>(pack));
        return;
    }
#pragma unroll
    for (int k = 0; k < Pack<T>::kSize; ++k) {
        if (k < left) {
            pointer[k] = pack.values[k];
        }
    }
}

// ----------------------------------------------------------- Lists of weights: clip and RMSprop

// A list of tensors. Each is cut into pieces of kBlockElements elements, one for each thread block.
// The blocks are numbered through the whole list: tensor t has those from first_block[t] to
// first_block[t + 1] - 1.
//
// The list is itself the argument of a kernel. So there is no copy to the GPU and nothing to free,
// and a CUDA graph that records the launch keeps the list.
template <int kCapacity>
struct TensorList {
    Weights weights[kCapacity];
    int32_t first_block[kCapacity + 1];
    int32_t count;
};

// Each launch copies the whole struct, and few networks have more than 40 tensors. So the kernels
// exist for short lists and for long ones, which stay below CUDA's limit of 32,764 bytes.
constexpr int kShort = 40;
constexpr int kLong = 800;
static_assert(sizeof(TensorList<kLong>) + sizeof(Step<double>) <= 32764);

// Where a thread works: in one tensor, on the pack that begins with element `begin`. `left` is
// numel - begin: zero or negative for threads that begin past the end of the tensor.
struct Place {
    Weights tensor;
    int64_t begin;
    int64_t left;
};

template <typename T, int kCapacity>
__device__ Place find_place(const TensorList<kCapacity>& list) {
    // Bisection: the tensor that this block belongs to is always in [low, high)
    const int block = blockIdx.x;
    int low = 0;
    int high = list.count;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (list.first_block[middle] <= block) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const int64_t block_of_tensor = block - list.first_block[low];
    const int64_t begin = block_of_tensor * kBlockElements<T> + threadIdx.x * Pack<T>::kSize;
    return {list.weights[low], begin, list.weights[low].numel - begin};
}

// __grid_constant__ lets the kernels index the list where the launch has put it. Without it each
// thread would make a copy of its own.
template <typename T, int kCapacity>
__global__ void __launch_bounds__(kThreads)
    clip_kernel(const __grid_constant__ TensorList<kCapacity> list, const Arithmetic<T> c) {
    using A = Arithmetic<T>;  // float for the 16-bit types, else T
    const Place place = find_place<T>(list);
    T* p = static_cast<T*>(place.tensor.param) + place.begin;

    Pack<T> weights = load(p, place.left);
#pragma unroll
    for (T& weight : weights.values) {
        weight = T(clip(A(weight), c));
    }
    store(p, place.left, weights);
}

template <typename T, int kCapacity>
__global__ void __launch_bounds__(kThreads)
    rmsprop_clip_kernel(const __grid_constant__ TensorList<kCapacity> list,
                        const Step<Arithmetic<T>> step) {
    using A = Arithmetic<T>;
    const Place place = find_place<T>(list);
    T* p = static_cast<T*>(place.tensor.param) + place.begin;
    const T* g = static_cast<const T*>(place.tensor.grad) + place.begin;
    T* v = static_cast<T*>(place.tensor.square_avg) + place.begin;

    // All loads come first: the compiler may not move one above a store to what may be its address
    Pack<T> weights = load(p, place.left);
    Pack<T> squares = load(v, place.left);
    const Pack<T> grads = load(g, place.left);
#pragma unroll
    for (int k = 0; k < Pack<T>::kSize; ++k) {
        A weight = A(weights.values[k]);
        A square = A(squares.values[k]);
        rmsprop_clip_element(weight, A(grads.values[k]), square, step);  // updates both
        weights.values[k] = T(weight);
        squares.values[k] = T(square);
    }
    store(p, place.left, weights);
    store(v, place.left, squares);
}

// ---------------------------------------------------------------------------- Gradient penalty

// Adds up `value` over each group of neighbouring threads. A group has 1, 2, 4, ... or 32 threads.
// Its first one gets the sum; what the others get is meaningless. All threads of a warp must call
// this together.
template <typename A>
__device__ A group_sum(A value, int group_size) {
    for (int distance = group_size / 2; distance > 0; distance /= 2) {
        value += __shfl_down_sync(0xffffffff, value, distance);
    }
    return value;
}

// Adds up `value` over a block of whole warps; thread 0 gets the sum. All threads must call this,
// and only once in a kernel: no barrier keeps a second call from writing to warp_sums while the
// first is still reading.
template <typename A>
__device__ A block_sum(A value) {
    __shared__ A warp_sums[kMaxThreads / kWarp];
    value = group_sum(value, kWarp);
    if (threadIdx.x % kWarp == 0) {
        warp_sums[threadIdx.x / kWarp] = value;
    }
    __syncthreads();
    A warp_sum = 0;
    if (threadIdx.x < blockDim.x / kWarp) {
        warp_sum = warp_sums[threadIdx.x];
    }
    return group_sum(warp_sum, kWarp);  // only thread 0's is meaningful
}

// First launch: each block adds up the squares of one chunk of one sample.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    squares_kernel(const T* grad, const int64_t size, double* partial) {
    using A = Arithmetic<T>;
    // There are at least as many blocks, so 32 bits suffice: to divide by them is much faster
    const unsigned chunks = chunks_of(size);
    const int64_t sample = blockIdx.x / chunks;
    const int64_t begin = int64_t(blockIdx.x % chunks) * kChunk;
    const int64_t left = size - begin;
    const T* x = grad + sample * size + begin;

    // A thread has several packs. It issues all their loads before it adds anything up, and for a
    // whole chunk without a branch in between, so that they are under way at the same time.
    static_assert(kChunk % kBlockElements<T> == 0);
    constexpr int kPacks = kChunk / kBlockElements<T>;
    Pack<T> packs[kPacks];
    if (left >= kChunk && is_aligned(x)) {
#pragma unroll
        for (int i = 0; i < kPacks; ++i) {
            load_aligned(packs[i], x + i * kBlockElements<T> + threadIdx.x * Pack<T>::kSize);
        }
    } else {
#pragma unroll
        for (int i = 0; i < kPacks; ++i) {
            const int offset = i * kBlockElements<T> + threadIdx.x * Pack<T>::kSize;
            packs[i] = load(x + offset, left - offset);
        }
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

// How many threads of norms_kernel work on a sample: one for each of its chunks, rounded up to a
// power of two, but no more than a warp. So few threads idle, and the order of additions, on which
// the last bits depend, follows from the shape alone.
__host__ __device__ int group_size_of(int64_t chunks) {
    int group_size = 1;
    while (group_size < chunks && group_size < kWarp) {
        group_size *= 2;
    }
    return group_size;
}

// Second launch: a single block adds up the chunks of each sample to its norm, and then the
// penalty. Root and quotient are those of A, since float64's take long, above all on GPUs that are
// made for games.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads)
    norms_kernel(const double* partial, const int64_t batch, const int64_t size,
                 const double target, double* norms, T* penalty) {
    using A = Arithmetic<T>;
    const int64_t chunks = chunks_of(size);
    const int group_size = group_size_of(chunks);
    const int groups = blockDim.x / group_size;
    const int group = threadIdx.x / group_size;
    const int member = threadIdx.x % group_size;

    A penalty_sum = 0;  // only the first member of a group adds to it
    for (int64_t first_sample = 0; first_sample < batch; first_sample += groups) {
        const int64_t sample = first_sample + group;
        double squares = 0;
        if (sample < batch) {
            for (int64_t chunk = member; chunk < chunks; chunk += group_size) {
                squares += partial[sample * chunks + chunk];
            }
        }
        squares = group_sum(squares, group_size);  // called by all threads, even without a sample
        if (sample < batch && member == 0) {
            const A norm = std::sqrt(A(squares));
            norms[sample] = norm;
            penalty_sum += (norm - A(target)) * (norm - A(target));
        }
    }
    penalty_sum = block_sum(penalty_sum);
    if (threadIdx.x == 0) {
        *penalty = T(penalty_sum / A(batch));
    }
}

// The gradient of the penalty: each thread scales one pack of one sample.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    gradient_penalty_backward_kernel(const T* grad, const int64_t batch, const int64_t size,
                                     const double target, const double* norms, const T* out_grad,
                                     T* grad_grad) {
    using A = Arithmetic<T>;
    const unsigned blocks_per_sample = divide_up(size, kBlockElements<T>);  // as in squares_kernel
    const int64_t sample = blockIdx.x / blocks_per_sample;
    const int64_t block_of_sample = blockIdx.x % blocks_per_sample;
    const int64_t begin = block_of_sample * kBlockElements<T> + threadIdx.x * Pack<T>::kSize;
    const int64_t left = size - begin;

    Pack<T> pack = load(grad + sample * size + begin, left);
    const A slope = penalty_slope(A(*out_grad), A(norms[sample]), A(target), A(batch));
#pragma unroll
    for (T& value : pack.values) {
        value = T(slope * A(value));
    }
    store(grad_grad + sample * size + begin, left, pack);
}

// -------------------------------------------------------------------------------- The launches

// The message of the last error of CUDA, or null. The error is cleared.
const char* launch_error() {
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Splits the tensors into lists of at most kCapacity and calls launch(list, blocks) for each.
template <typename T, int kCapacity, typename Launch>
void launch_with_capacity(const Weights* weights, int64_t count, const Launch& launch) {
    for (int64_t first = 0; first < count; first += kCapacity) {
        TensorList<kCapacity> list;
        list.count = std::min<int64_t>(kCapacity, count - first);
        list.first_block[0] = 0;
        for (int t = 0; t < list.count; ++t) {
            list.weights[t] = weights[first + t];
            const int64_t blocks = divide_up(list.weights[t].numel, kBlockElements<T>);
            list.first_block[t + 1] = list.first_block[t] + blocks;
        }
        launch(list, list.first_block[list.count]);
    }
}

template <typename T, typename Launch>
void launch_lists(const Weights* weights, int64_t count, const Launch& launch) {
    if (count <= kShort) {
        launch_with_capacity<T, kShort>(weights, count, launch);
    } else {
        launch_with_capacity<T, kLong>(weights, count, launch);
    }
}

const char* clip_weights(Type type, const Weights* weights, int64_t count, double c, void* stream) {
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    with_type<__half, __nv_bfloat16>(type, [&](auto tag) {
        using T = typename decltype(tag)::type;
        launch_lists<T>(weights, count, [&](const auto& list, int blocks) {
            clip_kernel<T><<<blocks, kThreads, 0, cuda_stream>>>(list, Arithmetic<T>(c));
        });
    });
    return launch_error();
}

const char* rmsprop_clip(Type type, const Weights* weights, int64_t count, double lr, double alpha,
                         double eps, double c, void* stream) {
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    with_type<__half, __nv_bfloat16>(type, [&](auto tag) {
        using T = typename decltype(tag)::type;
        const Step<Arithmetic<T>> step(lr, alpha, eps, c);
        launch_lists<T>(weights, count, [&](const auto& list, int blocks) {
            rmsprop_clip_kernel<T><<<blocks, kThreads, 0, cuda_stream>>>(list, step);
        });
    });
    return launch_error();
}

const char* gradient_penalty(Type type, Gradients grad, double target, double* partial,
                             double* norms, void* penalty, void* stream) {
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    with_type<__half, __nv_bfloat16>(type, [&](auto tag) {
        using T = typename decltype(tag)::type;
        const T* x = static_cast<const T*>(grad.data);
        const unsigned blocks = grad.batch * chunks_of(grad.size);
        if (blocks > 0) {  // CUDA refuses a launch of no blocks
            squares_kernel<T><<<blocks, kThreads, 0, cuda_stream>>>(x, grad.size, partial);
        }
        // No larger a block than the samples need: it would take longer to start and to add up
        const int64_t members = grad.batch * group_size_of(chunks_of(grad.size));
        const int64_t warps = std::max<int64_t>(1, divide_up(members, kWarp));
        const int threads = std::min<int64_t>(warps * kWarp, kMaxThreads);
        norms_kernel<T><<<1, threads, 0, cuda_stream>>>(partial, grad.batch, grad.size, target,
                                                        norms, static_cast<T*>(penalty));
    });
    return launch_error();
}

// Not called for an empty batch or empty samples.
const char* gradient_penalty_backward(Type type, Gradients grad, double target, const double* norms,
                                      const void* out_grad, void* grad_grad, void* stream) {
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    with_type<__half, __nv_bfloat16>(type, [&](auto tag) {
        using T = typename decltype(tag)::type;
        const unsigned blocks = grad.batch * divide_up(grad.size, kBlockElements<T>);
        gradient_penalty_backward_kernel<T><<<blocks, kThreads, 0, cuda_stream>>>(
            static_cast<const T*>(grad.data), grad.batch, grad.size, target, norms,
            static_cast<const T*>(out_grad), static_cast<T*>(grad_grad));
    });
    return launch_error();
}

}  // namespace

const Backend kCuda{clip_weights, rmsprop_clip, gradient_penalty, gradient_penalty_backward};

}  // namespace gan
