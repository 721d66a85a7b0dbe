// The kernels as functions of raw pointers and sizes. This header includes nothing of PyTorch, so
// that nvcc can compile cuda.cu without it.
#pragma once

#include <cstdint>

namespace gan {

enum class Type { kFloat32, kFloat64, kFloat16, kBFloat16 };

template <typename T>
struct TypeTag {
    using type = T;
};

// Calls f with the TypeTag of a C++ type. With f a generic lambda this turns the run-time type into
// a template argument:
//     with_type<Half, BFloat16>(type, [&](auto tag) { using T = typename decltype(tag)::type; });
// The 16-bit types are parameters because the CPU and CUDA have their own.
template <typename Half, typename BFloat16, typename F>
void with_type(Type type, const F& f) {
    switch (type) {
        case Type::kFloat32:
            return f(TypeTag<float>());
        case Type::kFloat64:
            return f(TypeTag<double>());
        case Type::kFloat16:
            return f(TypeTag<Half>());
        case Type::kBFloat16:
            return f(TypeTag<BFloat16>());
    }
}

// One tensor of a parameter list, with its gradient and RMSprop's running mean of squares. Each has
// numel > 0 elements, in the same order and without gaps. For a clip alone the last two are null.
struct Weights {
    void* param;
    const void* grad;
    void* square_avg;
    int64_t numel;
};

// The gradients of a batch of samples, of `size` elements each: one after the other, without gaps.
struct Gradients {
    const void* data;
    int64_t batch;
    int64_t size;
};

// The kernels of one kind of device. All tensors of a call have the given type and are on one
// device. A function returns an error message, or null if all went well.
//
// On a GPU the device is the current one, and `stream` is a cudaStream_t. A function launches one
// kernel, except that gradient_penalty launches two, and that a list of more than 800 tensors takes
// a launch for every 800. On the CPU `stream` is not used.
struct Backend {
    const char* (*clip_weights)(Type type, const Weights* weights, int64_t count, double c,
                                void* stream);

    const char* (*rmsprop_clip)(Type type, const Weights* weights, int64_t count, double lr,
                                double alpha, double eps, double c, void* stream);

    // Writes (batch,) norms and the penalty, one number of the given type. On a GPU the norms are
    // rounded to Arithmetic<type>. `partial` is scratch memory for batch * chunks_of(size) numbers.
    const char* (*gradient_penalty)(Type type, Gradients grad, double target, double* partial,
                                    double* norms, void* penalty, void* stream);

    // Writes the gradient of the penalty with respect to grad, times out_grad, which is one number
    // of the given type.
    const char* (*gradient_penalty_backward)(Type type, Gradients grad, double target,
                                             const double* norms, const void* out_grad,
                                             void* grad_grad, void* stream);
};

extern const Backend kCpu;   // in cpu.cpp
extern const Backend kCuda;  // in cuda.cu, which is not always part of the build

}  // namespace gan
