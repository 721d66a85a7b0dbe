// The kernels as plain functions of raw pointers and sizes. No torch header, so that nvcc alone compiles cuda.cu.
//
// All tensors of one call have the given type and lie on one device. Elements of type float16 and bfloat16 are computed
// in float32, those of float32 and float64 in their own type.
#pragma once

#include <cstdint>

namespace gan {

enum class Type { kFloat32, kFloat64, kFloat16, kBFloat16 };

// Calls f with a null pointer of the C++ type. The CPU and CUDA have their own for 16 bits.
template <typename Half, typename BFloat16, typename F>
void with_type(Type type, const F& f) {
    switch (type) {
        case Type::kFloat32:
            return f(static_cast<float*>(nullptr));
        case Type::kFloat64:
            return f(static_cast<double*>(nullptr));
        case Type::kFloat16:
            return f(static_cast<Half*>(nullptr));
        case Type::kBFloat16:
            return f(static_cast<BFloat16*>(nullptr));
    }
}

// One tensor of a parameter list, with its gradient and RMSprop's running mean of squares: numel > 0 elements each, in
// the same order without gaps. Clipping alone leaves the last two null.
struct Weights {
    void* param;
    const void* grad;
    void* square_avg;
    int64_t numel;
};

// The gradients of a batch of samples: size elements each, without gaps, one sample after the other.
struct Gradients {
    const void* data;
    int64_t batch;
    int64_t size;
};

// There are the same four for each device. On a CUDA device, the current one, each is a single launch on the stream (a
// cudaStream_t), except that gradient_penalty is two and a list of more than 800 tensors one for every 800. Returns
// what CUDA says went wrong, or null. On the CPU there is no stream, and the answer is null.
#define GAN_KERNELS                                                                                                 \
    const char* clip_weights(Type type, const Weights* weights, int64_t count, double c, void* stream);             \
    const char* rmsprop_clip(Type type, const Weights* weights, int64_t count, double lr, double alpha, double eps, \
                             double c, void* stream);                                                               \
    /* partial: room for batch * chunks_of(size) numbers. norms: (batch,). penalty: one number of the type. */      \
    const char* gradient_penalty(Type type, Gradients grad, double target, double* partial, double* norms,          \
                                 void* penalty, void* stream);                                                      \
    /* out_grad: one number of the type. grad_grad: the result, laid out as the gradients. */                       \
    const char* gradient_penalty_backward(Type type, Gradients grad, double target, const double* norms,            \
                                          const void* out_grad, void* grad_grad, void* stream);

namespace cpu {
GAN_KERNELS
}
namespace cuda {
GAN_KERNELS
}

#undef GAN_KERNELS

}  // namespace gan
