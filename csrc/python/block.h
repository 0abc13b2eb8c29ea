// A residual block on its way forward and back: y = relu(norm2(conv2(relu(norm1(conv1(x))))) + shortcut(x)), the shortcut being x
// itself or norm(conv(x)). What is saved over the layers one by one: autograd's nodes, the first norm's result, which is never
// written to memory, and the sums of two gradients, which the last convolution makes as it writes.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "python/bind.h"

namespace nb = nanobind;

namespace sparcl {

// A convolution without bias and the BatchNorm behind it, as Python hands them over.
// plan, values, gamma, beta, running mean, running variance, number of batches, training, momentum, eps
using Given = std::tuple<nb::object, nb::object, nb::object, nb::object, nb::object, nb::object, nb::object, bool, float, float>;
// first, second, shortcut
using GivenBlock = std::tuple<Given, Given, std::optional<Given>>;

// Which gradients are wanted of a stage.
struct Wanted {
  bool values = false, gamma = false, beta = false;
  bool any() const { return values || gamma || beta; }
};

inline ConvPlan& plan_of(nb::handle plan) {
  ConvPlan* of = nullptr;
  if (!nb::try_cast(plan, of) || !of) refuse("a block needs the plans of its convolutions");
  return *of;
}

// Memory for activations, of floats or halves.
struct Cells {
  Block memory;
  bool half = false;
  Cells() = default;
  Cells(const Extent& e, bool halves)
      : memory(activation_block(e, halves)), half(halves) {}
  Room get() const { return half ? Room(reinterpret_cast<Half*>(memory.get())) : Room(memory.get()); }
  explicit operator bool() const { return memory != nullptr; }
  void reset() { memory.reset(); }
};

struct Stage {
  ConvPlan& plan;
  Extent in, out;
  const float *values, *gamma, *beta;
  float *running_mean, *running_var;
  int64_t* tracked;
  bool training;
  float momentum, eps;
  bool half;          // whether the result is kept in halves
  Cells conv;         // result of the convolution
  Block stats;        // mean and 1 / deviation
  std::vector<float> scales;

  Stage(const Given& given, const Extent& input, bool halves)
      : plan(plan_of(std::get<0>(given))), in(input), out(plan.output_extent(input)),
        values(values_of(std::get<1>(given), plan.nonzeros(), "values").data),
        gamma(floats(std::get<2>(given), {out.channels}, "gamma")), beta(floats(std::get<3>(given), {out.channels}, "beta")),
        running_mean(floats(std::get<4>(given), {out.channels}, "running_mean")),
        running_var(floats(std::get<5>(given), {out.channels}, "running_var")),
        tracked(int64_scalar(std::get<6>(given), "num_batches_tracked")), training(std::get<7>(given)),
        momentum(std::get<8>(given)), eps(std::get<9>(given)), half(halves) {
    if (!running_mean || !running_var) refuse("running_mean and running_var are needed");
    if (training && out.height * out.width * out.batch <= 1)
      refuse("batch_norm: training needs more than one value in each channel, the input is [" + std::to_string(out.batch) + ", " +
             std::to_string(out.channels) + ", " + std::to_string(out.height) + ", " + std::to_string(out.width) + "]");
  }

  void convolve(const Source& x, int threads) {
    conv = Cells(out, half);
    plan.forward(values, nullptr, x, in, conv.get(), threads);
  }
  // y: see norm_forward_train.
  void normalise(const Term& residual, bool relu, const Room& y, uint8_t* signs, int threads) {
    stats = vector_block(2 * out.channels);
    float *mean = stats.get(), *rstd = mean + out.channels;
    Norm n = norm_of(out, conv.get(), residual, gamma, beta, eps, relu);
    n.signs = signs;
    if (training) {
      if (tracked) ++*tracked;
      norm_forward_train(n, momentum, running_mean, running_var, mean, rstd, y, threads);
    } else {
      norm_forward_eval(n, running_mean, running_var, mean, rstd, y, threads);
    }
  }
  // norm(conv) or relu of it, for whoever reads it next.
  Term result(bool relu) {
    const Norm n = norm_of(out, conv.get(), nullptr, gamma, beta, eps, relu);
    return norm_term(n, stats.get(), stats.get() + out.channels, scales);
  }
};

// Signs of a tensor, see sign_bytes.
inline Block sign_block(const Numbers& of, const Extent& e) {
  const long pieces = pieces_of(of, e);
  return vector_block((pieces * e.channels * sign_bytes(e.height * e.width * e.batch / pieces) + 3) / 4);
}
inline uint8_t* bytes(const Block& signs) { return reinterpret_cast<uint8_t*>(signs.get()); }

inline void check_same(const Extent& a, const Extent& b, const char* what) {
  if (a.channels != b.channels || a.height != b.height || a.width != b.width || a.batch != b.batch)
    refuse(std::string(what) + " must have the shape of the block's result");
}

struct Residual {
  Stage one, two;
  std::optional<Stage> side;

  Residual(const GivenBlock& given, const Extent& input, bool halves)
      : one(std::get<0>(given), input, halves), two(std::get<1>(given), one.out, halves) {
    if (std::get<2>(given)) side.emplace(*std::get<2>(given), input, halves);
    check_same(side ? side->out : input, two.out, "the shortcut");
  }
  // The result, and its signs. Without `keep` nothing but the result is left.
  Cells run(const Term& x, bool keep, Block& signs, int threads) {
    Cells y;
    one.convolve(x, threads);
    one.normalise(nullptr, true, nullptr, nullptr, threads);
    two.convolve(one.result(true), threads);
    if (!keep) one.conv.reset();
    if (side) {
      side->convolve(x, threads);
      side->normalise(nullptr, false, nullptr, nullptr, threads);
    }
    if (keep) y = Cells(two.out, two.half);
    if (keep) signs = sign_block(y.get(), two.out);
    two.normalise(side ? side->result(false) : x, true, keep ? y.get() : two.conv.get(), bytes(signs), threads);
    if (!keep) y = std::move(two.conv);
    if (!keep && side) side->conv.reset();
    return y;
  }
};

// What a stage leaves for the way back; memory only where it will be read.
struct Left {
  nb::object plan;
  Extent in, out;
  bool training;
  Wanted wanted;
  bool half;
  Cells conv;
  Block stats;

  Left(const Given& given, Stage&& stage, const Wanted& want, bool needed)
      : plan(std::get<0>(given)), in(stage.in), out(stage.out), training(stage.training), wanted(want), half(stage.half) {
    if (!needed) return;
    conv = std::move(stage.conv);
    stats = std::move(stage.stats);
  }
};

// A stage on the way back, with its gradients.
struct Back {
  ConvPlan& plan;
  Extent in, out;
  std::vector<int64_t> values_shape;
  const float *values, *gamma, *beta;
  bool training;
  bool half;
  Numbers conv;
  const float* stats;
  Cells* own;  // the memory of conv, where nobody reads it a second time
  bool want_values, want_gamma, want_beta;
  Block gvalues, ggamma, gbeta;
  std::vector<float> scales;

  // parameters: values, gamma, beta
  Back(Left& left, nb::handle of_values, nb::handle of_gamma, nb::handle of_beta, bool release)
      : plan(plan_of(left.plan)), in(left.in), out(left.out), gamma(floats(of_gamma, {out.channels}, "gamma")),
        beta(floats(of_beta, {out.channels}, "beta")), training(left.training), half(left.half), conv(left.conv.get()),
        stats(left.stats.get()), own(release ? &left.conv : nullptr), want_values(left.wanted.values), want_gamma(left.wanted.gamma),
        want_beta(left.wanted.beta) {
    const Values all = values_of(of_values, plan.nonzeros(), "values");
    values = all.data;
    values_shape = all.shape;
  }
  bool wanted() const { return want_values || want_gamma || want_beta; }
  Term result(bool relu) {
    return norm_term(norm_of(out, conv, nullptr, gamma, beta, 0.0f, relu), stats, stats + out.channels, scales);
  }
  // Memory for the gradient of conv: its own, if it may go. To write where one has just read is faster, too.
  Cells over_conv() { return own ? std::move(*own) : Cells(out, half); }
  // Behind the norm comes a ReLU; the signs of its result are at hand or (null) computed again. gx may be null, gy or conv.
  void norm(uint8_t* signs, const Numbers& gy, const Room& gx, int threads) {
    if (want_gamma) ggamma = vector_block(out.channels);
    if (want_beta) gbeta = vector_block(out.channels);
    Norm n = norm_of(out, conv, nullptr, gamma, beta, 0.0f, true);
    n.signs = signs;
    norm_backward(n, training, stats, stats + out.channels, nullptr, gy, gx, nullptr, ggamma.get(), gbeta.get(), threads);
  }
  // The gradients of the convolution, whose input was x; gx may be null.
  void convolve(const Source& x, const Numbers& gy, const Room& gx, int threads, const Added& added = {}) {
    if (want_values) gvalues = vector_block(plan.nonzeros());
    if (want_values || gx) plan.backward(values, x, gy, in, gx, gvalues.get(), threads, added);
  }
  void append_to(nb::list& gradients) {
    gradients.append(want_values ? contiguous_tensor(std::move(gvalues), values_shape) : nb::none());
    gradients.append(want_gamma ? vector_tensor(std::move(ggamma), out.channels) : nb::none());
    gradients.append(want_beta ? vector_tensor(std::move(gbeta), out.channels) : nb::none());
  }
};

// The gradient of x, null where it is not wanted. signs: of the block's result. Every temporary is given back as soon as it has been
// read.
inline Cells run_back(const Source& x, uint8_t* signs, const Numbers& gy, Back& one, Back& two, Back* side, bool want_x, int threads) {
  const bool need_one = want_x || one.wanted(), need_side = side && (want_x || side->wanted());
  Cells g, gx;
  if (need_one || two.want_values) g = two.over_conv();
  two.norm(signs, gy, g.get(), threads);
  Cells gone;
  if (need_one) gone = Cells(one.out, one.half);
  two.convolve(two.want_values ? Source(one.result(true)) : nullptr, g.get(), gone.get(), threads);
  g.reset();
  if (need_one) {
    one.norm(nullptr, gone.get(), gone.get(), threads);
    if (one.own) one.own->reset();
    if (want_x) gx = Cells(one.in, one.half);
    const Added past_the_relu{gy, signs};  // the gradient of the shortcut that is x itself
    one.convolve(x, gone.get(), gx.get(), threads, side ? Added{} : past_the_relu);
    gone.reset();
  }
  if (need_side) {
    g = side->over_conv();
    side->norm(signs, gy, g.get(), threads);  // it has no ReLU, but the block's is behind it
    side->convolve(x, g.get(), gx.get(), threads, {gx.get()});
  }
  return gx;
}

}  // namespace sparcl
