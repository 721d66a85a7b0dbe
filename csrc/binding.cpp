// The operators torch.ops.gan_kernels.*: checks what they are given, brings it into the plain form that the kernels
// work on, and registers them. Only LibTorch's stable ABI is used, so one library serves every PyTorch from 2.10 on.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "arithmetic.h"
#include "kernels.h"

#ifdef GAN_CUDA
#include <dlfcn.h>
#endif

namespace gan {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A RuntimeError in Python, with the words as its message, unless it holds.
template <typename... Words>
void check(bool holds, const Words&... words) {
    if (!holds) {
        std::ostringstream message;
        (message << ... << words);
        throw std::runtime_error(message.str());
    }
}

constexpr int kTypes = 4;

Type type_of(const Tensor& tensor, const char* name) {
    switch (tensor.scalar_type()) {
        case ScalarType::Float:
            return Type::kFloat32;
        case ScalarType::Double:
            return Type::kFloat64;
        case ScalarType::Half:
            return Type::kFloat16;
        case ScalarType::BFloat16:
            return Type::kBFloat16;
        default:
            throw std::runtime_error(std::string(name) + " must be float32, float64, float16 or bfloat16");
    }
}

// Whether the elements fill one block of memory without gaps, whatever the order of the dimensions.
bool is_dense(const Tensor& tensor) {
    if (tensor.is_contiguous()) {
        return true;
    }
    const auto sizes = tensor.sizes(), strides = tensor.strides();
    int64_t block = 1;
    for (size_t pass = 0; pass < sizes.size(); ++pass) {
        for (size_t d = 0; d < sizes.size(); ++d) {
            block *= strides[d] == block ? sizes[d] : 1;
        }
    }
    return block == tensor.numel();
}

// Whether a and b, of the same shape, have their elements in the same order. Strides of dimensions of size 1 say
// nothing.
bool same_layout(const Tensor& a, const Tensor& b) {
    const auto sizes = a.sizes(), a_strides = a.strides(), b_strides = b.strides();
    for (size_t d = 0; d < sizes.size(); ++d) {
        if (sizes[d] != 1 && a_strides[d] != b_strides[d]) {
            return false;
        }
    }
    return true;
}

// Each name is of a and what has to agree with it.
void check_alike(const Tensor& a, const Tensor& b, const char* names) {
    const auto a_sizes = a.sizes(), b_sizes = b.sizes();
    check(std::equal(a_sizes.begin(), a_sizes.end(), b_sizes.begin(), b_sizes.end()), names,
          " must have the same shapes");
    check(a.scalar_type() == b.scalar_type(), names, " must have the same dtypes");
}

void check_device(const Tensor& a, const Tensor& b) {
    check(a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index(),
          "all tensors must be on one device");
}

// The kernels of a device.
struct Backend {
    decltype(&cpu::clip_weights) clip_weights;
    decltype(&cpu::rmsprop_clip) rmsprop_clip;
    decltype(&cpu::gradient_penalty) gradient_penalty;
    decltype(&cpu::gradient_penalty_backward) gradient_penalty_backward;
};
constexpr Backend kCpu{cpu::clip_weights, cpu::rmsprop_clip, cpu::gradient_penalty, cpu::gradient_penalty_backward};

#ifdef GAN_CUDA
constexpr Backend kCuda{cuda::clip_weights, cuda::rmsprop_clip, cuda::gradient_penalty,
                        cuda::gradient_penalty_backward};

// PyTorch's current stream on a device. Asked for by name, in the PyTorch that is loaded, so that this library also
// loads into one without CUDA.
void* current_stream(int32_t device) {
    using Get = int32_t (*)(int32_t, void**);
    static const auto get = reinterpret_cast<Get>(
        dlsym(dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD), "aoti_torch_get_current_cuda_stream"));
    void* stream = nullptr;
    check(get && get(device, &stream) == 0, "PyTorch gives no current CUDA stream");
    return stream;
}
#endif

// Calls kernel(backend, stream) for the device that the tensor is on.
template <typename Kernel>
void launch(const Tensor& tensor, const Kernel& kernel) {
#ifdef GAN_CUDA
    if (!tensor.is_cpu()) {
        const torch::stable::accelerator::DeviceGuard guard(tensor.get_device_index());
        const char* error = kernel(kCuda, current_stream(tensor.get_device_index()));
        return check(error == nullptr, "CUDA: ", error);
    }
#endif
    kernel(kCpu, nullptr);
}

// A list of parameters, with their gradients and running means or without, as the kernels take it.
class ParameterList {
public:
    ParameterList(const std::vector<Tensor>& params, const std::vector<Tensor>* grads,
                  const std::vector<Tensor>* square_avgs) {
        check(!grads || (grads->size() == params.size() && square_avgs->size() == params.size()),
              "params, grads and square_avgs must be equally many");
        for (size_t i = 0; i < params.size(); ++i) {
            const Type type = type_of(params[i], "params");
            check_device(params[i], params[0]);
            if (grads) {
                check_alike(params[i], (*grads)[i], "params and grads");
                check_alike(params[i], (*square_avgs)[i], "params and square_avgs");
                check_device((*grads)[i], params[0]);
                check_device((*square_avgs)[i], params[0]);
            }
            const int64_t numel = params[i].numel();
            if (numel == 0) {
                continue;
            }
            const Tensor param = in_place(params[i], nullptr);
            Weights weights{param.mutable_data_ptr(), nullptr, nullptr, numel};
            if (grads) {
                Tensor grad = (*grads)[i];
                if (!same_layout(grad, param)) {
                    grad = torch::stable::empty_like(param);
                    torch::stable::copy_(grad, (*grads)[i]);
                    grads_.push_back(grad);
                }
                weights.grad = grad.const_data_ptr();
                weights.square_avg = in_place((*square_avgs)[i], &param).mutable_data_ptr();
            }
            weights_[static_cast<int>(type)].push_back(weights);
        }
    }

    // Calls kernel(backend, type, weights, count, stream) once for each dtype that occurs.
    template <typename Kernel>
    void launch(const Tensor& tensor, const Kernel& kernel) {
        for (int type = 0; type < kTypes; ++type) {
            if (const auto& weights = weights_[type]; !weights.empty()) {
                gan::launch(tensor, [&](const Backend& backend, void* stream) {
                    return kernel(backend, static_cast<Type>(type), weights.data(), int64_t(weights.size()), stream);
                });
            }
        }
        for (auto& [original, copy] : copies_) {
            torch::stable::copy_(original, copy);
        }
    }

private:
    // The tensor itself if its elements are dense and in the given layout, if any, else a copy, to be written back.
    Tensor in_place(const Tensor& tensor, const Tensor* layout) {
        if (layout ? same_layout(tensor, *layout) : is_dense(tensor)) {
            return tensor;
        }
        const auto sizes = tensor.sizes(), strides = tensor.strides();
        for (size_t d = 0; d < sizes.size(); ++d) {
            check(sizes[d] < 2 || strides[d] != 0, "params and square_avgs must not be expanded");
        }
        Tensor copy = torch::stable::empty_like(layout ? *layout : torch::stable::contiguous(tensor));
        torch::stable::copy_(copy, tensor);
        copies_.emplace_back(tensor, copy);
        return copy;
    }

    std::vector<Weights> weights_[kTypes];
    std::vector<std::pair<Tensor, Tensor>> copies_;
    std::vector<Tensor> grads_;  // copies in the layout of their parameters
};

void clip_weights_(std::vector<Tensor> params, double c) {
    check(c >= 0, "c must not be negative");
    ParameterList(params, nullptr, nullptr)
        .launch(params[0], [&](const Backend& backend, Type type, const Weights* weights, int64_t count, void* stream) {
            return backend.clip_weights(type, weights, count, c, stream);
        });
}

void rmsprop_clip_(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> square_avgs, double lr,
                   double alpha, double eps, double c) {
    check(c >= 0, "c must not be negative");
    ParameterList(params, &grads, &square_avgs)
        .launch(params[0], [&](const Backend& backend, Type type, const Weights* weights, int64_t count, void* stream) {
            return backend.rmsprop_clip(type, weights, count, lr, alpha, eps, c, stream);
        });
}

// The gradients with each sample's elements in one block, samples in order: themselves, or a copy.
Tensor by_sample(const Tensor& grad) {
    const bool in_order = grad.numel() == 0 || grad.size(0) == 1 || grad.stride(0) == grad.numel() / grad.size(0);
    return is_dense(grad) && in_order ? grad : torch::stable::contiguous(grad);
}

Gradients gradients_of(const Tensor& grad) {
    const int64_t batch = grad.size(0);
    return {grad.const_data_ptr(), batch, batch == 0 ? 0 : grad.numel() / batch};
}

std::tuple<Tensor, Tensor> gradient_penalty(Tensor grad, double target) {
    check(grad.dim() > 0, "grad must have a batch dimension");
    const Type type = type_of(grad, "grad");
    const Tensor x = by_sample(grad);
    const Gradients gradients = gradients_of(x);
    Tensor norms = torch::stable::new_empty(grad, {gradients.batch}, ScalarType::Double);
    Tensor partial = torch::stable::new_empty(norms, {gradients.batch * chunks_of(gradients.size)});
    Tensor penalty = torch::stable::new_empty(grad, {});
    launch(grad, [&](const Backend& backend, void* stream) {
        return backend.gradient_penalty(type, gradients, target, static_cast<double*>(partial.mutable_data_ptr()),
                                        static_cast<double*>(norms.mutable_data_ptr()), penalty.mutable_data_ptr(),
                                        stream);
    });
    return {penalty, norms};
}

Tensor gradient_penalty_backward(Tensor out_grad, Tensor grad, Tensor norms, double target) {
    check(grad.dim() > 0, "grad must have a batch dimension");
    const Type type = type_of(grad, "grad");
    check(out_grad.numel() == 1 && out_grad.scalar_type() == grad.scalar_type(),
          "out_grad must be one number of grad's dtype");
    check(norms.dim() == 1 && norms.size(0) == grad.size(0) && norms.scalar_type() == ScalarType::Double &&
              norms.is_contiguous(),
          "norms must be the float64 norms that gradient_penalty returned");
    check_device(out_grad, grad);
    check_device(norms, grad);
    Tensor result = torch::stable::empty_like(grad);
    if (grad.numel() == 0) {
        return result;
    }
    const Tensor x = by_sample(grad);
    const Tensor work = same_layout(x, result) ? result : torch::stable::empty_like(x);
    launch(grad, [&](const Backend& backend, void* stream) {
        return backend.gradient_penalty_backward(type, gradients_of(x), target,
                                                 static_cast<const double*>(norms.const_data_ptr()),
                                                 out_grad.const_data_ptr(), work.mutable_data_ptr(), stream);
    });
    if (work.get() != result.get()) {
        torch::stable::copy_(result, work);
    }
    return result;
}

}  // namespace
}  // namespace gan

STABLE_TORCH_LIBRARY(gan_kernels, m) {
    m.def("clip_weights_(Tensor(a!)[] params, float c) -> ()");
    m.def(
        "rmsprop_clip_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] square_avgs, float lr, float alpha, float "
        "eps, "
        "float c) -> ()");
    m.def("gradient_penalty(Tensor grad, float target=1.0) -> (Tensor, Tensor)");
    m.def("gradient_penalty_backward(Tensor out_grad, Tensor grad, Tensor norms, float target) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gan_kernels, CPU, m) {
    m.impl("clip_weights_", TORCH_BOX(&gan::clip_weights_));
    m.impl("rmsprop_clip_", TORCH_BOX(&gan::rmsprop_clip_));
    m.impl("gradient_penalty", TORCH_BOX(&gan::gradient_penalty));
    m.impl("gradient_penalty_backward", TORCH_BOX(&gan::gradient_penalty_backward));
}

#ifdef GAN_CUDA
STABLE_TORCH_LIBRARY_IMPL(gan_kernels, CUDA, m) {
    m.impl("clip_weights_", TORCH_BOX(&gan::clip_weights_));
    m.impl("rmsprop_clip_", TORCH_BOX(&gan::rmsprop_clip_));
    m.impl("gradient_penalty", TORCH_BOX(&gan::gradient_penalty));
    m.impl("gradient_penalty_backward", TORCH_BOX(&gan::gradient_penalty_backward));
}
#endif
