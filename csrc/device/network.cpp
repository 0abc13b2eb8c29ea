#include "device/network.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>

#include "engine/parallel.h"

namespace sparcl {
namespace {

constexpr float kEpsilon = 1e-5f;  // of the norms

// y += scale * x
void add(const float* x, float* y, long count, float scale, int threads) {
  const Kernels& unit = kernels();
  constexpr long kSpan = 16384;
  parallel_for(threads, (count + kSpan - 1) / kSpan, [&](long span) {
    const long first = span * kSpan;
    unit.add_scaled(x + first, y + first, std::min(kSpan, count - first), scale);
  });
}

void resize(Parameter& parameter, long count, float value) {
  parameter.value.assign(static_cast<size_t>(count), value);
  parameter.gradient.assign(static_cast<size_t>(count), 0.0f);
}

const float* maybe(const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); }

}  // namespace

Network::Network(std::vector<Layer> layers, const Extent& input, const Mask& mask, int threads)
    : layers_(std::move(layers)), states_(layers_.size()), extents_{input}, maker_{-1}, last_use_{0}, threads_(threads) {
  for (size_t at = 0; at < layers_.size(); ++at) {
    const Layer& layer = layers_[at];
    const Extent in = extents_[layer.input];
    Extent out = in;
    if (layer.kind == Layer::kConvolution) {
      make_convolution(at, mask);
      out = states_[at].plan->output_extent(in);
    } else if (layer.kind == Layer::kNorm) {
      State& state = states_[at];
      resize(state.weight, in.channels, 1.0f);
      resize(state.bias, in.channels, 0.0f);
      state.mean.resize(state.weight.value.size());
      state.rstd.resize(state.weight.value.size());
    } else {
      out = pooled_extent(in, window(layer));
    }
    extents_.push_back(out);
    maker_.push_back(static_cast<int>(at));
    last_use_.push_back(at);
    last_use_[layer.input] = at;
    if (layer.residual >= 0) last_use_[layer.residual] = at;
  }
  values_.resize(extents_.size());
  gradients_.resize(extents_.size());
}

void Network::make_convolution(size_t at, const Mask& mask) {
  const Layer& layer = layers_[at];
  const int inputs = static_cast<int>(extents_[layer.input].channels), half = layer.size / 2;
  const ConvShape shape{{layer.channels, inputs, layer.size, layer.size}, {layer.stride, layer.stride}, {half, half}, {1, 1}, 1};
  const Mask own = layer.prunable ? mask : Mask{0.0, 1, mask.seed};
  const auto positions = draw_positions(shape, own, static_cast<int>(at));
  State& state = states_[at];
  state.plan = std::make_unique<ConvPlan>(positions.data(), static_cast<long>(positions.size()), shape, own.block);
  resize(state.weight, state.plan->nonzeros(), 0.0f);
  if (layer.bias) resize(state.bias, layer.channels, 0.0f);
  const double inputs_of_an_output = static_cast<double>(positions.size()) / layer.channels;
  std::mt19937 random(mask.seed + static_cast<unsigned>(at));
  std::normal_distribution<float> normal(0.0f, static_cast<float>(std::sqrt(2.0 / inputs_of_an_output)));
  for (float& weight : state.weight.value) weight = normal(random);
}

double Network::forward(const float* x, const int* labels) {
  x_ = x;
  labels_ = labels;
  for (size_t at = 0; at < layers_.size(); ++at) {
    values_[layers_[at].output] = room(layers_[at].output);
    run(at);
    for (size_t tensor = 1; tensor < values_.size(); ++tensor)
      if (last_use_[tensor] == at && can_be_remade(static_cast<int>(tensor))) values_[tensor].reset();
  }
  return cross_entropy();
}

void Network::backward() {
  for (size_t at = layers_.size(); at-- > 0;) {
    run_back(at);
    gradients_[layers_[at].output].reset();
    values_[layers_[at].output].reset();
  }
}

void Network::update(float rate) {
  for (State& state : states_)
    for (Parameter* p : {&state.weight, &state.bias})
      add(p->gradient.data(), p->value.data(), static_cast<long>(p->value.size()), -rate, threads_);
}

double Network::step(const float* x, const int* labels, float rate) {
  const double loss = forward(x, labels);
  backward();
  update(rate);
  return loss;
}

void Network::run(size_t at) {
  const Layer& layer = layers_[at];
  State& state = states_[at];
  const float* x = layer.input ? values_[layer.input].get() : x_;
  float* y = values_[layer.output].get();
  const Extent& in = extents_[layer.input];
  if (layer.kind == Layer::kConvolution)
    state.plan->forward(state.weight.value.data(), maybe(state.bias.value), x, in, y, threads_);
  else if (layer.kind == Layer::kNorm)
    norm_forward_train(norm(at, x), 0.0f, nullptr, nullptr, state.mean.data(), state.rstd.data(), y, threads_);
  else
    average_pool(x, in, window(layer), y, threads_);
}

void Network::run_back(size_t at) {
  const Layer& layer = layers_[at];
  State& state = states_[at];
  const Extent& in = extents_[layer.input];
  const float* gy = gradients_[layer.output].get();
  Block gx = layer.input ? room(layer.input) : nullptr;  // nobody asks for the gradient of the input
  if (layer.kind == Layer::kConvolution) {
    std::vector<float> scales;
    state.plan->backward(state.weight.value.data(), source(layer.input, scales), gy, in, gx.get(), state.weight.gradient.data(),
                         threads_);
    const Extent& out = extents_[layer.output];
    if (layer.bias) bias_gradient(gy, out.channels, out.count() / out.channels, state.bias.gradient.data(), threads_);
  } else if (layer.kind == Layer::kNorm) {
    Block gresidual = layer.residual >= 0 ? room(layer.residual) : nullptr;
    norm_backward(norm(at, values_[layer.input].get()), true, state.mean.data(), state.rstd.data(),
                  gresidual && layer.relu ? values_[layer.output].get() : nullptr, gy, gx.get(), gresidual.get(),
                  state.weight.gradient.data(), state.bias.gradient.data(), threads_);
    if (gresidual) collect(layer.residual, std::move(gresidual));
  } else {
    average_pool_backward(gy, in, window(layer), gx.get(), threads_);
  }
  if (gx) collect(layer.input, std::move(gx));
}

// The last tensor is [classes][1][1][N]; its gradient is left where backward() begins.
double Network::cross_entropy() {
  const int last = static_cast<int>(extents_.size()) - 1;
  const long classes = extents_[last].channels, batch = extents_[last].batch;
  const float* logits = values_[last].get();
  gradients_[last] = room(last);
  float* gradient = gradients_[last].get();
  double loss = 0;
  for (long n = 0; n < batch; ++n) {
    double highest = -INFINITY, sum = 0;
    for (long c = 0; c < classes; ++c) highest = std::max<double>(highest, logits[c * batch + n]);
    for (long c = 0; c < classes; ++c) sum += std::exp(logits[c * batch + n] - highest);
    for (long c = 0; c < classes; ++c) {
      const double log_share = logits[c * batch + n] - highest - std::log(sum);
      const bool right = labels_[n] == c;
      if (right) loss -= log_share / static_cast<double>(batch);
      gradient[c * batch + n] = static_cast<float>((std::exp(log_share) - right) / static_cast<double>(batch));
    }
  }
  return loss;
}

Norm Network::norm(size_t at, const float* x) const {
  const Layer& layer = layers_[at];
  const Extent& in = extents_[layer.input];
  const float* residual = layer.residual >= 0 ? values_[layer.residual].get() : nullptr;
  const State& state = states_[at];
  return {in.channels, in.count() / in.channels, x, residual, state.weight.value.data(), state.bias.value.data(), kEpsilon,
          layer.relu};
}

Window Network::window(const Layer& layer) const {
  const int rows = static_cast<int>(extents_[layer.input].height), columns = static_cast<int>(extents_[layer.input].width);
  return {rows, columns, rows, columns, 0, 0};
}

Block Network::room(int tensor) const {
  return Block(static_cast<float*>(take(static_cast<size_t>(extents_[tensor].count()) * sizeof(float))));
}

// A norm's result without a residual is made again from its input in the backward pass: a little time for a lot of memory.
bool Network::can_be_remade(int tensor) const {
  const int maker = maker_[tensor];
  return maker >= 0 && layers_[maker].kind == Layer::kNorm && layers_[maker].residual < 0;
}

// The input of a convolution, for its weight gradient; scales: see norm_term.
Source Network::source(int tensor, std::vector<float>& scales) const {
  if (tensor == 0) return x_;
  if (!can_be_remade(tensor)) return values_[tensor].get();
  const size_t maker = static_cast<size_t>(maker_[tensor]);
  const State& state = states_[maker];
  return norm_term(norm(maker, values_[layers_[maker].input].get()), state.mean.data(), state.rstd.data(), scales);
}

// A tensor that is read twice has the sum of two gradients.
void Network::collect(int tensor, Block part) {
  Block& sum = gradients_[tensor];
  if (sum)
    add(part.get(), sum.get(), extents_[tensor].count(), 1.0f, threads_);
  else
    sum = std::move(part);
}

}  // namespace sparcl
