// Stands in for CUDA, so that csrc/cuda.cu itself runs on the CPU: slowly, but index for index as on a GPU. The test
// that uses it rewrites kernel<<<blocks, threads, 0, stream>>>(arguments) to run_blocks(blocks, threads,
// kernel)(arguments).
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(threads)
#define __grid_constant__
#define __shared__ static  // blocks run one after the other
#define CUDART_VERSION 13000

using __half = torch::headeronly::Half;
using __nv_bfloat16 = torch::headeronly::BFloat16;
using std::min;

struct Dim {
    unsigned x;
};
inline thread_local Dim threadIdx, blockIdx, gridDim;

// ------------------------------------------------------------------------------ kernels whose threads do not wait

template <typename Kernel>
auto run_blocks(unsigned blocks, int threads, Kernel kernel) {
    return [=](const auto&... arguments) {
        for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
            for (threadIdx.x = 0; threadIdx.x < static_cast<unsigned>(threads); ++threadIdx.x) {
                kernel(arguments...);
            }
        }
    };
}

// ---------------------------------------------------- cooperative kernels: a CPU thread for each thread, with their
// waits

constexpr int kLanes = 32;

struct Block {
    explicit Block(int threads) : all(threads), slots(threads) {
        for (int i = 0; i < threads / kLanes; ++i) {
            warps.push_back(std::make_unique<std::barrier<>>(kLanes));
        }
    }
    std::barrier<> all;
    std::vector<std::unique_ptr<std::barrier<>>> warps;
    std::vector<double> slots;
};

inline thread_local Block* block;
inline std::atomic<unsigned> blocks_at_sync;  // so many have come to the grid's barrier, in order

inline void __syncthreads() { block->all.arrive_and_wait(); }

template <typename A>
A __shfl_down_sync(unsigned, A value, int offset) {
    auto& warp = *block->warps[threadIdx.x / kLanes];
    block->slots[threadIdx.x] = value;
    warp.arrive_and_wait();
    const unsigned source = threadIdx.x + offset;
    const A result = source / kLanes == threadIdx.x / kLanes ? static_cast<A>(block->slots[source]) : value;
    warp.arrive_and_wait();
    return result;
}

namespace cooperative_groups {
struct Grid {
    void sync() const {
        block->all.arrive_and_wait();
        if (threadIdx.x == 0) {
            ++blocks_at_sync;
            blocks_at_sync.notify_all();
        }
        for (unsigned seen = blocks_at_sync; seen < gridDim.x; seen = blocks_at_sync) {
            blocks_at_sync.wait(seen);
        }
    }
};
inline Grid this_grid() { return {}; }
}  // namespace cooperative_groups

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;
constexpr int cudaDevAttrMultiProcessorCount = 0, kMultiprocessors = 3;
inline unsigned largest_cooperative_grid = 0;

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "error"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) { return *value = kMultiprocessors, cudaSuccess; }
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, int) {
    return *blocks = 1, cudaSuccess;
}

template <typename... A>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(A...), unsigned blocks, int threads, void** arguments, int,
                                        cudaStream_t) {
    blocks_at_sync = 0;
    largest_cooperative_grid = std::max(largest_cooperative_grid, blocks);
    std::vector<std::unique_ptr<Block>> states;
    std::vector<std::thread> running;
    for (unsigned b = 0; b < blocks; ++b) {
        states.push_back(std::make_unique<Block>(threads));
        for (int t = 0; t < threads; ++t) {
            running.emplace_back([=, state = states[b].get()] {
                for (unsigned seen = blocks_at_sync; seen < b; seen = blocks_at_sync) {
                    blocks_at_sync.wait(seen);  // until the block before has come to the barrier
                }
                block = state, blockIdx.x = b, threadIdx.x = t, gridDim.x = blocks;
                [&]<size_t... i>(std::index_sequence<i...>) {
                    kernel(*static_cast<std::remove_cv_t<A>*>(arguments[i])...);
                }(std::index_sequence_for<A...>{});
            });
        }
    }
    for (std::thread& thread : running) {
        thread.join();
    }
    return cudaSuccess;
}
