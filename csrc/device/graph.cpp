#include "device/graph.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace sparcl {
namespace {

constexpr long kMostFloats = 1L << 33;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

std::vector<float> copied(const Tensor& tensor, const std::string& what, long count) {
  const float* from = tensor.floats(what, count);
  return std::vector<float>(from, from + tensor.count());
}

void set(Parameter& parameter, std::vector<float> value) {
  parameter.value = std::move(value);
  parameter.gradient.assign(parameter.value.size(), 0.0f);
}

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
  signs_.resize(nodes_.size());
  choose_kept();
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
  if (node.op == Node::kNorm && node.channels != in.channels) refuse("layer " + node.name + " does not fit what it reads");
  if (node.residual >= 0) {
    const Extent& other = extents_[node.residual];
    if (other.channels != in.channels || other.height != in.height || other.width != in.width)
      refuse("layer " + node.name + " adds what has another shape");
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

void Graph::clear_gradients() {
  for (State& state : states_)
    for (Parameter* p : {&state.weight, &state.bias}) std::fill(p->gradient.begin(), p->gradient.end(), 0.0f);
  cleared_ = true;
}

}  // namespace sparcl
