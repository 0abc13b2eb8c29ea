// The graph of a model file, checked.
#include <stdexcept>

#include "device/graph.h"

namespace sparcl {
namespace {

constexpr size_t kMostNodes = 4096;
// Lists of nonzeros are made for each output channel, and for each input channel and phase of the stride.
constexpr long kMostChannels = 1 << 20, kMostLists = 1 << 22;

std::array<int, 2> pair(const Json& node, const char* key, const std::string& what, long least) {
  const auto& items = node.at(key, what).list(what + ": " + key, 2, 2);
  return {static_cast<int>(items[0].whole(what + ": " + key, least, 1 << 20)), static_cast<int>(items[1].whole(what + ": " + key, least, 1 << 20))};
}

Node::Op op_of(const std::string& name, const std::string& what) {
  static const char* const kNames[] = {"convolution", "norm", "relu", "flatten", "global_average", "average_pool", "max_pool", "add"};
  std::string allowed;
  for (int op = 0; op < 8; ++op) {
    if (name == kNames[op]) return static_cast<Node::Op>(op);
    allowed += (op ? ", " : "") + std::string(kNames[op]);
  }
  throw std::invalid_argument(what + ": unknown op " + name.substr(0, 40) + "; allowed: " + allowed);
}

Node node_of(const Json& value, int number) {
  const std::string what = "node " + std::to_string(number) + " of the graph";
  Node node;
  node.op = op_of(value.at("op", what).string(what + ": op"), what);
  node.name = value.at("name", what).string(what + ": name");
  node.input = static_cast<int>(value.at("input", what).whole(what + ": input", 0, number));
  node.output = static_cast<int>(value.at("output", what).whole(what + ": output", number + 1, number + 1));
  if (node.op == Node::kConvolution) {
    const auto& weight = value.at("weight", what).list(what + ": weight", 4, 4);
    for (size_t i = 0; i < 4; ++i) node.shape.weight[i] = static_cast<int>(weight[i].whole(what + ": weight", 1, kMostChannels));
    node.shape.stride = pair(value, "stride", what, 1);
    node.shape.padding = pair(value, "padding", what, 0);
    node.shape.dilation = pair(value, "dilation", what, 1);
    node.shape.groups = static_cast<int>(value.at("groups", what).whole(what + ": groups", 1, kMostChannels));
    const long inputs = static_cast<long>(node.shape.weight[1]) * node.shape.groups;
    if (inputs > kMostChannels || inputs * node.shape.stride[0] > kMostLists / node.shape.stride[1])
      throw std::invalid_argument(what + ": stride or channels are too large");
    node.bias = value.at("bias", what).truth(what + ": bias");
    node.linear = value.at("linear", what).truth(what + ": linear");
  } else if (node.op == Node::kNorm) {
    node.channels = value.at("channels", what).whole(what + ": channels", 1, 1L << 31);
    node.eps = static_cast<float>(value.at("eps", what).number(what + ": eps", 0, 1));
    node.momentum = static_cast<float>(value.at("momentum", what).number(what + ": momentum", 0, 1));
    node.residual = static_cast<int>(value.at("residual", what).whole(what + ": residual", -1, number));
    node.relu = value.at("relu", what).truth(what + ": relu");
  } else if (node.op == Node::kAdd) {
    node.residual = static_cast<int>(value.at("residual", what).whole(what + ": residual", 0, number));
  } else if (node.op == Node::kAverage || node.op == Node::kMaximum) {
    const auto size = pair(value, "size", what, 1), stride = pair(value, "stride", what, 1), padding = pair(value, "padding", what, 0);
    node.window = {size[0], size[1], stride[0], stride[1], padding[0], padding[1]};
  }
  return node;
}

}  // namespace

std::vector<Node> nodes_of(const Json& graph) {
  std::vector<Node> nodes;
  for (const Json& value : graph.list("the graph", 1, kMostNodes)) nodes.push_back(node_of(value, static_cast<int>(nodes.size())));
  return nodes;
}

}  // namespace sparcl
