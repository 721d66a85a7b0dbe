// The operators torch.ops.gan_kernels.*: they check their arguments, bring them into the plain form
// that the kernels work on, and call the kernels of the device.
//
// Only LibTorch's stable ABI is used, so one library serves every PyTorch from 2.10 on.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
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

// Unless the condition holds, raises a RuntimeError in Python, with the words as its message.
template <typename... Words>
void check(bool condition, const Words&... words) {
    if (!condition) {
        std::ostringstream message;
        (message << ... << words);
        throw std::runtime_error(message.str());
    }
}

Type type_of(const Tensor& tensor, const std::string& name) {
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
            throw std::runtime_error(name + " must be float32, float64, float16 or bfloat16");
    }
}

// Whether the elements fill one block of memory without gaps, whatever the order of the dimensions.
bool is_dense(const Tensor& tensor) {
    if (tensor.is_contiguous()) {
        return true;
    }
    // We start with a block of one element. A dimension whose stride is the size of the block
    // enlarges it. Each pass over the dimensions finds at least one of those that are missing.
    const auto sizes = tensor.sizes();
    const auto strides = tensor.strides();
    int64_t block = 1;
    for (size_t pass = 0; pass < sizes.size(); ++pass) {
        for (size_t d = 0; d < sizes.size(); ++d) {
            if (strides[d] == block) {
                block *= sizes[d];
            }
        }
    }
    return block == tensor.numel();
}

// Whether two tensors of the same shape have their elements in the same order in memory.
bool same_layout(const Tensor& a, const Tensor& b) {
    const auto sizes = a.sizes();
    for (size_t d = 0; d < sizes.size(); ++d) {
        // In a dimension of size 1 there is nothing to stride over
        if (sizes[d] != 1 && a.strides()[d] != b.strides()[d]) {
            return false;
        }
    }
    return true;
}

void check_alike(const Tensor& a, const Tensor& b, const char* names) {
    const auto a_sizes = a.sizes();
    const auto b_sizes = b.sizes();
    check(std::equal(a_sizes.begin(), a_sizes.end(), b_sizes.begin(), b_sizes.end()), names,
          " must have the same shapes");
    check(a.scalar_type() == b.scalar_type(), names, " must have the same dtypes");
}

void check_device(const Tensor& a, const Tensor& b) {
    check(a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index(),
          "all tensors must be on one device");
}

#ifdef GAN_CUDA
// PyTorch's current stream on a device. We look the function up by name in the PyTorch that is
// loaded, because linking it would keep this library from loading into a PyTorch without CUDA.
void* current_stream(int32_t device) {
    using GetStream = int32_t (*)(int32_t, void**);
    static void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    static const auto get_stream =
        reinterpret_cast<GetStream>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
    void* stream = nullptr;
    check(get_stream && get_stream(device, &stream) == 0, "PyTorch gives no current CUDA stream");
    return stream;
}
#endif

// Calls run(backend, stream) with the kernels for the device that a tensor is on.
template <typename Run>
void run_on_device_of(const Tensor& tensor, const Run& run) {
#ifdef GAN_CUDA
    if (!tensor.is_cpu()) {
        const int32_t device = tensor.get_device_index();
        const torch::stable::accelerator::DeviceGuard guard(device);
        const char* error = run(kCuda, current_stream(device));
        return check(error == nullptr, "CUDA: ", error);
    }
#endif
    run(kCpu, nullptr);
}

// torch.no_grad(): copies of parameters that require gradients, and into them, are not recorded.
class NoGrad {
public:
    NoGrad() : was_enabled_(aoti_torch_grad_mode_is_enabled()) {
        aoti_torch_grad_mode_set_enabled(false);
    }
    ~NoGrad() { aoti_torch_grad_mode_set_enabled(was_enabled_); }

private:
    bool was_enabled_;
};

// The parameters of a call, possibly with gradients and running means of squares, in the form that
// the kernels take: sorted by dtype, without gaps, and all three in the same layout. Where a tensor
// is not in that form, the kernel gets a copy. All must be on the device of `first`.
class ParameterList {
public:
    explicit ParameterList(const Tensor& first) : first_(first) {}

    void add(const Tensor& param) {
        const Type type = type_of(param, "params");
        check_device(param, first_);
        if (param.numel() > 0) {
            const Tensor p = dense(param);
            weights_[int(type)].push_back({p.mutable_data_ptr(), nullptr, nullptr, p.numel()});
        }
    }

    void add(const Tensor& param, const Tensor& grad, const Tensor& square_avg) {
        const Type type = type_of(param, "params");
        check_device(param, first_);
        check_alike(param, grad, "params and grads");
        check_alike(param, square_avg, "params and square_avgs");
        check_device(grad, first_);
        check_device(square_avg, first_);
        if (param.numel() > 0) {
            const Tensor p = dense(param);
            const void* g = to_read(grad, p).const_data_ptr();
            void* v = to_write(square_avg, p).mutable_data_ptr();
            weights_[int(type)].push_back({p.mutable_data_ptr(), g, v, p.numel()});
        }
    }

    // Calls launch(backend, type, weights, count, stream) once for each dtype in the list.
    template <typename Launch>
    void run(const Launch& launch) {
        for (int type = 0; type < kTypes; ++type) {
            const std::vector<Weights>& weights = weights_[type];
            if (weights.empty()) {
                continue;
            }
            run_on_device_of(first_, [&](const Backend& backend, void* stream) {
                const int64_t count = weights.size();
                return launch(backend, Type(type), weights.data(), count, stream);
            });
        }
        for (auto& [original, copy] : written_copies_) {
            torch::stable::copy_(original, copy);
        }
    }

private:
    // The tensor itself, or a copy without gaps that run() will write back.
    Tensor dense(const Tensor& tensor) {
        return is_dense(tensor) ? tensor : copy_to_write(tensor, torch::stable::contiguous(tensor));
    }

    // The tensor itself, or a copy in the layout of another tensor that run() will write back.
    Tensor to_write(const Tensor& tensor, const Tensor& layout) {
        return same_layout(tensor, layout) ? tensor : copy_to_write(tensor, layout);
    }

    // The tensor itself, or a copy in the layout of another tensor.
    Tensor to_read(const Tensor& tensor, const Tensor& layout) {
        if (same_layout(tensor, layout)) {
            return tensor;
        }
        Tensor copy = torch::stable::empty_like(layout);
        torch::stable::copy_(copy, tensor);
        read_copies_.push_back(copy);
        return copy;
    }

    Tensor copy_to_write(const Tensor& tensor, const Tensor& layout) {
        for (int64_t d = 0; d < tensor.dim(); ++d) {
            check(tensor.size(d) < 2 || tensor.stride(d) != 0,
                  "params and square_avgs must not be expanded");
        }
        Tensor copy = torch::stable::empty_like(layout);
        torch::stable::copy_(copy, tensor);
        written_copies_.emplace_back(tensor, copy);
        return copy;
    }

    static constexpr int kTypes = 4;

    Tensor first_;
    std::vector<Weights> weights_[kTypes];
    std::vector<Tensor> read_copies_;  // kept alive until the kernels are launched
    std::vector<std::pair<Tensor, Tensor>> written_copies_;
    NoGrad no_grad_;
};

void clip_weights_(std::vector<Tensor> params, double c) {
    check(c >= 0, "c must not be negative");
    ParameterList list(params[0]);
    for (const Tensor& param : params) {
        list.add(param);
    }
    list.run([&](const Backend& backend, Type type, const Weights* weights, int64_t count,
                 void* stream) { return backend.clip_weights(type, weights, count, c, stream); });
}

void rmsprop_clip_(std::vector<Tensor> params, std::vector<Tensor> grads,
                   std::vector<Tensor> square_avgs, double lr, double alpha, double eps, double c) {
    check(c >= 0, "c must not be negative");
    check(grads.size() == params.size() && square_avgs.size() == params.size(),
          "params, grads and square_avgs must be equally many");
    ParameterList list(params[0]);
    for (size_t i = 0; i < params.size(); ++i) {
        list.add(params[i], grads[i], square_avgs[i]);
    }
    list.run([&](const Backend& backend, Type type, const Weights* weights, int64_t count,
                 void* stream) {
        return backend.rmsprop_clip(type, weights, count, lr, alpha, eps, c, stream);
    });
}

// The gradients with each sample in one block of memory and the samples in order, or such a copy.
Tensor by_sample(const Tensor& grad) {
    if (grad.numel() == 0 || !is_dense(grad)) {
        return torch::stable::contiguous(grad);
    }
    const int64_t size = grad.numel() / grad.size(0);
    const bool in_order = grad.size(0) == 1 || grad.stride(0) == size;
    return in_order ? grad : torch::stable::contiguous(grad);
}

Gradients gradients_of(const Tensor& grad) {
    const int64_t batch = grad.size(0);
    const int64_t size = batch == 0 ? 0 : grad.numel() / batch;
    return {grad.const_data_ptr(), batch, size};
}

std::tuple<Tensor, Tensor> gradient_penalty(Tensor grad, double target) {
    check(grad.dim() > 0, "grad must have a batch dimension");
    const Type type = type_of(grad, "grad");
    const Tensor x = by_sample(grad);
    const Gradients gradients = gradients_of(x);
    const int64_t partials = gradients.batch * chunks_of(gradients.size);
    Tensor penalty = torch::stable::new_empty(grad, {});
    Tensor norms = torch::stable::new_empty(grad, {gradients.batch}, ScalarType::Double);
    Tensor partial = torch::stable::new_empty(grad, {partials}, ScalarType::Double);
    run_on_device_of(grad, [&](const Backend& backend, void* stream) {
        double* partial_data = static_cast<double*>(partial.mutable_data_ptr());
        double* norms_data = static_cast<double*>(norms.mutable_data_ptr());
        return backend.gradient_penalty(type, gradients, target, partial_data, norms_data,
                                        penalty.mutable_data_ptr(), stream);
    });
    return {penalty, norms};
}

Tensor gradient_penalty_backward(Tensor out_grad, Tensor grad, Tensor norms, double target) {
    check(grad.dim() > 0, "grad must have a batch dimension");
    const Type type = type_of(grad, "grad");
    check(out_grad.numel() == 1 && out_grad.scalar_type() == grad.scalar_type(),
          "out_grad must be one number of grad's dtype");
    const bool one_per_sample = norms.dim() == 1 && norms.size(0) == grad.size(0);
    check(one_per_sample && norms.scalar_type() == ScalarType::Double && norms.is_contiguous(),
          "norms must be the float64 norms that gradient_penalty returned");
    check_device(out_grad, grad);
    check_device(norms, grad);
    Tensor result = torch::stable::empty_like(grad);
    if (grad.numel() == 0) {
        return result;
    }
    const Tensor x = by_sample(grad);
    const Tensor scaled = same_layout(x, result) ? result : torch::stable::empty_like(x);
    run_on_device_of(grad, [&](const Backend& backend, void* stream) {
        const double* norms_data = static_cast<const double*>(norms.const_data_ptr());
        return backend.gradient_penalty_backward(type, gradients_of(x), target, norms_data,
                                                 out_grad.const_data_ptr(),
                                                 scaled.mutable_data_ptr(), stream);
    });
    if (scaled.get() != result.get()) {
        torch::stable::copy_(result, scaled);
    }
    return result;
}

}  // namespace
}  // namespace gan

STABLE_TORCH_LIBRARY(gan_kernels, m) {
    m.def("clip_weights_(Tensor(a!)[] params, float c) -> ()");
    m.def(
        "rmsprop_clip_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] square_avgs, "
        "float lr, float alpha, float eps, float c) -> ()");
    m.def("gradient_penalty(Tensor grad, float target=1.0) -> (Tensor, Tensor)");
    m.def(
        "gradient_penalty_backward(Tensor out_grad, Tensor grad, Tensor norms, float target) "
        "-> Tensor");
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
