#include "device/average.h"

namespace sparcl {
namespace {

constexpr char kSlot[] = "average", kState[] = "the state", kOptimizer[] = "the optimizer";

std::string of_parameter(const std::string& name) { return "optimizer/state/" + name + "/" + kSlot; }

std::string of_statistic(const std::string& name) { return "learner/average/" + name; }

void read(const ModelFile& model, const std::string& path, size_t count, std::vector<float>& into) {
  const Tensor* found = model.file.find(path);
  if (!found) return;
  const float* from = found->floats(path, static_cast<long>(count));
  into.assign(from, from + count);
}

// use(name, parameter) for each that a node has.
template <class State, class Use>
void each_parameter(const std::string& node, State& state, Use use) {
  if (!state.weight.value.empty()) use(node + ".weight", state.weight);
  if (!state.bias.value.empty()) use(node + ".bias", state.bias);
}

// As torch.lerp computes it. What is taken in for the first time is its own average.
void lerp(std::vector<float>& average, const std::vector<float>& now, float weight) {
  if (average.empty()) average = now;
  for (size_t i = 0; i < now.size(); ++i) {
    const float way = now[i] - average[i];
    average[i] = weight < 0.5f ? average[i] + weight * way : now[i] - way * (1 - weight);
  }
}

}  // namespace

Average::Average(const ModelFile& model, Graph& graph) : statistics_(graph.nodes().size()) {
  const Json* share = model.state.at("settings", kState).find("average");
  if (!share) return;
  share_ = share->number("average", 1e-9, 1 - 1e-9);
  for (size_t at = 0; at < graph.nodes().size(); ++at) {
    const std::string& node = graph.nodes()[at].name;
    Graph::State& state = graph.states()[at];
    each_parameter(node, state, [&](const std::string& name, Parameter& p) {
      if (model.file.find(of_parameter(name))) read(model, of_parameter(name), p.value.size(), p.slots[kSlot]);
    });
    read(model, of_statistic(node + ".running_mean"), state.running_mean.size(), statistics_[at].mean);
    read(model, of_statistic(node + ".running_var"), state.running_var.size(), statistics_[at].var);
  }
}

void Average::take_in(Graph& graph, long step) {
  if (!kept()) return;
  const float weight = static_cast<float>(1 / (1 + share_ * static_cast<double>(step - 1)));
  for (size_t at = 0; at < graph.nodes().size(); ++at) {
    Graph::State& state = graph.states()[at];
    each_parameter(graph.nodes()[at].name, state, [&](const std::string&, Parameter& p) { lerp(p.slots[kSlot], p.value, weight); });
    lerp(statistics_[at].mean, state.running_mean, weight);
    lerp(statistics_[at].var, state.running_var, weight);
  }
}

void Average::answer(Graph& graph) const {
  for (size_t at = 0; at < graph.nodes().size(); ++at) {
    Graph::State& state = graph.states()[at];
    each_parameter(graph.nodes()[at].name, state, [&](const std::string&, Parameter& p) {
      if (const auto found = p.slots.find(kSlot); found != p.slots.end()) p.value = found->second;
    });
    if (!statistics_[at].mean.empty()) state.running_mean = statistics_[at].mean;
    if (!statistics_[at].var.empty()) state.running_var = statistics_[at].var;
  }
}

void Average::store(ModelFile& model, const Graph& graph) const {
  if (!kept()) return;
  Json& optimizer = model.state.at("optimizer", kState).at("state", kOptimizer);
  const Json* known = model.state.at("learner", kState).find("average");  // of norms that the network never calls, too
  Json running = known ? *known : Json::of_members({});
  for (size_t at = 0; at < graph.nodes().size(); ++at) {
    const std::string& node = graph.nodes()[at].name;
    each_parameter(node, graph.states()[at], [&](const std::string& name, const Parameter& p) {
      const auto found = p.slots.find(kSlot);
      if (found == p.slots.end()) return;
      const Json* had = optimizer.find(name);
      Json entry = had ? *had : Json::of_members({});
      entry.set(kSlot, put_tensor(model, of_parameter(name), tensor_of("F32", shape_of(model, name, p.value.size()), found->second)));
      optimizer.set(name, entry);
    });
    const auto put = [&](const std::string& name, const std::vector<float>& values) {
      if (!values.empty()) running.set(name, put_tensor(model, of_statistic(name), tensor_of("F32", {static_cast<long>(values.size())}, values)));
    };
    put(node + ".running_mean", statistics_[at].mean);
    put(node + ".running_var", statistics_[at].var);
  }
  model.state.at("learner", kState).set("average", running);
}

}  // namespace sparcl
