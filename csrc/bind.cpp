// The module sparcl.kernels._native: checks everything that comes from Python before a pointer is used. ValueError, one line.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "arena.h"
#include "kernels.h"
#include "layers.h"
#include "parallel.h"
#include "plan.h"

namespace nb = nanobind;
using namespace sparcl;

namespace {

using Array = nb::ndarray<nb::ro>;  // any framework; read-only arrays are looked at, never written
using MaybeArray = std::optional<Array>;
using Output = nb::ndarray<>;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

std::string text(const std::vector<long>& shape) {
  std::string s = "[";
  for (size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + "]";
}

template <class A>
std::vector<long> shape_of(const A& a) {
  std::vector<long> shape;
  for (size_t i = 0; i < a.ndim(); ++i) shape.push_back(static_cast<long>(a.shape(i)));
  return shape;
}

template <class T, class A>
auto checked(const A& a, const char* name, const char* type) {
  if (a.device_type() != nb::device::cpu::value) refuse(std::string(name) + " must be in the memory of the processor");
  if (a.dtype() != nb::dtype<T>()) refuse(std::string(name) + " must be " + type);
  long expected = 1;
  bool empty = false;
  for (size_t i = 0; i < a.ndim(); ++i) empty = empty || a.shape(i) == 0;
  for (size_t i = a.ndim(); i-- > 0;) {
    if (!empty && a.shape(i) != 1 && a.stride(i) != expected) refuse(std::string(name) + " must be contiguous");
    expected *= static_cast<long>(a.shape(i));
  }
  return static_cast<std::conditional_t<std::is_same_v<A, Array>, const T*, T*>>(a.data());
}

// A float32 array of exactly this shape.
template <class A>
auto floats(const A& a, const std::vector<long>& shape, const char* name) {
  if (shape_of(a) != shape) refuse(std::string(name) + " must have shape " + text(shape) + ", not " + text(shape_of(a)));
  return checked<float>(a, name, "float32");
}
template <class A>
auto floats(const std::optional<A>& a, const std::vector<long>& shape, const char* name) -> decltype(floats(*a, shape, name)) {
  return a ? floats(*a, shape, name) : nullptr;
}

template <class A>
Extent extent_of(const A& a, const char* name) {
  if (a.ndim() != 4) refuse(std::string(name) + " must have four axes [channels, rows, columns, batch]");
  const auto s = shape_of(a);
  return {s[0], s[1], s[2], s[3]};
}
std::vector<long> shape_of(const Extent& e) { return {e.channels, e.height, e.width, e.batch}; }

void check_threads(int threads) {
  if (threads < 1 || threads > 1024) refuse("threads must lie between 1 and 1024");
}

ConvPlan* make_plan(const Array& index, std::array<int, 4> weight, std::array<int, 2> stride, std::array<int, 2> padding,
                    std::array<int, 2> dilation, int groups, int block) {
  if (index.ndim() != 1) refuse("index must have one axis");
  return new ConvPlan(checked<int32_t>(index, "index", "int32"), static_cast<long>(index.shape(0)),
                      ConvShape{weight, stride, padding, dilation, groups}, block);
}

void forward(ConvPlan& plan, const Array& values, const MaybeArray& bias, const Array& x, const Output& out, int threads) {
  check_threads(threads);
  const Extent in = extent_of(x, "x"), result = plan.output_extent(in);
  const float* v = floats(values, {plan.nonzeros()}, "values");
  const float* b = floats(bias, {result.channels}, "bias");
  const float* from = floats(x, shape_of(in), "x");
  float* to = floats(out, shape_of(result), "out");
  nb::gil_scoped_release release;
  plan.forward(v, b, from, in, to, threads);
}

void input_gradient(ConvPlan& plan, const Array& values, const Array& gy, const Output& gx, int threads) {
  check_threads(threads);
  const Extent in = extent_of(gx, "gx");
  const float* v = floats(values, {plan.nonzeros()}, "values");
  const float* from = floats(gy, shape_of(plan.output_extent(in)), "gy");
  float* to = floats(gx, shape_of(in), "gx");
  nb::gil_scoped_release release;
  plan.input_gradient(v, from, in, to, threads);
}

void weight_gradient(ConvPlan& plan, const Array& x, const Array& gy, const Output& gvalues, int threads) {
  check_threads(threads);
  const Extent in = extent_of(x, "x");
  const float* from = floats(x, shape_of(in), "x");
  const float* g = floats(gy, shape_of(plan.output_extent(in)), "gy");
  float* to = floats(gvalues, {plan.nonzeros()}, "gvalues");
  nb::gil_scoped_release release;
  plan.weight_gradient(from, g, in, to, threads);
}

void set_chosen(ConvPlan& plan, const MaybeArray& chosen) {
  if (!chosen) return plan.set_chosen(nullptr);
  if (chosen->ndim() != 1 || static_cast<long>(chosen->shape(0)) != plan.nonzeros())
    refuse("chosen must have shape [" + std::to_string(plan.nonzeros()) + "]");
  const uint8_t* c = checked<uint8_t>(*chosen, "chosen", "uint8");
  plan.set_chosen(c);
}

Norm norm_of(const Extent& e, const float* x, const float* residual, const float* gamma, const float* beta, float eps, bool relu) {
  return {e.channels, e.height * e.width * e.batch, x, residual, gamma, beta, eps, relu};
}

void batch_norm(const Array& x, const MaybeArray& residual, const MaybeArray& gamma, const MaybeArray& beta,
                const std::optional<Output>& running_mean, const std::optional<Output>& running_var, const Output& mean,
                const Output& rstd, const Output& y, bool training, float momentum, float eps, bool relu, int threads) {
  check_threads(threads);
  const Extent e = extent_of(x, "x");
  const std::vector<long> whole = shape_of(e), channel = {e.channels};
  if (running_mean.has_value() != running_var.has_value()) refuse("running_mean and running_var go together");
  if (!training && !running_mean) refuse("without training, running_mean and running_var are needed");
  const Norm n = norm_of(e, floats(x, whole, "x"), floats(residual, whole, "residual"), floats(gamma, channel, "gamma"),
                         floats(beta, channel, "beta"), eps, relu);
  float* rm = floats(running_mean, channel, "running_mean");
  float* rv = floats(running_var, channel, "running_var");
  float *m = floats(mean, channel, "mean"), *r = floats(rstd, channel, "rstd"), *to = floats(y, whole, "y");
  if (training && n.count == 0) refuse("batch_norm: training needs at least one value in each channel");
  nb::gil_scoped_release release;
  if (training)
    norm_forward_train(n, momentum, rm, rv, m, r, to, threads);
  else
    norm_forward_eval(n, rm, rv, m, r, to, threads);
}

void batch_norm_apply(const Array& x, const MaybeArray& gamma, const MaybeArray& beta, const Array& mean, const Array& rstd,
                      const Output& y, bool relu, int threads) {
  check_threads(threads);
  const Extent e = extent_of(x, "x");
  const std::vector<long> whole = shape_of(e), channel = {e.channels};
  const Norm n = norm_of(e, floats(x, whole, "x"), nullptr, floats(gamma, channel, "gamma"), floats(beta, channel, "beta"), 0.0f, relu);
  const float *m = floats(mean, channel, "mean"), *r = floats(rstd, channel, "rstd");
  float* to = floats(y, whole, "y");
  nb::gil_scoped_release release;
  norm_apply(n, m, r, to, threads);
}

void batch_norm_backward(const Array& x, const MaybeArray& y, const Array& gy, const MaybeArray& gamma, const MaybeArray& beta,
                         const Array& mean, const Array& rstd, const std::optional<Output>& gx,
                         const std::optional<Output>& gresidual, const std::optional<Output>& ggamma,
                         const std::optional<Output>& gbeta, bool training, bool relu, int threads) {
  check_threads(threads);
  const Extent e = extent_of(x, "x");
  const std::vector<long> whole = shape_of(e), channel = {e.channels};
  const Norm n = norm_of(e, floats(x, whole, "x"), nullptr, floats(gamma, channel, "gamma"), floats(beta, channel, "beta"), 0.0f, relu);
  const float *m = floats(mean, channel, "mean"), *r = floats(rstd, channel, "rstd");
  const float *out = floats(y, whole, "y"), *g = floats(gy, whole, "gy");
  float *to = floats(gx, whole, "gx"), *to_residual = floats(gresidual, whole, "gresidual");
  float *to_gamma = floats(ggamma, channel, "ggamma"), *to_beta = floats(gbeta, channel, "gbeta");
  nb::gil_scoped_release release;
  if (n.count > 0) norm_backward(n, training, m, r, out, g, to, to_residual, to_gamma, to_beta, threads);
}

void bias_gradient_of(const Array& gy, const Output& gbias, int threads) {
  check_threads(threads);
  const Extent e = extent_of(gy, "gy");
  const float* g = floats(gy, shape_of(e), "gy");
  float* to = floats(gbias, {e.channels}, "gbias");
  nb::gil_scoped_release release;
  bias_gradient(g, e.channels, e.height * e.width * e.batch, to, threads);
}

Window window_of(std::array<int, 2> size, std::array<int, 2> stride, std::array<int, 2> padding) {
  return {size[0], size[1], stride[0], stride[1], padding[0], padding[1]};
}

using Pair = std::array<int, 2>;

void average_pool_of(const Array& x, const Output& y, Pair size, Pair stride, int threads) {
  check_threads(threads);
  const Extent in = extent_of(x, "x");
  const Window w = window_of(size, stride, {0, 0});
  const Extent pooled = pooled_extent(in, w);
  const float* from = floats(x, shape_of(in), "x");
  float* to = floats(y, shape_of(pooled), "y");
  nb::gil_scoped_release release;
  average_pool(from, in, w, to, threads);
}

void average_pool_backward_of(const Array& gy, const Output& gx, Pair size, Pair stride, int threads) {
  check_threads(threads);
  const Extent in = extent_of(gx, "gx");
  const Window w = window_of(size, stride, {0, 0});
  const Extent pooled = pooled_extent(in, w);
  const float* from = floats(gy, shape_of(pooled), "gy");
  float* to = floats(gx, shape_of(in), "gx");
  nb::gil_scoped_release release;
  average_pool_backward(from, in, w, to, threads);
}

void max_pool_of(const Array& x, const Output& y, Pair size, Pair stride, Pair padding, int threads) {
  check_threads(threads);
  const Extent in = extent_of(x, "x");
  const Window w = window_of(size, stride, padding);
  const Extent pooled = pooled_extent(in, w);
  const float* from = floats(x, shape_of(in), "x");
  float* to = floats(y, shape_of(pooled), "y");
  nb::gil_scoped_release release;
  max_pool(from, in, w, to, threads);
}

void max_pool_backward_of(const Array& x, const Array& gy, const Output& gx, Pair size, Pair stride, Pair padding, int threads) {
  check_threads(threads);
  const Extent in = extent_of(x, "x");
  const Window w = window_of(size, stride, padding);
  const Extent pooled = pooled_extent(in, w);
  const float* from = floats(x, shape_of(in), "x");
  const float* g = floats(gy, shape_of(pooled), "gy");
  float* to = floats(gx, shape_of(in), "gx");
  nb::gil_scoped_release release;
  max_pool_backward(from, g, in, w, to, threads);
}

void transpose_of(const Array& x, const Output& y, int threads) {
  check_threads(threads);
  if (x.ndim() != 2) refuse("x must have two axes");
  const long rows = static_cast<long>(x.shape(0)), columns = static_cast<long>(x.shape(1));
  const float* from = floats(x, {rows, columns}, "x");
  float* to = floats(y, {columns, rows}, "y");
  nb::gil_scoped_release release;
  transpose(from, rows, columns, to, threads);
}

// An uninitialised tensor of logical shape [N, ...] whose memory is batch-last and comes from the arena.
nb::ndarray<nb::pytorch, float> empty_batch_last(const std::vector<long>& shape) {
  if (shape.empty() || shape.size() > 8) refuse("shape must have 1 to 8 axes");
  size_t sizes[8];
  int64_t strides[8];
  size_t count = 1;
  for (long s : shape) {
    if (s < 0 || (s > 0 && count > (size_t{1} << 40) / static_cast<size_t>(s))) refuse("shape has an axis that is negative or too large");
    count *= static_cast<size_t>(s);
  }
  int64_t step = shape[0];
  strides[0] = 1;
  for (size_t i = shape.size(); i-- > 1; step *= shape[i]) strides[i] = step;
  for (size_t i = 0; i < shape.size(); ++i) sizes[i] = static_cast<size_t>(shape[i]);
  void* block = take(count * sizeof(float));
  nb::capsule owner(block, [](void* b) noexcept { give(b); });
  return nb::ndarray<nb::pytorch, float>(static_cast<float*>(block), shape.size(), sizes, owner, strides);
}

}  // namespace

NB_MODULE(_native, m) {
  using namespace nb::literals;
  nb::set_leak_warnings(false);  // a model that lives until the interpreter ends is no leak
  nb::class_<ConvPlan>(m, "ConvPlan")
      .def(nb::new_(&make_plan), "index"_a, "weight_shape"_a, "stride"_a, "padding"_a, "dilation"_a, "groups"_a, "block"_a)
      .def_prop_ro("nonzeros", &ConvPlan::nonzeros)
      .def_prop_ro("output_channels", [](const ConvPlan& plan) { return plan.shape().weight[0]; })
      .def("forward", &forward, "values"_a, "bias"_a.none(), "x"_a, "out"_a, "threads"_a)
      .def("input_gradient", &input_gradient, "values"_a, "gy"_a, "gx"_a, "threads"_a)
      .def("weight_gradient", &weight_gradient, "x"_a, "gy"_a, "gvalues"_a, "threads"_a)
      .def("set_chosen", &set_chosen, "chosen"_a.none())
      .def("output_size", [](const ConvPlan& plan, long height, long width) {
        const Extent e = plan.output_extent({plan.input_channels(), height, width, 1});
        return nb::make_tuple(e.height, e.width);
      }, "height"_a, "width"_a);
  m.def("batch_norm", &batch_norm, "x"_a, "residual"_a.none(), "gamma"_a.none(), "beta"_a.none(), "running_mean"_a.none(),
        "running_var"_a.none(), "mean"_a, "rstd"_a, "y"_a, "training"_a, "momentum"_a, "eps"_a, "relu"_a, "threads"_a);
  m.def("batch_norm_apply", &batch_norm_apply, "x"_a, "gamma"_a.none(), "beta"_a.none(), "mean"_a, "rstd"_a, "y"_a, "relu"_a,
        "threads"_a);
  m.def("batch_norm_backward", &batch_norm_backward, "x"_a, "y"_a.none(), "gy"_a, "gamma"_a.none(), "beta"_a.none(), "mean"_a,
        "rstd"_a, "gx"_a.none(), "gresidual"_a.none(), "ggamma"_a.none(), "gbeta"_a.none(), "training"_a, "relu"_a, "threads"_a);
  m.def("bias_gradient", &bias_gradient_of, "gy"_a, "gbias"_a, "threads"_a);
  m.def("average_pool", &average_pool_of, "x"_a, "y"_a, "size"_a, "stride"_a, "threads"_a);
  m.def("average_pool_backward", &average_pool_backward_of, "gy"_a, "gx"_a, "size"_a, "stride"_a, "threads"_a);
  m.def("max_pool", &max_pool_of, "x"_a, "y"_a, "size"_a, "stride"_a, "padding"_a, "threads"_a);
  m.def("max_pool_backward", &max_pool_backward_of, "x"_a, "gy"_a, "gx"_a, "size"_a, "stride"_a, "padding"_a, "threads"_a);
  m.def("transpose", &transpose_of, "x"_a, "y"_a, "threads"_a);
  m.def("empty_batch_last", &empty_batch_last, "shape"_a);
  m.def("arena_use", [] {
    const ArenaUse use = arena_use();
    return nb::make_tuple(use.used, use.peak);
  });
  m.def("counters", [] {
    const Counters c = counters();
    nb::dict d;
    d["forward"] = c.forward;
    d["input_gradient"] = c.input_gradient;
    d["weight_gradient"] = c.weight_gradient;
    return d;
  });
  m.def("reset_counters", &reset_counters);
  m.def("isa", [] { return std::string(kernels().name); });
  m.def("available_isas", [] { return std::string(available_units()); });
  m.def("select_isa", [](std::optional<std::string> name) { select_unit(name ? name->c_str() : nullptr); }, "name"_a.none());
}
