// The module sparcl.kernels._native: checks everything that comes from Python before a pointer is used. ValueError, one line.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "python/bind.h"
#include "kernels/kernels.h"
#include "engine/layers.h"
#include "engine/parallel.h"
#include "engine/plan.h"
#include "python/tensor.h"

namespace nb = nanobind;
using namespace sparcl;

namespace sparcl {

void check_threads(int threads) {
  if (threads < 1 || threads > 1024) refuse("threads must lie between 1 and 1024");
}

Norm norm_of(const Extent& e, const Numbers& x, const Term& residual, const float* gamma, const float* beta, float eps, bool relu) {
  return {e.channels, e.height * e.width * e.batch, x, residual, gamma, beta, eps, relu, nullptr, pieces_of(x, e)};
}

Source source_of(const Extent& in, nb::handle x, nb::handle gamma, nb::handle beta, nb::handle stats, bool relu,
                 std::vector<float>& scales) {
  if (x.is_none()) refuse("the gradient of the values needs x");
  const Norm n = norm_of(in, activation_like(x, in, "x"), nullptr, floats(gamma, {in.channels}, "gamma"),
                         floats(beta, {in.channels}, "beta"), 0.0f, relu);
  const float* s = floats(stats, {2, in.channels}, "stats");
  if (!s) return n.x;
  return norm_term(n, s, s + in.channels, scales);
}

}  // namespace sparcl

namespace {

using Pair = std::array<int, 2>;

// The extent of a batch-last tensor of this shape, [N, C, H, W], [N, C, L] or [N, F].
Extent extent_of(const std::vector<long>& shape) {
  if (shape.size() == 2) return {shape[1], 1, 1, shape[0]};
  if (shape.size() == 3) return {shape[1], 1, shape[2], shape[0]};
  if (shape.size() != 4) refuse("shape must have two to four axes");
  return {shape[1], shape[2], shape[3], shape[0]};
}

ConvPlan* make_plan(nb::handle index, std::array<int, 4> weight, Pair stride, Pair padding, Pair dilation, int groups, int block) {
  const Vector<int32_t> at = int32_vector(index, "index");
  return new ConvPlan(at.data, at.length, ConvShape{weight, stride, padding, dilation, groups}, block);
}

nb::object forward(ConvPlan& plan, nb::handle x, nb::handle values, nb::handle bias, int threads) {
  check_threads(threads);
  const Activation from = activation(x, "x");
  const Extent out = plan.output_extent(from.extent);
  if (from.axes == 2 && out.height * out.width != 1) refuse("an input of two axes is one position, the result would have more");
  if (from.axes == 3 && out.height != 1) refuse("an input of three axes is one row, the result would have more");
  const Values v = values_of(values, plan.nonzeros(), "values");
  const float* b = floats(bias, {out.channels}, "bias");
  Block y;
  {
    nb::gil_scoped_release release;
    y = activation_block(out);
    plan.forward(v.data, b, from.data, from.extent, y.get(), threads);
  }
  return activation_tensor(std::move(y), out, from.axes);
}

// (gradient of x, of the values, of the bias), each of its shape, None where it is not wanted. shape: x's; gamma, beta, stats, relu:
// see source_of.
nb::tuple backward(ConvPlan& plan, nb::handle gy, const std::vector<long>& shape, nb::handle values, nb::handle x, nb::handle gamma,
                   nb::handle beta, nb::handle stats, bool relu, bool want_x, bool want_values, bool want_bias, int threads) {
  check_threads(threads);
  const Extent in = extent_of(shape), out = plan.output_extent(in);
  const float* g = activation_like(gy, out, "gy");
  const Values v = values_of(values, plan.nonzeros(), "values");
  std::vector<float> scales;
  const Source source = want_values ? source_of(in, x, gamma, beta, stats, relu, scales) : nullptr;
  Block gx, gvalues, gbias;
  {
    nb::gil_scoped_release release;
    if (want_values) gvalues = vector_block(plan.nonzeros());
    if (want_x) gx = activation_block(in);
    if (want_x || want_values) plan.backward(v.data, source, g, in, gx.get(), gvalues.get(), threads);
    if (want_bias) {
      gbias = vector_block(out.channels);
      bias_gradient(g, out.channels, out.height * out.width * out.batch, gbias.get(), threads);
    }
  }
  return nb::make_tuple(want_x ? activation_tensor(std::move(gx), in, static_cast<int>(shape.size())) : nb::none(),
                        want_values ? contiguous_tensor(std::move(gvalues), v.shape) : nb::none(),
                        want_bias ? vector_tensor(std::move(gbias), out.channels) : nb::none());
}

void set_chosen(ConvPlan& plan, nb::handle chosen) {
  if (chosen.is_none()) return plan.set_chosen(nullptr);
  const Vector<uint8_t> c = uint8_vector(chosen, "chosen");
  if (c.length != plan.nonzeros()) refuse("chosen must have shape [" + std::to_string(plan.nonzeros()) + "]");
  plan.set_chosen(c.data);
}

// y; the batch's (or the running) mean and 1 / deviation are left in stats, and `tracked` is counted up in training.
nb::object batch_norm(nb::handle x, nb::handle residual, nb::handle gamma, nb::handle beta, nb::handle running_mean,
                      nb::handle running_var, nb::handle tracked, nb::handle stats, bool training, float momentum, float eps,
                      bool relu, int threads) {
  check_threads(threads);
  const Activation from = activation(x, "x");
  const Extent& e = from.extent;
  const Norm n = norm_of(e, from.data, activation_like(residual, e, "residual"), floats(gamma, {e.channels}, "gamma"),
                         floats(beta, {e.channels}, "beta"), eps, relu);
  float *rm = floats(running_mean, {e.channels}, "running_mean"), *rv = floats(running_var, {e.channels}, "running_var");
  if (running_mean.is_none() != running_var.is_none()) refuse("running_mean and running_var go together");
  if (!training && running_mean.is_none()) refuse("without training, running_mean and running_var are needed");
  if (training && n.count == 0) refuse("batch_norm: training needs at least one value in each channel");
  float* mean = floats(stats, {2, e.channels}, "stats");
  int64_t* batches = int64_scalar(tracked, "num_batches_tracked");
  if (training && batches) ++*batches;
  Block y;
  {
    nb::gil_scoped_release release;
    y = activation_block(e);
    if (training)
      norm_forward_train(n, momentum, rm, rv, mean, mean + e.channels, y.get(), threads);
    else
      norm_forward_eval(n, rm, rv, mean, mean + e.channels, y.get(), threads);
  }
  return activation_tensor(std::move(y), e, from.axes);
}

// (gradient of x, of gamma, of beta, of the residual), each None where it is not wanted. y: see norm_backward.
nb::tuple batch_norm_backward(nb::handle gy, nb::handle x, nb::handle y, nb::handle gamma, nb::handle beta, nb::handle stats,
                              bool want_x, bool want_gamma, bool want_beta, bool want_residual, bool training, bool relu,
                              int threads) {
  check_threads(threads);
  const Activation from = activation(x, "x");
  const Extent& e = from.extent;
  const Norm n = norm_of(e, from.data, nullptr, floats(gamma, {e.channels}, "gamma"), floats(beta, {e.channels}, "beta"), 0.0f, relu);
  const float* mean = floats(stats, {2, e.channels}, "stats");
  const float *out = activation_like(y, e, "y"), *g = activation_like(gy, e, "gy");
  Block gx, gresidual, ggamma, gbeta;
  {
    nb::gil_scoped_release release;
    if (want_x) gx = activation_block(e);
    if (want_residual) gresidual = activation_block(e);
    if (want_gamma) ggamma = vector_block(e.channels);
    if (want_beta) gbeta = vector_block(e.channels);
    norm_backward(n, training, mean, mean + e.channels, out, g, gx.get(), gresidual.get(), ggamma.get(), gbeta.get(), threads);
  }
  return nb::make_tuple(want_x ? activation_tensor(std::move(gx), e, from.axes) : nb::none(),
                        want_gamma ? vector_tensor(std::move(ggamma), e.channels) : nb::none(),
                        want_beta ? vector_tensor(std::move(gbeta), e.channels) : nb::none(),
                        want_residual ? activation_tensor(std::move(gresidual), e, from.axes) : nb::none());
}

Window window_of(Pair size, Pair stride, Pair padding) {
  return {size[0], size[1], stride[0], stride[1], padding[0], padding[1]};
}

nb::object average_pool_of(nb::handle x, Pair size, Pair stride, int threads) {
  check_threads(threads);
  const Activation from = activation(x, "x");
  const Window w = window_of(size, stride, {0, 0});
  const Extent pooled = pooled_extent(from.extent, w);
  Block y = activation_block(pooled);
  {
    nb::gil_scoped_release release;
    average_pool(from.data, from.extent, w, y.get(), threads);
  }
  return activation_tensor(std::move(y), pooled, from.axes);
}

nb::object average_pool_backward_of(nb::handle gy, const std::vector<long>& shape, Pair size, Pair stride, int threads) {
  check_threads(threads);
  const Extent in = extent_of(shape);
  const Window w = window_of(size, stride, {0, 0});
  const float* g = activation_like(gy, pooled_extent(in, w), "gy");
  Block gx = activation_block(in);
  {
    nb::gil_scoped_release release;
    average_pool_backward(g, in, w, gx.get(), threads);
  }
  return activation_tensor(std::move(gx), in, static_cast<int>(shape.size()));
}

nb::object max_pool_of(nb::handle x, Pair size, Pair stride, Pair padding, int threads) {
  check_threads(threads);
  const Activation from = activation(x, "x");
  const Window w = window_of(size, stride, padding);
  const Extent pooled = pooled_extent(from.extent, w);
  Block y = activation_block(pooled);
  {
    nb::gil_scoped_release release;
    max_pool(from.data, from.extent, w, y.get(), threads);
  }
  return activation_tensor(std::move(y), pooled, from.axes);
}

nb::object max_pool_backward_of(nb::handle x, nb::handle gy, Pair size, Pair stride, Pair padding, int threads) {
  check_threads(threads);
  const Activation from = activation(x, "x");
  const Window w = window_of(size, stride, padding);
  const float* g = activation_like(gy, pooled_extent(from.extent, w), "gy");
  Block gx = activation_block(from.extent);
  {
    nb::gil_scoped_release release;
    max_pool_backward(from.data, g, from.extent, w, gx.get(), threads);
  }
  return activation_tensor(std::move(gx), from.extent, from.axes);
}

// A contiguous tensor once more, batch-last.
nb::object batch_last_of(nb::handle x, int threads) {
  check_threads(threads);
  const Activation from = samples_first(x, "x");
  const Extent& e = from.extent;
  Block y = activation_block(e);
  {
    nb::gil_scoped_release release;
    transpose(from.data, e.batch, e.channels * e.height * e.width, y.get(), threads);
  }
  return activation_tensor(std::move(y), e, from.axes);
}

}  // namespace

NB_MODULE(_native, m) {
  using namespace nb::literals;
  nb::set_leak_warnings(false);  // a model that lives until the interpreter ends is no leak
  connect_to_torch();
  nb::class_<ConvPlan>(m, "ConvPlan")
      .def(nb::new_(&make_plan), "index"_a, "weight_shape"_a, "stride"_a, "padding"_a, "dilation"_a, "groups"_a, "block"_a)
      .def_prop_ro("nonzeros", &ConvPlan::nonzeros)
      .def("forward", &forward, "x"_a, "values"_a, "bias"_a.none(), "threads"_a)
      .def("backward", &backward, "gy"_a, "shape"_a, "values"_a, "x"_a.none(), "gamma"_a.none(), "beta"_a.none(), "stats"_a.none(),
           "relu"_a, "want_x"_a, "want_values"_a, "want_bias"_a, "threads"_a)
      .def("set_chosen", &set_chosen, "chosen"_a.none());
  m.def("batch_norm", &batch_norm, "x"_a, "residual"_a.none(), "gamma"_a.none(), "beta"_a.none(), "running_mean"_a.none(),
        "running_var"_a.none(), "tracked"_a.none(), "stats"_a, "training"_a, "momentum"_a, "eps"_a, "relu"_a, "threads"_a);
  m.def("batch_norm_backward", &batch_norm_backward, "gy"_a, "x"_a, "y"_a.none(), "gamma"_a.none(), "beta"_a.none(), "stats"_a,
        "want_x"_a, "want_gamma"_a, "want_beta"_a, "want_residual"_a, "training"_a, "relu"_a, "threads"_a);
  bind_chain(m);
  bind_modules(m);
  m.def("average_pool", &average_pool_of, "x"_a, "size"_a, "stride"_a, "threads"_a);
  m.def("average_pool_backward", &average_pool_backward_of, "gy"_a, "shape"_a, "size"_a, "stride"_a, "threads"_a);
  m.def("max_pool", &max_pool_of, "x"_a, "size"_a, "stride"_a, "padding"_a, "threads"_a);
  m.def("max_pool_backward", &max_pool_backward_of, "x"_a, "gy"_a, "size"_a, "stride"_a, "padding"_a, "threads"_a);
  m.def("batch_last", &batch_last_of, "x"_a, "threads"_a);
  m.def("is_activation", &is_activation, "x"_a);
  m.def("arena_use", [] {
    const ArenaUse use = arena_use();
    return nb::make_tuple(use.used, use.peak);
  });
  m.def("arena_trim", &trim);
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
