// A graph's way forward and back. Memory is given back as soon as its last reader is done, and written over where that is the next
// writer's.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "device/graph.h"
#include "engine/parallel.h"

namespace sparcl {
namespace {

constexpr long kSpan = 16384;

// body(first, count) for spans of `count` floats
template <class Body>
void spans(long count, int threads, Body body) {
  parallel_for(threads, (count + kSpan - 1) / kSpan, [&](long span) { body(span * kSpan, std::min(kSpan, count - span * kSpan)); });
}

// y += x
void add(const float* x, float* y, long count, int threads) {
  spans(count, threads, [&](long first, long some) { kernels().add_scaled(x + first, y + first, some, 1.0f); });
}

const float* maybe(const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); }

Block floats(long count) { return Block(static_cast<float*>(take(static_cast<size_t>(count) * sizeof(float)))); }

uint8_t* bytes(const Block& signs) { return reinterpret_cast<uint8_t*>(signs.get()); }

long channel(const Extent& e) { return e.count() / e.channels; }

// x = 0 where the sign is not positive
void mask(float* x, uint8_t* signs, const Extent& e, int threads) {
  parallel_for(threads, e.channels, [&](long c) {
    NormBackward b{};
    b.x = b.gradient = b.gresidual = x + c * channel(e);
    b.signs = signs + c * sign_bytes(channel(e));
    b.count = channel(e);
    b.relu = true;
    kernels().norm_backward(b);
  });
}

}  // namespace

// Whether it is relu(x * scale + shift) of a tensor that is there.
bool Graph::is_plain_norm(int tensor) const {
  return tensor > 0 && nodes_[static_cast<size_t>(tensor) - 1].op == Node::kNorm && nodes_[static_cast<size_t>(tensor) - 1].residual < 0;
}

// The way back reads what convolutions, norms, ReLUs and maxima read. Convolutions make a norm's result as they read it, also one with
// a residual that is there in any case: a little time for a lot of memory.
void Graph::choose_kept() {
  kept_.assign(extents_.size(), Kept::kBack);
  for (int tensor = 1; tensor + 1 < static_cast<int>(extents_.size()); ++tensor) {
    const Node& maker = nodes_[static_cast<size_t>(tensor) - 1];
    bool by_value = false, by_convolution = false, in_passing = false;
    for (const Node& node : nodes_) {
      in_passing = in_passing || (node.op == Node::kAdd && node.residual == tensor);
      if (node.input != tensor) continue;
      by_convolution = by_convolution || node.op == Node::kConvolution;
      by_value = by_value || node.op == Node::kNorm || node.op == Node::kRelu || node.op == Node::kMaximum;
      in_passing = in_passing || node.op == Node::kFlatten || node.op == Node::kGlobalAverage || node.op == Node::kAverage || node.op == Node::kAdd;
    }
    if (by_value) continue;
    const int other = maker.op == Node::kNorm ? maker.residual : -1;
    const bool made_again = other >= 0 && (other == 0 || is_plain_norm(other) || kept_[static_cast<size_t>(other)] == Kept::kBack);
    Kept& kept = kept_[static_cast<size_t>(tensor)];
    if (is_plain_norm(tensor))
      kept = in_passing ? Kept::kForward : Kept::kNever;
    else if (!by_convolution || made_again)
      kept = Kept::kForward;
    if (kept == Kept::kNever) last_use_[maker.input] = std::max(last_use_[maker.input], last_use_[static_cast<size_t>(tensor)]);
  }
}

const float* Graph::forward(const float* x, long batch, bool training) {
  size_for(batch);
  x_ = x;
  for (auto* blocks : {&values_, &signs_})
    for (Block& block : *blocks) block.reset();
  for (size_t at = 0; at < nodes_.size(); ++at) {
    const size_t output = static_cast<size_t>(nodes_[at].output);
    if (kept_[output] != Kept::kNever) values_[output] = room(nodes_[at].output);
    run(at, training);
    for (size_t tensor = 1; tensor + 1 < values_.size(); ++tensor)
      if (last_use_[tensor] == at && (!training || kept_[tensor] == Kept::kForward)) values_[tensor].reset();
  }
  return values_.back().get();
}

void Graph::backward(const float* logits, bool again) {
  gradients_.back().sum = room(static_cast<int>(extents_.size()) - 1);
  std::memcpy(gradients_.back().sum.get(), logits, static_cast<size_t>(extents_.back().count()) * sizeof(float));
  for (size_t at = nodes_.size(); at-- > 0;) {
    const size_t output = static_cast<size_t>(nodes_[at].output);
    if (gradients_[output].sum) run_back(at, again);  // a result that nobody reads has none
    gradients_[output] = {};
    if (again) continue;
    values_[output].reset();
    signs_[at].reset();
  }
  cleared_ = false;
}

void Graph::run(size_t at, bool training) {
  const Node& node = nodes_[at];
  State& state = states_[at];
  const float* x = value(node.input);
  float* y = values_[static_cast<size_t>(node.output)].get();
  const Extent& in = extents_[node.input];
  if (node.op == Node::kConvolution) {
    std::vector<float> scales[2];
    state.plan->forward(state.weight.value.data(), maybe(state.bias.value), source(node.input, scales), in, y, threads_);
  } else if (node.op == Node::kNorm) {
    normalise(at, training, y);
  } else if (node.op == Node::kRelu) {
    spans(in.count(), threads_, [&](long first, long count) {
      kernels().norm_forward({x + first, Scaled{nullptr, nullptr, nullptr, 0.0f}, y + first, nullptr, count, 1.0f, 0.0f, true});
    });
  } else if (node.op == Node::kFlatten || node.op == Node::kAdd) {
    std::memcpy(y, x, static_cast<size_t>(in.count()) * sizeof(float));
    if (node.op == Node::kAdd) add(value(node.residual), y, in.count(), threads_);
  } else if (node.op == Node::kMaximum) {
    max_pool(x, in, window(at), y, threads_);
  } else {
    average_pool(x, in, window(at), y, threads_);
  }
}

// y: null where nobody needs it written.
void Graph::normalise(size_t at, bool training, float* y) {
  const Node& node = nodes_[at];
  State& state = states_[at];
  const Extent& in = extents_[node.input];
  Norm n = norm(at);
  std::vector<float> scales;
  if (node.residual >= 0) n.residual = term(node.residual, scales);
  if (!training) return norm_forward_eval(n, state.running_mean.data(), state.running_var.data(), state.mean.data(), state.rstd.data(), y, threads_);
  if (in.count() == in.channels) throw std::invalid_argument("layer " + node.name + ": training needs more than one value in each channel");
  if (node.residual >= 0 && node.relu) {
    signs_[at] = floats((in.channels * sign_bytes(channel(in)) + 3) / 4);
    n.signs = bytes(signs_[at]);
  }
  norm_forward_train(n, node.momentum, state.running_mean.data(), state.running_var.data(), state.mean.data(), state.rstd.data(), y, threads_);
  ++state.tracked;
}

void Graph::run_back(size_t at, bool again) {
  const Node& node = nodes_[at];
  State& state = states_[at];
  const Extent& in = extents_[node.input];
  const long weights = static_cast<long>(state.weight.value.size()), biases = static_cast<long>(state.bias.value.size());
  if (!cleared_ && part_.size() < static_cast<size_t>(weights + biases)) part_.resize(static_cast<size_t>(weights + biases));
  float* weight = cleared_ ? state.weight.gradient.data() : part_.data();  // every number of it is written
  float* bias = cleared_ ? state.bias.gradient.data() : part_.data() + weights;
  if (node.op == Node::kNorm) {
    normalise_back(at, again, weight, bias);
  } else {
    settle(node.output);
    Block& gy = gradients_[node.output].sum;
    const float* x = value(node.input);
    const Extent& out = extents_[node.output];
    if (node.op == Node::kConvolution) {
      convolve_back(at, weight);
      if (node.bias) bias_gradient(gy.get(), out.channels, channel(out), bias, threads_);
    } else if (node.op == Node::kAdd) {
      add_back(at);
    } else if (node.input == 0) {
      return;  // nobody asks for the gradient of the input
    } else if (node.op == Node::kRelu) {
      spans(in.count(), threads_, [&](long first, long count) {
        NormBackward b{};
        b.x = x + first;
        b.gradient = b.gx = gy.get() + first;
        b.count = count;
        b.scale = b.a = 1.0f;
        b.relu = true;
        kernels().norm_backward(b);
      });
      collect(node.input, std::move(gy));
    } else if (node.op == Node::kFlatten) {
      collect(node.input, std::move(gy));
    } else {
      Block gx = room(node.input);
      if (node.op == Node::kMaximum)
        max_pool_backward(x, gy.get(), in, window(at), gx.get(), threads_);
      else
        average_pool_backward(gy.get(), in, window(at), gx.get(), threads_);
      collect(node.input, std::move(gx));
    }
  }
  if (cleared_) return;
  add(weight, state.weight.gradient.data(), weights, threads_);
  add(bias, state.bias.gradient.data(), biases, threads_);
}

// Both summands have the gradient of the sum; nobody asks for that of the input.
void Graph::add_back(size_t at) {
  const Node& node = nodes_[at];
  Block& gy = gradients_[node.output].sum;
  if (node.input && node.residual) {
    Block copy = room(node.input);
    std::memcpy(copy.get(), gy.get(), static_cast<size_t>(extents_[node.output].count()) * sizeof(float));
    collect(node.residual, std::move(copy));
  }
  if (const int last = node.input ? node.input : node.residual) collect(last, std::move(gy));
}

// The gradient of its input that others have left is added as it writes.
void Graph::convolve_back(size_t at, float* weight) {
  const Node& node = nodes_[at];
  const State& state = states_[at];
  const float* gy = gradients_[node.output].sum.get();
  std::vector<float> scales[2];
  Gradient& below = gradients_[node.input];
  Block fresh = node.input && (!below.sum || below.signs) ? room(node.input) : nullptr;
  float* gx = fresh ? fresh.get() : below.sum.get();
  state.plan->backward(state.weight.value.data(), source(node.input, scales), gy, extents_[node.input], gx, weight, threads_,
                       {below.sum.get(), bytes(below.signs)});
  if (fresh) below = {std::move(fresh), nullptr};
}

// The gradient of its input takes the place of the result's, or, where the residual gets that, of the input itself if nobody else reads it.
void Graph::normalise_back(size_t at, bool again, float* weight, float* bias) {
  const Node& node = nodes_[at];
  const State& state = states_[at];
  Gradient& from = gradients_[node.output];
  if (node.relu || node.residual >= 0) settle(node.output);
  Norm n = norm(at);
  if (from.signs) n.relu = true;  // it is the ReLU behind the sum
  n.signs = bytes(from.signs ? from.signs : signs_[at]);
  int readers = 0;
  for (const Node& other : nodes_) readers += (other.input == node.input) + (other.residual == node.input);
  const bool shared = node.residual > 0;
  Block gx;
  if (shared && node.input) gx = readers == 1 && !again ? std::move(values_[node.input]) : room(node.input);
  float* to = node.input == 0 ? nullptr : shared ? gx.get() : from.sum.get();
  norm_backward(n, true, state.mean.data(), state.rstd.data(), nullptr, from.sum.get(), to, nullptr, weight, bias, threads_);
  if (node.input && !shared) collect(node.input, std::move(from.sum));
  if (!shared) return;
  Gradient& beside = gradients_[node.residual];
  if (node.relu && (again || beside.sum)) mask(from.sum.get(), bytes(signs_[at]), extents_[node.output], threads_);
  if (beside.sum)
    collect(node.residual, std::move(from.sum));
  else
    beside = {std::move(from.sum), again ? nullptr : std::move(signs_[at])};  // no signs without ReLU
  if (gx) collect(node.input, std::move(gx));
}

// Without its residual.
Norm Graph::norm(size_t at) const {
  const Node& node = nodes_[at];
  const State& state = states_[at];
  const Extent& in = extents_[node.input];
  return {in.channels, channel(in), value(node.input), nullptr, state.weight.value.data(), state.bias.value.data(), node.eps, node.relu};
}

Window Graph::window(size_t at) const {
  if (nodes_[at].op != Node::kGlobalAverage) return nodes_[at].window;
  const int rows = static_cast<int>(extents_[nodes_[at].input].height), columns = static_cast<int>(extents_[nodes_[at].input].width);
  return {rows, columns, rows, columns, 0, 0};
}

Block Graph::room(int tensor) const {
  return floats(extents_[tensor].count());
}

// A tensor as it is there, or what a norm makes of one (scales: see norm_term).
Term Graph::term(int tensor, std::vector<float>& scales) const {
  if (const float* written = value(tensor)) return written;
  const size_t maker = static_cast<size_t>(tensor) - 1;
  return norm_term(norm(maker), states_[maker].mean.data(), states_[maker].rstd.data(), scales);
}

Source Graph::source(int tensor, std::vector<float> (&scales)[2]) const {
  const Term own = term(tensor, scales[0]);
  if (value(tensor) || is_plain_norm(tensor)) return own;
  return {own, term(nodes_[static_cast<size_t>(tensor) - 1].residual, scales[1])};
}

void Graph::settle(int tensor) {
  Gradient& gradient = gradients_[tensor];
  if (gradient.signs) mask(gradient.sum.get(), bytes(gradient.signs), extents_[tensor], threads_);
  gradient.signs.reset();
}

// A tensor that is read twice has the sum of two gradients.
void Graph::collect(int tensor, Block part) {
  settle(tensor);
  Block& sum = gradients_[tensor].sum;
  if (sum)
    add(part.get(), sum.get(), extents_[tensor].count(), threads_);
  else
    sum = std::move(part);
}

}  // namespace sparcl
