// A residual block in one call: y = relu(norm2(conv2(relu(norm1(conv1(x))))) + shortcut(x)), the shortcut being x itself or
// norm(conv(x)). What is saved over the layers one by one: autograd's nodes, the first norm's result, which is never written to
// memory, and the sums of two gradients, which the last convolution makes as it writes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bind.h"

namespace nb = nanobind;

namespace sparcl {
namespace {

// A convolution without bias and the BatchNorm behind it, as Python hands them over.
// plan, values, gamma, beta, running mean, running variance, number of batches, training, momentum, eps
using Given = std::tuple<ConvPlan*, nb::object, nb::object, nb::object, nb::object, nb::object, nb::object, bool, float, float>;
// plan, values, gamma, beta, training, result of the convolution, statistics, wanted: gradient of the values, gamma, beta
using Kept = std::tuple<ConvPlan*, nb::object, nb::object, nb::object, bool, nb::object, nb::object, bool, bool, bool>;

ConvPlan& plan_of(ConvPlan* plan) {
  if (!plan) refuse("a block needs the plans of its convolutions");
  return *plan;
}

struct Stage {
  ConvPlan& plan;
  Extent in, out;
  const float *values, *gamma, *beta;
  float *running_mean, *running_var;
  int64_t* tracked;
  bool training;
  float momentum, eps;
  Block conv, stats;  // result of the convolution; mean and 1 / deviation
  std::vector<float> scales;

  Stage(const Given& given, const Extent& input)
      : plan(plan_of(std::get<0>(given))), in(input), out(plan.output_extent(input)),
        values(values_of(std::get<1>(given), plan.nonzeros(), "values").data),
        gamma(floats(std::get<2>(given), {out.channels}, "gamma")), beta(floats(std::get<3>(given), {out.channels}, "beta")),
        running_mean(floats(std::get<4>(given), {out.channels}, "running_mean")),
        running_var(floats(std::get<5>(given), {out.channels}, "running_var")),
        tracked(int64_scalar(std::get<6>(given), "num_batches_tracked")), training(std::get<7>(given)),
        momentum(std::get<8>(given)), eps(std::get<9>(given)) {
    if (!running_mean || !running_var) refuse("running_mean and running_var are needed");
    if (training && out.height * out.width * out.batch <= 1)
      refuse("batch_norm: training needs more than one value in each channel, the input is [" + std::to_string(out.batch) + ", " +
             std::to_string(out.channels) + ", " + std::to_string(out.height) + ", " + std::to_string(out.width) + "]");
  }

  void convolve(const Source& x, int threads) {
    conv = activation_block(out);
    plan.forward(values, nullptr, x, in, conv.get(), threads);
  }
  // y: see norm_forward_train.
  void normalise(const float* residual, bool relu, float* y, int threads) {
    stats = vector_block(2 * out.channels);
    float *mean = stats.get(), *rstd = mean + out.channels;
    const Norm n = norm_of(out, conv.get(), residual, gamma, beta, eps, relu);
    if (training) {
      if (tracked) ++*tracked;
      norm_forward_train(n, momentum, running_mean, running_var, mean, rstd, y, threads);
    } else {
      norm_forward_eval(n, running_mean, running_var, mean, rstd, y, threads);
    }
  }
  // relu(norm(conv)), to be read by the next convolution.
  Source source() {
    const Norm n = norm_of(out, conv.get(), nullptr, gamma, beta, eps, true);
    return norm_source(n, stats.get(), stats.get() + out.channels, scales);
  }
};

void check_same(const Extent& a, const Extent& b, const char* what) {
  if (a.channels != b.channels || a.height != b.height || a.width != b.width || a.batch != b.batch)
    refuse(std::string(what) + " must have the shape of the block's result");
}

// y, then of each convolution its result and its norm's statistics: what the backward pass asks for, None without `keep`.
nb::list forward(nb::handle x, const Given& first, const Given& second, const std::optional<Given>& shortcut, bool keep,
                 int threads) {
  check_threads(threads);
  const Activation from = activation(x, "x");
  if (from.axes != 4) refuse("a block needs an input of 4 axes [N, C, H, W]");
  Stage one(first, from.extent), two(second, one.out);
  std::optional<Stage> side;
  if (shortcut) side.emplace(*shortcut, from.extent);
  check_same(side ? side->out : from.extent, two.out, "the shortcut");
  Block y;
  {
    nb::gil_scoped_release release;
    one.convolve(from.data, threads);
    one.normalise(nullptr, true, nullptr, threads);
    two.convolve(one.source(), threads);
    if (!keep) one.conv.reset();
    if (side) side->convolve(from.data, threads);
    if (keep) y = activation_block(two.out);
    float* to = keep ? y.get() : two.conv.get();
    float* beside = side && !keep ? side->conv.get() : to;
    if (side) side->normalise(nullptr, false, beside, threads);
    two.normalise(side ? beside : from.data, true, to, threads);
    if (!keep) y = std::move(two.conv);
  }
  nb::list made;
  made.append(activation_tensor(std::move(y), two.out, 4));
  for (Stage* stage : {&one, &two, side ? &*side : nullptr}) {
    if (!stage) continue;
    const long channels = stage->out.channels;
    made.append(keep ? activation_tensor(std::move(stage->conv), stage->out, 4) : nb::none());
    made.append(keep ? contiguous_tensor(std::move(stage->stats), {2, channels}) : nb::none());
  }
  return made;
}

// A stage on the way back, with its gradients.
struct Back {
  ConvPlan& plan;
  Extent in, out;
  std::vector<int64_t> values_shape;
  const float *values, *gamma, *beta;
  bool training;
  bool kept;
  const float *conv, *stats;
  bool want_values, want_gamma, want_beta;
  Block gvalues, ggamma, gbeta;
  std::vector<float> scales;

  Back(const Kept& given, const Extent& input)
      : plan(plan_of(std::get<0>(given))), in(input), out(plan.output_extent(input)),
        gamma(floats(std::get<2>(given), {out.channels}, "gamma")), beta(floats(std::get<3>(given), {out.channels}, "beta")),
        training(std::get<4>(given)), kept(!std::get<5>(given).is_none() && !std::get<6>(given).is_none()),
        conv(activation_like(std::get<5>(given), out, "the convolution's result")),
        stats(floats(std::get<6>(given), {2, out.channels}, "stats")), want_values(std::get<7>(given)),
        want_gamma(std::get<8>(given)), want_beta(std::get<9>(given)) {
    const Values all = values_of(std::get<1>(given), plan.nonzeros(), "values");
    values = all.data;
    values_shape = all.shape;
  }
  bool wanted() const { return want_values || want_gamma || want_beta; }
  void need() const {
    if (!kept) refuse("the backward pass needs what the forward pass kept");
  }
  Source source() {
    return norm_source(norm_of(out, conv, nullptr, gamma, beta, 0.0f, true), stats, stats + out.channels, scales);
  }
  // Behind the norm comes a ReLU with the result y; null: as in norm_backward. gx may be null, or gy.
  void norm(const float* y, const float* gy, float* gx, int threads) {
    if (want_gamma) ggamma = vector_block(out.channels);
    if (want_beta) gbeta = vector_block(out.channels);
    norm_backward(norm_of(out, conv, nullptr, gamma, beta, 0.0f, true), training, stats, stats + out.channels, y, gy, gx, nullptr,
                  ggamma.get(), gbeta.get(), threads);
  }
  // The gradients of the convolution, whose input was x; gx may be null.
  void convolve(const Source& x, const float* gy, float* gx, int threads, const Added& added = {}) {
    if (want_values) gvalues = vector_block(plan.nonzeros());
    if (want_values && gx)
      plan.backward(values, x, gy, in, gx, gvalues.get(), threads, added);
    else if (want_values)
      plan.weight_gradient(x, gy, in, gvalues.get(), threads);
    else if (gx)
      plan.input_gradient(values, gy, in, gx, threads, added);
  }
  void append_to(nb::list& gradients) {
    gradients.append(want_values ? contiguous_tensor(std::move(gvalues), values_shape) : nb::none());
    gradients.append(want_gamma ? vector_tensor(std::move(ggamma), out.channels) : nb::none());
    gradients.append(want_beta ? vector_tensor(std::move(gbeta), out.channels) : nb::none());
  }
};

// The gradient of x, null where it is not wanted. Every temporary is given back as soon as it has been read.
Block run_back(const Source& x, const float* y, const float* gy, Back& one, Back& two, Back* side, bool want_x, int threads) {
  const bool need_one = want_x || one.wanted(), need_side = side && (want_x || side->wanted());
  Block g = need_one || two.want_values ? activation_block(two.out) : nullptr, gx;
  two.norm(y, gy, g.get(), threads);
  Block gone = need_one ? activation_block(one.out) : nullptr;
  two.convolve(two.want_values ? one.source() : nullptr, g.get(), gone.get(), threads);
  g.reset();
  if (need_one) {
    one.norm(nullptr, gone.get(), gone.get(), threads);
    if (want_x) gx = activation_block(one.in);
    const Added past_the_relu{gy, y};  // the gradient of the shortcut that is x itself
    one.convolve(x, gone.get(), gx.get(), threads, side ? Added{} : past_the_relu);
    gone.reset();
  }
  if (need_side) {
    g = activation_block(side->out);
    side->norm(y, gy, g.get(), threads);  // it has no ReLU, but the block's is behind it
    side->convolve(x, g.get(), gx.get(), threads, {gx.get()});
  }
  return gx;
}

// Gradients of x and of each convolution's values, its norm's gamma and beta; None where it is not wanted. made_of: x, gamma, beta,
// stats of what the block's input was made of, and relu, see source_of.
nb::list backward(nb::handle gy, nb::handle y, const std::vector<long>& shape, nb::handle x, nb::handle gamma, nb::handle beta,
                  nb::handle stats, bool relu, const Kept& first, const Kept& second, const std::optional<Kept>& shortcut,
                  bool want_x, int threads) {
  check_threads(threads);
  if (shape.size() != 4) refuse("shape must have four axes");
  const Extent in{shape[1], shape[2], shape[3], shape[0]};
  Back one(first, in), two(second, one.out);
  std::optional<Back> side;
  if (shortcut) side.emplace(*shortcut, in);
  check_same(side ? side->out : in, two.out, "the shortcut");
  two.need();
  if (want_x || one.wanted() || two.want_values) one.need();
  if (side && (want_x || side->wanted())) side->need();
  const float *g = activation_like(gy, two.out, "gy"), *result = activation_like(y, two.out, "y");
  if (gy.is_none() || y.is_none()) refuse("the backward pass needs gy and y");
  std::vector<float> scales;
  const bool reads_x = one.want_values || (side && side->want_values);
  const Source source = reads_x ? source_of(in, x, gamma, beta, stats, relu, scales) : nullptr;
  Block gx;
  {
    nb::gil_scoped_release release;
    gx = run_back(source, result, g, one, two, side ? &*side : nullptr, want_x, threads);
  }
  nb::list gradients;
  gradients.append(want_x ? activation_tensor(std::move(gx), in, 4) : nb::none());
  one.append_to(gradients);
  two.append_to(gradients);
  if (side) side->append_to(gradients);
  return gradients;
}

}  // namespace

void bind_block(nb::module_& m) {
  using namespace nb::literals;
  m.def("residual_block", &forward, "x"_a, "first"_a, "second"_a, "shortcut"_a.none(), "keep"_a, "threads"_a);
  m.def("residual_block_backward", &backward, "gy"_a, "y"_a, "shape"_a, "x"_a.none(), "gamma"_a.none(), "beta"_a.none(),
        "stats"_a.none(), "relu"_a, "first"_a, "second"_a, "shortcut"_a.none(), "want_x"_a, "threads"_a);
}

}  // namespace sparcl
