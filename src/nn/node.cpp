// Functions with a gradient of this project's own in libtorch's graph, and the backward operations that tch lacks.
// `node.rs` calls all of this. Pointers to tensors are tch's handles, which are `at::Tensor`s on the heap.

#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/native_batch_norm_backward.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstring>
#include <exception>
#include <tuple>

namespace {

using torch::autograd::variable_list;

// Room for an error's text.
constexpr size_t TEXT = 512;

// Writes a gradient of each input into `gradients`, new handles or null; 0, or an error's text and another number.
using Backward = int (*)(void *state, const at::Tensor *gradient, at::Tensor **gradients, char *error);
using Release = void (*)(void *state);

// What a gradient is made from. It goes as soon as the gradient is there, or with the graph.
struct State : torch::CustomClassHolder {
    void *state;
    size_t inputs;
    Backward backward;
    Release release_state;

    State(void *state, size_t inputs, Backward backward, Release release)
        : state(state), inputs(inputs), backward(backward), release_state(release) {}

    ~State() override { release(); }

    void release() {
        if (state != nullptr) {
            release_state(state);
            state = nullptr;
        }
    }
};

// Calls back for its gradient.
struct Callback : torch::autograd::Function<Callback> {
    static at::Tensor forward(torch::autograd::AutogradContext *context, at::TensorList, const at::Tensor *output,
                              const c10::intrusive_ptr<State> &state) {
        context->saved_data["state"] = c10::IValue::make_capsule(state);
        return *output;
    }

    static variable_list backward(torch::autograd::AutogradContext *context, const variable_list &gradients) {
        auto state = c10::static_intrusive_pointer_cast<State>(context->saved_data["state"].toCapsule());
        // Behind the inputs come two arguments that are no tensors.
        variable_list found(state->inputs + 2);
        if (!gradients[0].defined()) {
            return found;
        }
        TORCH_CHECK(state->state != nullptr, "backward was called twice through the same graph");
        std::vector<at::Tensor *> handles(state->inputs, nullptr);
        char error[TEXT] = {0};
        const int failed = state->backward(state->state, &gradients[0], handles.data(), error);
        state->release();
        for (size_t i = 0; i < handles.size(); ++i) {
            if (handles[i] != nullptr) {
                found[i] = std::move(*handles[i]);
                delete handles[i];
            }
        }
        TORCH_CHECK(failed == 0, error);
        return found;
    }
};

// Runs what may throw; the text of what was thrown goes to `error`.
template <typename Work> int guarded(char *error, Work &&work) {
    try {
        work();
        return 0;
    } catch (const std::exception &thrown) {
        std::strncpy(error, thrown.what(), TEXT - 1);
        error[TEXT - 1] = 0;
        return 1;
    }
}

template <size_t... I, typename Tuple> void hand_over(Tuple &&tensors, at::Tensor **out, std::index_sequence<I...>) {
    const auto handle = [](at::Tensor &tensor) { return tensor.defined() ? new at::Tensor(std::move(tensor)) : nullptr; };
    ((out[I] = handle(std::get<I>(tensors))), ...);
}

} // namespace

extern "C" {

// Whether gradients are recorded in this thread.
bool vigdet_records() { return at::GradMode::is_enabled(); }

// `output`, which was computed without gradient, as what depends on the inputs: a new handle.
int vigdet_attach(const at::Tensor *const *inputs, size_t count, const at::Tensor *output, void *state,
                  Backward backward, Release release, at::Tensor **attached, char *error) {
    auto owner = c10::make_intrusive<State>(state, count, backward, release);
    return guarded(error, [&] {
        variable_list list;
        for (size_t i = 0; i < count; ++i) {
            list.push_back(*inputs[i]);
        }
        // Of a vector, libtorch would not see what is in it.
        *attached = new at::Tensor(Callback::apply(at::TensorList(list), output, owner));
    });
}

// Adds the gradients of what `output` depends on, for this gradient of it.
int vigdet_backward(const at::Tensor *output, const at::Tensor *gradient, char *error) {
    return guarded(error, [&] { torch::autograd::backward({*output}, {*gradient}); });
}

// Leaves a variable without a gradient: the next backward pass makes a new one.
void vigdet_forget_gradient(const at::Tensor *variable) { variable->mutable_grad().reset(); }

// Gradients of input, weight and bias of a convolution in two dimensions.
int vigdet_convolution_backward(const at::Tensor *gradient, const at::Tensor *input, const at::Tensor *weight,
                                const int64_t *sizes, const bool *wanted, at::Tensor **out, char *error) {
    return guarded(error, [&] {
        const int64_t strides[] = {sizes[0], sizes[0]}, paddings[] = {sizes[1], sizes[1]};
        const int64_t outputs[] = {weight->size(0)};
        auto found = at::convolution_backward(*gradient, *input, *weight, at::IntArrayRef(outputs), strides, paddings,
                                              {1, 1}, false, {0, 0}, sizes[2], {wanted[0], wanted[1], wanted[2]});
        hand_over(found, out, std::make_index_sequence<3>{});
    });
}

// Gradients of input, weight and bias of a batch norm that took the batch's statistics.
int vigdet_norm_backward(const at::Tensor *gradient, const at::Tensor *input, const at::Tensor *weight,
                         const at::Tensor *mean, const at::Tensor *deviation, double eps, at::Tensor **out,
                         char *error) {
    return guarded(error, [&] {
        auto found = at::native_batch_norm_backward(*gradient, *input, *weight, {}, {}, *mean, *deviation, true, eps,
                                                    {true, true, true});
        hand_over(found, out, std::make_index_sequence<3>{});
    });
}
}
