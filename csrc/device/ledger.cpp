#include "device/ledger.h"

#include <algorithm>

namespace sparcl {

Ledger::Ledger(const Graph& graph, const std::vector<size_t>& layers) {
  // of each tensor: whether a parameter, and whether a prunable one, lies below it
  std::vector<uint8_t> trained(graph.nodes().size() + 1, 0), prunable(trained);
  for (size_t at = 0; at < graph.nodes().size(); ++at) {
    const Node& node = graph.nodes()[at];
    const size_t in = static_cast<size_t>(node.input), out = static_cast<size_t>(node.output);
    const size_t beside = node.residual < 0 ? in : static_cast<size_t>(node.residual);
    const bool pruned = std::find(layers.begin(), layers.end(), at) != layers.end();
    if (node.op == Node::kConvolution) calls_.push_back({at, graph.positions(at), trained[in] != 0, pruned, prunable[in] != 0});
    trained[out] = node.op == Node::kConvolution || node.op == Node::kNorm || trained[in] || trained[beside];
    prunable[out] = pruned || prunable[in] || prunable[beside];
  }
}

Ledger::Costs Ledger::costs(const Graph& graph) const {
  Costs sum;
  for (const Call& call : calls_) {
    const Graph::State& state = graph.states()[call.at];
    const long active = static_cast<long>(state.index.size());
    const long updated = state.chosen.empty() ? active : std::count(state.chosen.begin(), state.chosen.end(), 1);
    const long one = 2 * call.positions * active, gradient = 2 * call.positions * updated;
    sum.forward += one;
    sum.backward += one * call.passes_on + gradient;
    sum.importance += one * call.ranks_below + one * call.ranked;
    sum.frozen += one - gradient;
  }
  return sum;
}

void Ledger::step(const Graph& graph, long samples, long of_task) {
  const Costs now = costs(graph);
  forward_ += samples * now.forward;
  backward_ += samples * now.backward;
  seen_ += of_task;
}

void Ledger::ranked(const Graph& graph, long extra, long repeated, long samples) {
  const Costs now = costs(graph);
  ranking_ += extra * now.importance + repeated * (now.backward + now.frozen) + samples * now.frozen;
}

void Ledger::load(const Json& state) {
  const auto read = [&](const char* name) { return state.at(name, "what was counted").whole(name, 0, (1L << 62) - 1); };
  forward_ = read("forward");
  backward_ = read("backward");
  ranking_ = read("importance");
  seen_ = read("samples_seen");
  removed_ = read("samples_removed");
}

Json Ledger::state() const {
  return Json::of_members({{"backward", Json::of(backward_)}, {"executed", Json::of(executed())}, {"forward", Json::of(forward_)}, {"importance", Json::of(ranking_)},
                           {"samples_removed", Json::of(removed_)}, {"samples_seen", Json::of(seen_)}});
}

}  // namespace sparcl
