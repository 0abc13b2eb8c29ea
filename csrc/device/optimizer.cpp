#include "device/optimizer.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "engine/parallel.h"

namespace sparcl {
namespace {

constexpr char kWhat[] = "the optimizer";
constexpr size_t kSpan = 4096;  // values that a thread moves at a time

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

bool is_true(const Json& group, const char* name) {
  const Json* found = group.find(name);
  return found && found->kind == Json::kTrue;
}

bool moves(const std::vector<uint8_t>& chosen, size_t i) { return chosen.empty() || chosen[i]; }

// body(i) for each of `count` values, which have nothing to do with each other
template <class Body>
void each(size_t count, int threads, Body body) {
  const size_t spans = (count + kSpan - 1) / kSpan;
  parallel_for(threads, static_cast<long>(spans), [&](long span) {
    const size_t first = static_cast<size_t>(span) * kSpan;
    for (size_t i = first; i < std::min(count, first + kSpan); ++i) body(i);
  });
}

}  // namespace

Optimizer::Optimizer(const ModelFile& model, Graph& graph) {
  const Json& state = model.state.at("optimizer", "the state");
  const std::string& kind = state.at("kind", kWhat).string(kWhat);
  if (kind != "SGD" && kind != "Adam" && kind != "AdamW") refuse("optimizer " + kind.substr(0, 40) + " is not in this program; allowed: SGD, Adam, AdamW");
  kind_ = kind == "SGD" ? kSgd : kind == "Adam" ? kAdam : kAdamW;
  const auto& groups = state.at("groups", kWhat).list("parameter groups", 1, 1 << 20);
  if (groups.size() != 1) refuse("the file's optimizer has " + std::to_string(groups.size()) + " parameter groups; this program goes on with one");
  const Json& group = groups[0];
  for (const char* option : {"maximize", "amsgrad"})
    if (is_true(group, option)) refuse("the file's optimizer has " + std::string(option) + ", which is not in this program");
  rate_ = group.at("lr", kWhat).number("lr", 0, 1e30);
  decay_ = group.at("weight_decay", kWhat).number("weight_decay", 0, 1e30);
  if (kind_ == kSgd) {
    momentum_ = group.at("momentum", kWhat).number("momentum", 0, 1e30);
    dampening_ = group.at("dampening", kWhat).number("dampening", -1e30, 1e30);
    nesterov_ = is_true(group, "nesterov");
  } else {
    const auto& betas = group.at("betas", kWhat).list("betas", 2, 2);
    beta1_ = betas[0].number("betas", 0, 1);
    beta2_ = betas[1].number("betas", 0, 1);
    eps_ = group.at("eps", kWhat).number("eps", 0, 1e30);
    if (is_true(group, "decoupled_weight_decay")) kind_ = kAdamW;
  }
  const auto& named = group.at("params", kWhat).list("parameters", 0, 1 << 20);
  for (size_t at = 0; at < graph.nodes().size(); ++at)
    for (const bool bias : {false, true}) {
      const Graph::State& node = graph.states()[at];
      if ((bias ? node.bias : node.weight).value.empty()) continue;
      Held held{at, bias, graph.nodes()[at].name + (bias ? ".bias" : ".weight")};
      if (std::none_of(named.begin(), named.end(), [&](const Json& name) { return name.text == held.name; }))
        refuse("the file's optimizer does not hold " + held.name.substr(0, 80) + "; this program trains every weight");
      read_state(model, graph, held);
      held_.push_back(held);
    }
}

Parameter& Optimizer::parameter(Graph& graph, const Held& held) const {
  Graph::State& state = graph.states()[held.at];
  return held.bias ? state.bias : state.weight;
}

std::vector<std::string> Optimizer::slots() const {
  if (kind_ != kSgd) return {"exp_avg", "exp_avg_sq"};
  return momentum_ != 0 ? std::vector<std::string>{"momentum_buffer"} : std::vector<std::string>();
}

void Optimizer::read_state(const ModelFile& model, Graph& graph, Held& held) const {
  const Json& all = model.state.at("optimizer", "the state").at("state", kWhat);
  const std::string path = "optimizer/state/" + held.name + "/";
  held.begun = all.find(held.name) != nullptr;
  Parameter& p = parameter(graph, held);
  for (const std::string& slot : slots()) {
    std::vector<float>& values = p.slots[slot];
    values.assign(p.value.size(), 0.0f);
    if (!held.begun) continue;
    const float* from = model.file.at(path + slot).floats(path + slot, static_cast<long>(p.value.size()));
    values.assign(from, from + p.value.size());
  }
  if (kind_ != kSgd && held.begun) held.steps = static_cast<double>(model.file.at(path + "step").floats(path + "step", 1)[0]);
}

void Optimizer::step(Graph& graph) {
  for (Held& held : held_) {
    Parameter& p = parameter(graph, held);
    static const std::vector<uint8_t> kAll;
    const std::vector<uint8_t>& chosen = held.bias ? kAll : graph.states()[held.at].chosen;
    if (kind_ == kSgd)
      move_sgd(p, chosen, !held.begun, graph.threads());
    else
      move_adam(p, chosen, ++held.steps, graph.threads());
    held.begun = kind_ != kSgd || momentum_ != 0;
  }
}

void Optimizer::move_sgd(Parameter& p, const std::vector<uint8_t>& chosen, bool first, int threads) const {
  const float rate = static_cast<float>(rate_), decay = static_cast<float>(decay_), momentum = static_cast<float>(momentum_);
  const float new_share = first ? 1.0f : static_cast<float>(1 - dampening_);
  float* buffer = momentum_ != 0 ? p.slots.at("momentum_buffer").data() : nullptr;
  each(p.value.size(), threads, [&](size_t i) {
    if (!moves(chosen, i)) return;
    float way = p.gradient[i] + decay * p.value[i];
    if (buffer) {
      buffer[i] = momentum * buffer[i] + new_share * way;
      way = nesterov_ ? way + momentum * buffer[i] : buffer[i];
    }
    p.value[i] -= rate * way;
  });
}

void Optimizer::move_adam(Parameter& p, const std::vector<uint8_t>& chosen, double steps, int threads) const {
  const float rest1 = static_cast<float>(1 - beta1_), keep2 = static_cast<float>(beta2_), rest2 = static_cast<float>(1 - beta2_), eps = static_cast<float>(eps_);
  const float length = static_cast<float>(rate_ / (1 - std::pow(beta1_, steps))), root = static_cast<float>(std::sqrt(1 - std::pow(beta2_, steps)));
  const float shrink = kind_ == kAdamW ? static_cast<float>(1 - rate_ * decay_) : 1.0f, decay = kind_ == kAdam ? static_cast<float>(decay_) : 0.0f;
  std::vector<float>&mean = p.slots.at("exp_avg"), &square = p.slots.at("exp_avg_sq");
  each(p.value.size(), threads, [&](size_t i) {
    if (!moves(chosen, i)) return;
    const float g = p.gradient[i] + decay * p.value[i];
    mean[i] += rest1 * (g - mean[i]);
    square[i] = square[i] * keep2 + rest2 * g * g;
    p.value[i] = p.value[i] * shrink - length * (mean[i] / (std::sqrt(square[i]) / root + eps));
  });
}

void Optimizer::store(ModelFile& model, const Graph& graph) const {
  Json& all = model.state.at("optimizer", "the state").at("state", kWhat);
  for (const Held& held : held_) {
    if (!held.begun || slots().empty()) continue;
    const std::string path = "optimizer/state/" + held.name + "/";
    const Graph::State& state = graph.states()[held.at];
    const Parameter& p = held.bias ? state.bias : state.weight;
    const std::vector<long> shape = shape_of(model, held.name, p.value.size());
    Json entry = Json::of_members({});
    for (const std::string& slot : slots()) entry.set(slot, put_tensor(model, path + slot, tensor_of("F32", shape, p.slots.at(slot))));
    if (kind_ != kSgd) entry.set("step", put_tensor(model, path + "step", tensor_of("F32", {}, std::vector<float>{static_cast<float>(held.steps)})));
    all.set(held.name, entry);
  }
}

}  // namespace sparcl
