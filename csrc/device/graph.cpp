#include "device/graph.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "engine/parallel.h"

namespace sparcl {
namespace {

constexpr long kSpan = 16384, kMostFloats = 1L << 33;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

// y += x
void add(const float* x, float* y, long count, int threads) {
  const Kernels& unit = kernels();
  parallel_for(threads, (count + kSpan - 1) / kSpan, [&](long span) {
    const long first = span * kSpan;
    unit.add_scaled(x + first, y + first, std::min(kSpan, count - first), 1.0f);
  });
}

std::vector<float> copied(const Tensor& tensor, const std::string& what, long count) {
  const float* from = tensor.floats(what, count);
  return std::vector<float>(from, from + tensor.count());
}

void set(Parameter& parameter, std::vector<float> value) {
  parameter.value = std::move(value);
  parameter.gradient.assign(parameter.value.size(), 0.0f);
}

const float* maybe(const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); }

Extent input_of(const Json& shape) {
  const auto& sizes = shape.list("input_shape", 1, 3);
  if (sizes.size() == 2) refuse("input_shape must be [C, H, W] or [F]");
  Extent input{sizes[0].whole("input_shape", 1, 1L << 31), 1, 1, 1};
  if (sizes.size() == 3) {
    input.height = sizes[1].whole("input_shape", 1, 1 << 20);
    input.width = sizes[2].whole("input_shape", 1, 1 << 20);
  }
  return input;
}

}  // namespace

Graph::Graph(const ModelFile& model, int threads)
    : nodes_(nodes_of(model.graph)), states_(nodes_.size()), last_use_{0}, input_(input_of(model.input_shape)), threads_(threads) {
  extents_.push_back(input_);
  for (size_t at = 0; at < nodes_.size(); ++at) {
    const Node& node = nodes_[at];
    if (node.op == Node::kConvolution) load_convolution(model.file, at);
    if (node.op == Node::kNorm) load_norm(model.file, at);
    extents_.push_back(extent_behind(at, extents_[node.input]));
    last_use_.push_back(at);
    last_use_[node.input] = at;
    if (node.residual >= 0) last_use_[node.residual] = at;
  }
  count_macs();
  const Extent& last = extents_.back();
  classes_ = last.channels;
  if (last.height != 1 || last.width != 1) refuse("the graph ends in an image, not in logits");
  if (model.classes.list("classes", 0, 1 << 20).size() != static_cast<size_t>(classes_))
    refuse("the network has " + std::to_string(classes_) + " logits, the file names another number of classes");
  values_.resize(extents_.size());
  gradients_.resize(extents_.size());
}

void Graph::load_convolution(const SafeTensors& file, size_t at) {
  const Node& node = nodes_[at];
  State& state = states_[at];
  const auto& w = node.shape.weight;
  const std::string layer = "layers/" + node.name, dense = "model/" + node.name;
  state.sparse = file.find(layer + "/values") != nullptr;
  if (state.sparse) {
    const Tensor& index = file.at(layer + "/index");
    const int32_t* from = index.int32s(layer + "/index");
    state.index.assign(from, from + index.count());
    set(state.weight, copied(file.at(layer + "/values"), layer + "/values", static_cast<long>(state.index.size())));
  } else {
    long count = 1;
    for (int size : w) {
      count *= size;
      if (count > 1L << 31) refuse("layer " + node.name + " is too large");
    }
    set(state.weight, copied(file.at(dense + ".weight"), dense + ".weight", count));
    state.index.resize(static_cast<size_t>(count));
    std::iota(state.index.begin(), state.index.end(), 0);
  }
  if (node.bias) set(state.bias, copied(file.at(dense + ".bias"), dense + ".bias", w[0]));
  if (state.sparse && file.find(layer + "/chosen")) state.chosen = file.at(layer + "/chosen").bools(layer + "/chosen", static_cast<long>(state.index.size()));
  make_plan(at);
}

void Graph::load_norm(const SafeTensors& file, size_t at) {
  const Node& node = nodes_[at];
  State& state = states_[at];
  const std::string name = "model/" + node.name;
  set(state.weight, copied(file.at(name + ".weight"), name + ".weight", node.channels));
  set(state.bias, copied(file.at(name + ".bias"), name + ".bias", node.channels));
  state.running_mean = copied(file.at(name + ".running_mean"), name + ".running_mean", node.channels);
  state.running_var = copied(file.at(name + ".running_var"), name + ".running_var", node.channels);
  state.tracked = *file.at(name + ".num_batches_tracked").int64s(name + ".num_batches_tracked", 1);
  state.mean.resize(state.running_mean.size());
  state.rstd.resize(state.running_mean.size());
}

Extent Graph::extent_behind(size_t at, const Extent& in) const {
  const Node& node = nodes_[at];
  Extent out = in;
  if (node.linear && (in.height != 1 || in.width != 1)) refuse("layer " + node.name + " is linear, but reads an image");
  if (node.op == Node::kConvolution) out = states_[at].plan->output_extent(in);
  if (node.op == Node::kFlatten) out = {in.channels * in.height * in.width, 1, 1, in.batch};
  if (node.op == Node::kGlobalAverage) out = {in.channels, 1, 1, in.batch};
  if (node.op == Node::kAverage || node.op == Node::kMaximum) out = pooled_extent(in, node.window);
  if (node.op == Node::kAverage && (node.window.row_padding || node.window.column_padding)) refuse("layer " + node.name + ": an average has no padding");
  if (node.op == Node::kNorm) {
    if (node.channels != in.channels) refuse("layer " + node.name + " does not fit what it reads");
    if (node.residual >= 0) {
      const Extent& other = extents_[node.residual];
      if (other.channels != in.channels || other.height != in.height || other.width != in.width)
        refuse("layer " + node.name + " adds what has another shape");
    }
  }
  if (out.channels < 1 || out.channels > kMostFloats / (out.height * out.width)) refuse("layer " + node.name + " makes too large a tensor");
  return out;
}

void Graph::size_for(long batch) {
  for (Extent& e : extents_) {
    e.batch = batch;
    if (e.count() > kMostFloats) refuse("a batch of " + std::to_string(batch) + " is too large for this network");
  }
}

const float* Graph::forward(const float* x, long batch, bool training) {
  size_for(batch);
  x_ = x;
  for (size_t at = 0; at < nodes_.size(); ++at) {
    values_[nodes_[at].output] = room(nodes_[at].output);
    run(at, training);
    for (size_t tensor = 1; tensor + 1 < values_.size(); ++tensor)
      if (last_use_[tensor] == at && (!training || can_be_remade(static_cast<int>(tensor)))) values_[tensor].reset();
  }
  return values_.back().get();
}

void Graph::backward(const float* logits, bool again) {
  gradients_.back() = room(static_cast<int>(extents_.size()) - 1);
  std::memcpy(gradients_.back().get(), logits, static_cast<size_t>(extents_.back().count()) * sizeof(float));
  for (size_t at = nodes_.size(); at-- > 0;) {
    if (gradients_[nodes_[at].output]) run_back(at);  // a result that nobody reads has none
    gradients_[nodes_[at].output].reset();
    if (!again) values_[nodes_[at].output].reset();
  }
}

void Graph::clear_gradients() {
  for (State& state : states_)
    for (Parameter* p : {&state.weight, &state.bias}) std::fill(p->gradient.begin(), p->gradient.end(), 0.0f);
}

void Graph::run(size_t at, bool training) {
  const Node& node = nodes_[at];
  State& state = states_[at];
  const float* x = node.input ? values_[node.input].get() : x_;
  float* y = values_[node.output].get();
  const Extent& in = extents_[node.input];
  if (node.op == Node::kConvolution) {
    state.plan->forward(state.weight.value.data(), maybe(state.bias.value), x, in, y, threads_);
  } else if (node.op == Node::kNorm && training) {
    if (in.count() == in.channels) refuse("layer " + node.name + ": training needs more than one value in each channel");
    norm_forward_train(norm(at, x), node.momentum, state.running_mean.data(), state.running_var.data(), state.mean.data(), state.rstd.data(), y, threads_);
    ++state.tracked;
  } else if (node.op == Node::kNorm) {
    norm_forward_eval(norm(at, x), state.running_mean.data(), state.running_var.data(), state.mean.data(), state.rstd.data(), y, threads_);
  } else if (node.op == Node::kRelu) {
    kernels().norm_forward({x, Scaled{nullptr, nullptr, nullptr, 0.0f}, y, nullptr, in.count(), 1.0f, 0.0f, true});
  } else if (node.op == Node::kFlatten) {
    std::memcpy(y, x, static_cast<size_t>(in.count()) * sizeof(float));
  } else if (node.op == Node::kMaximum) {
    max_pool(x, in, window(at), y, threads_);
  } else {
    average_pool(x, in, window(at), y, threads_);
  }
}

void Graph::run_back(size_t at) {
  const Node& node = nodes_[at];
  State& state = states_[at];
  const Extent &in = extents_[node.input], &out = extents_[node.output];
  const float* gy = gradients_[node.output].get();
  const float* x = node.input ? values_[node.input].get() : x_;
  Block gx = node.input ? room(node.input) : nullptr;  // nobody asks for the gradient of the input
  std::vector<float> weight(state.weight.value.size()), bias(state.bias.value.size());
  if (node.op == Node::kConvolution) {
    std::vector<float> scales;
    state.plan->backward(state.weight.value.data(), source(node.input, scales), gy, in, gx.get(), weight.data(), threads_);
    if (node.bias) bias_gradient(gy, out.channels, out.count() / out.channels, bias.data(), threads_);
  } else if (node.op == Node::kNorm) {
    Block gresidual = node.residual > 0 ? room(node.residual) : nullptr;
    norm_backward(norm(at, x), true, state.mean.data(), state.rstd.data(), node.residual >= 0 && node.relu ? values_[node.output].get() : nullptr, gy,
                  gx.get(), gresidual.get(), weight.data(), bias.data(), threads_);
    if (gresidual) collect(node.residual, std::move(gresidual));
  } else if (gx && node.op == Node::kRelu) {
    NormBackward b{};
    b.x = x;
    b.gradient = gy;
    b.count = in.count();
    b.scale = b.a = 1.0f;
    b.relu = true;
    b.gx = gx.get();
    kernels().norm_backward(b);
  } else if (gx && node.op == Node::kFlatten) {
    std::memcpy(gx.get(), gy, static_cast<size_t>(in.count()) * sizeof(float));
  } else if (gx && node.op == Node::kMaximum) {
    max_pool_backward(x, gy, in, window(at), gx.get(), threads_);
  } else if (gx) {
    average_pool_backward(gy, in, window(at), gx.get(), threads_);
  }
  add(weight.data(), state.weight.gradient.data(), static_cast<long>(weight.size()), threads_);
  add(bias.data(), state.bias.gradient.data(), static_cast<long>(bias.size()), threads_);
  if (gx) collect(node.input, std::move(gx));
}

Norm Graph::norm(size_t at, const float* x) const {
  const Node& node = nodes_[at];
  const State& state = states_[at];
  const Extent& in = extents_[node.input];
  const float* residual = node.residual < 0 ? nullptr : node.residual ? values_[node.residual].get() : x_;
  return {in.channels, in.count() / in.channels, x, residual, state.weight.value.data(), state.bias.value.data(), node.eps, node.relu};
}

Window Graph::window(size_t at) const {
  if (nodes_[at].op != Node::kGlobalAverage) return nodes_[at].window;
  const int rows = static_cast<int>(extents_[nodes_[at].input].height), columns = static_cast<int>(extents_[nodes_[at].input].width);
  return {rows, columns, rows, columns, 0, 0};
}

Block Graph::room(int tensor) const {
  return Block(static_cast<float*>(take(static_cast<size_t>(extents_[tensor].count()) * sizeof(float))));
}

// A norm's result without a residual that convolutions alone read is made again from its input in the backward pass: a little time
// for a lot of memory.
bool Graph::can_be_remade(int tensor) const {
  if (tensor == 0) return false;
  const Node& maker = nodes_[static_cast<size_t>(tensor) - 1];
  if (maker.op != Node::kNorm || maker.residual >= 0) return false;
  for (const Node& node : nodes_) {
    const bool reads_values = node.op == Node::kNorm || node.op == Node::kRelu || node.op == Node::kMaximum;
    if (node.input == tensor && reads_values) return false;
  }
  return true;
}

// The input of a convolution, for its weight gradient; scales: see norm_term.
Source Graph::source(int tensor, std::vector<float>& scales) const {
  if (tensor == 0) return x_;
  if (!can_be_remade(tensor)) return values_[tensor].get();
  const size_t maker = static_cast<size_t>(tensor) - 1;
  const State& state = states_[maker];
  const int input = nodes_[maker].input;
  return norm_term(norm(maker, input ? values_[input].get() : x_), state.mean.data(), state.rstd.data(), scales);
}

// A tensor that is read twice has the sum of two gradients.
void Graph::collect(int tensor, Block part) {
  Block& sum = gradients_[tensor];
  if (sum)
    add(part.get(), sum.get(), extents_[tensor].count(), threads_);
  else
    sum = std::move(part);
}

}  // namespace sparcl
