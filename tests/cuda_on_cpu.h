// Stands in for CUDA, so that csrc/cuda.cu itself runs on the CPU: slowly, but index for index as
// on a GPU. The test that uses it rewrites kernel<<<blocks, threads, 0, stream>>>(arguments) to
// run(waits, blocks, threads, kernel)(arguments), where waits tells whether the kernel's threads
// wait for each other.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(threads)
#define __grid_constant__
#define __shared__ static  // blocks run one after the other
#define CUDART_VERSION 13000

using __half = torch::headeronly::Half;
using __nv_bfloat16 = torch::headeronly::BFloat16;
using std::min;

struct __attribute__((may_alias, aligned(16))) uint4 {
    unsigned x, y, z, w;
};

inline void __stwb(uint4* pointer, const uint4& value) { *pointer = value; }

struct Dim {
    unsigned x;
};
inline thread_local Dim threadIdx, blockIdx;
inline Dim blockDim;

constexpr int kLanes = 32;

// What the threads of a block share. Blocks run one after the other.
struct Block {
    explicit Block(int threads) : all(threads), slots(2 * threads) {
        for (int i = 0; i < threads / kLanes; ++i) {
            warps.push_back(std::make_unique<std::barrier<>>(kLanes));
        }
    }
    std::barrier<> all;
    std::vector<std::unique_ptr<std::barrier<>>> warps;
    std::vector<double> slots;
};

inline Block* block;

inline void __syncthreads() { block->all.arrive_and_wait(); }

// Every other call has other slots, so that none is written while a lane may still read it: between
// two calls that share slots each lane has waited for all others.
inline thread_local bool is_odd = false;

template <typename A>
A __shfl_down_sync(unsigned, A value, int offset) {
    is_odd = !is_odd;
    double* slots = block->slots.data() + (is_odd ? block->slots.size() / 2 : 0);
    slots[threadIdx.x] = value;
    block->warps[threadIdx.x / kLanes]->arrive_and_wait();
    const unsigned source = threadIdx.x + offset;
    return source / kLanes == threadIdx.x / kLanes ? static_cast<A>(slots[source]) : value;
}

// A kernel whose threads wait for each other gets a CPU thread for each of a block, which goes
// through all blocks.
template <typename Kernel>
auto run(bool waits, unsigned blocks, int threads, Kernel kernel) {
    return [=](const auto&... arguments) {
        Block shared(threads);
        block = &shared;
        blockDim.x = threads;
        const auto go = [&](unsigned thread) {
            threadIdx.x = thread;
            for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
                kernel(arguments...);
                if (waits) {
                    __syncthreads();
                }
            }
        };
        std::vector<std::thread> running;
        for (int thread = 0; thread < threads; ++thread) {
            waits ? void(running.emplace_back(go, thread)) : go(thread);
        }
        for (std::thread& thread : running) {
            thread.join();
        }
    };
}

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;

inline cudaError_t last_error = cudaSuccess;
inline cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
inline const char* cudaGetErrorString(cudaError_t) { return "error"; }
