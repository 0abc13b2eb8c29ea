#include <cstdio>

#include "device/commands.h"
#include "device/graph.h"
#include "device/images.h"

namespace sparcl {
namespace {

constexpr char kBuffer[] = "learner/method/buffer/";

std::string sizes_of(const Node& node) {
  const auto& w = node.shape.weight;
  std::string text = "[" + std::to_string(w[0]) + ", " + std::to_string(w[1]);
  if (!node.linear) text += ", " + std::to_string(w[2]) + ", " + std::to_string(w[3]);
  return text + "]";
}

// A line for each layer that has weights; returns the prunable weights and those of them that are active.
std::pair<long, long> tell_layers(const Graph& graph) {
  long all = 0, active = 0;
  for (size_t at = 0; at < graph.nodes().size(); ++at) {
    const Node& node = graph.nodes()[at];
    const Graph::State& state = graph.states()[at];
    const std::string name = to_text(Json::of(node.name));
    const long own = static_cast<long>(state.weight.value.size());
    if (node.op == Node::kNorm) std::printf("  %-28s norm         %ld channels\n", name.c_str(), node.channels);
    if (node.op != Node::kConvolution) continue;
    std::printf("  %-28s %-12s %-20s", name.c_str(), node.linear ? "linear" : "convolution", sizes_of(node).c_str());
    if (state.sparse) {
      const auto& w = node.shape.weight;
      const long dense = static_cast<long>(w[0]) * w[1] * w[2] * w[3];
      all += dense, active += own;
      std::printf(" density %.4f, %ld of %ld weights\n", static_cast<double>(own) / static_cast<double>(dense), own, dense);
    } else {
      std::printf(" dense, %ld weights\n", own);
    }
  }
  return {all, active};
}

std::string buffer_line(const ModelFile& model) {
  const Json* capacity = model.device.at("method", "device").find("buffer_size");
  if (!capacity) return "";
  size_t bytes = 0;
  long held = 0;
  for (const auto& tensor : model.file.tensors) {
    if (tensor.first.compare(0, sizeof kBuffer - 1, kBuffer) != 0) continue;
    bytes += tensor.second.bytes.size();
    if (tensor.first == std::string(kBuffer) + "labels") held = tensor.second.count();
  }
  return "buffer       " + std::to_string(held) + " of " + to_text(*capacity) + " samples, " + std::to_string(bytes) + " bytes\n";
}

}  // namespace

void info(const ModelFile& model) {
  const Graph graph(model, 1);
  // What may be missing is asked for before the first line.
  const std::string method = to_text(model.device.at("method", "device")), buffer = buffer_line(model);
  const Json& learner = model.state.at("learner", "the state");
  const std::string learned = to_text(learner.at("learned", "the state")), steps = to_text(learner.at("steps", "the state"));
  const bool inside = learner.at("position", "the state").kind != Json::kNull;
  long parameters = 0;
  for (const Graph::State& state : graph.states()) parameters += static_cast<long>(state.weight.value.size() + state.bias.value.size());
  std::printf("classes      %ld:", graph.classes());
  for (const Json& name : model.classes.items) std::printf(" %s", to_text(name).c_str());
  const Extent& in = graph.input();
  std::printf("\ninput        [%ld, %ld, %ld]\nlayers       %zu\n", in.channels, in.height, in.width, graph.nodes().size());
  const auto [all, active] = tell_layers(graph);
  std::printf("parameters   %ld active\n", parameters);
  if (all) std::printf("sparsity     %.4f of %ld prunable weights\n", 1.0 - static_cast<double>(active) / static_cast<double>(all), all);
  std::printf("multiply-adds of a sample, forward   %ld\n", graph.macs());
  std::printf("method       %s\n%s", method.c_str(), buffer.c_str());
  if (const Json* share = model.state.at("settings", "the state").find("average"))
    std::printf("answers      by an average of the weights over %s of a task's steps\n", to_text(*share).c_str());
  std::printf("tasks        %s learned, %s steps\n", learned.c_str(), steps.c_str());
  if (inside) std::printf("             stopped inside a task: learn it again to go on\n");
  std::printf("images       this build reads %s\n", image_formats());
  if (missing_formats()) std::printf("             not %s\n", missing_formats());
  std::printf("computes     by %s\n", kernels().name);
}

}  // namespace sparcl
