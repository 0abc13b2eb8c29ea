// A graph's masks, and how weights and masks go back into the file.
#include <algorithm>
#include <stdexcept>
#include <utility>

#include "device/graph.h"

namespace sparcl {
namespace {

void put(ModelFile& model, const std::string& name, const std::vector<float>& from) {
  Tensor& tensor = model.file.tensors.at(name);
  tensor = tensor_of("F32", tensor.shape, from);
}

// Where each of `to`'s places was in `from`, both ascending; -1: it was not there.
std::vector<long> origins(const std::vector<int32_t>& from, const std::vector<int32_t>& to) {
  std::vector<long> origin(to.size(), -1);
  size_t at = 0;
  for (size_t i = 0; i < to.size(); ++i) {
    while (at < from.size() && from[at] < to[i]) ++at;
    if (at < from.size() && from[at] == to[i]) origin[i] = static_cast<long>(at);
  }
  return origin;
}

std::vector<float> moved(const std::vector<float>& old, const std::vector<long>& origin) {
  std::vector<float> fresh(origin.size(), 0.0f);
  for (size_t i = 0; i < origin.size(); ++i)
    if (origin[i] >= 0) fresh[i] = old[static_cast<size_t>(origin[i])];
  return fresh;
}

}  // namespace

void Graph::make_plan(size_t at) {
  const Node& node = nodes_[at];
  State& state = states_[at];
  for (const int block : {4, 2, 1}) {  // the largest that the positions allow
    try {
      state.plan = std::make_unique<ConvPlan>(state.index.data(), static_cast<long>(state.index.size()), node.shape, block);
      break;
    } catch (const std::invalid_argument& error) {
      if (block == 1) throw std::invalid_argument("layer " + node.name + ": " + error.what());
    }
  }
  state.plan->set_chosen(state.chosen.empty() || frozen_computed_ ? nullptr : state.chosen.data());
}

long Graph::positions(size_t at) const {
  const Extent& out = extents_[static_cast<size_t>(nodes_[at].output)];
  return out.height * out.width;
}

void Graph::count_macs() {
  macs_ = 0;
  for (size_t at = 0; at < nodes_.size(); ++at)
    if (nodes_[at].op == Node::kConvolution) macs_ += states_[at].plan->nonzeros() * positions(at);
}

void Graph::set_index(size_t at, std::vector<int32_t> index) {
  State& state = states_[at];
  const bool same = index == state.index;
  state.chosen.clear();
  if (!same) {
    const std::vector<long> origin = origins(state.index, index);
    state.weight.value = moved(state.weight.value, origin);
    state.weight.gradient.assign(index.size(), 0.0f);
    for (auto& slot : state.weight.slots) slot.second = moved(slot.second, origin);
    state.index = std::move(index);
    make_plan(at);
    count_macs();
  } else {
    state.plan->set_chosen(nullptr);
  }
}

void Graph::set_chosen(size_t at, std::vector<uint8_t> chosen) {
  State& state = states_[at];
  if (std::all_of(chosen.begin(), chosen.end(), [](uint8_t flag) { return flag; })) chosen.clear();
  state.chosen = std::move(chosen);
  state.plan->set_chosen(state.chosen.empty() || frozen_computed_ ? nullptr : state.chosen.data());
}

void Graph::compute_frozen(bool on) {
  if (frozen_computed_ == on) return;
  frozen_computed_ = on;
  for (State& state : states_)
    if (!state.chosen.empty()) state.plan->set_chosen(on ? nullptr : state.chosen.data());
}

void Graph::take_over(ModelFile& model) const {
  for (const Node& node : nodes_)
    for (const std::string& name : {"model/" + node.name + ".weight", "layers/" + node.name + "/values", "layers/" + node.name + "/index"})
      if (const auto found = model.file.tensors.find(name); found != model.file.tensors.end()) found->second.bytes = {};
}

void Graph::store(ModelFile& model) const {
  for (size_t at = 0; at < nodes_.size(); ++at) {
    const Node& node = nodes_[at];
    const State& state = states_[at];
    const std::string name = "model/" + node.name, layer = "layers/" + node.name;
    if (node.op == Node::kConvolution && state.sparse) {
      const std::vector<long> shape{static_cast<long>(state.index.size())};
      model.file.tensors[layer + "/values"] = tensor_of("F32", shape, state.weight.value);
      model.file.tensors[layer + "/index"] = tensor_of("I32", shape, state.index);
      Json chosen;
      if (state.chosen.empty())
        model.file.tensors.erase(layer + "/chosen");
      else
        chosen = put_tensor(model, layer + "/chosen", tensor_of("BOOL", shape, state.chosen));
      model.state.at("layers", "the state").at(node.name, "the layers").set("chosen", chosen);
    } else if (node.op == Node::kConvolution) {
      put(model, name + ".weight", state.weight.value);
    }
    if (node.op == Node::kConvolution && node.bias) put(model, name + ".bias", state.bias.value);
    if (node.op == Node::kNorm) {
      put(model, name + ".weight", state.weight.value);
      put(model, name + ".bias", state.bias.value);
      put(model, name + ".running_mean", state.running_mean);
      put(model, name + ".running_var", state.running_var);
      model.file.tensors.at(name + ".num_batches_tracked").bytes = tensor_of("I64", {}, std::vector<int64_t>{state.tracked}).bytes;
    }
  }
}

}  // namespace sparcl
