#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>

#include "device/learn.h"

namespace sparcl {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

void append_rows(Tensor& tensor, long rows, double reach, std::mt19937_64& random) {
  const long row = tensor.count() / tensor.shape[0];
  std::uniform_real_distribution<double> uniform(-reach, reach);
  std::vector<float> fresh(static_cast<size_t>(rows * row));
  for (float& value : fresh) value = static_cast<float>(uniform(random));
  const uint8_t* from = reinterpret_cast<const uint8_t*>(fresh.data());
  tensor.bytes.insert(tensor.bytes.end(), from, from + fresh.size() * sizeof(float));
  tensor.shape[0] += rows;
}

// Remembered answers say nothing of classes that were not there: 0.
void append_columns(Tensor& tensor, long columns) {
  const long rows = tensor.shape[0], before = tensor.shape[1];
  tensor.floats("the buffer's logits", rows * before);
  std::vector<uint8_t> wider(static_cast<size_t>(rows * (before + columns)) * sizeof(float), 0);
  for (long row = 0; row < rows; ++row)
    std::memcpy(wider.data() + row * (before + columns) * 4, tensor.bytes.data() + row * before * 4, static_cast<size_t>(before) * 4);
  tensor.bytes = std::move(wider);
  tensor.shape[1] += columns;
}

}  // namespace

void grow_head(ModelFile& model, const std::vector<std::string>& names, unsigned long seed) {
  const long more = static_cast<long>(names.size());
  const std::vector<Node> nodes = nodes_of(model.graph);
  size_t last = nodes.size();
  while (last > 0 && nodes[last - 1].op != Node::kConvolution) --last;
  if (last != nodes.size()) refuse("the head cannot grow: the network does not end in a linear layer");
  const std::string name = "model/" + nodes[last - 1].name;
  if (model.file.find("layers/" + nodes[last - 1].name + "/values")) refuse("the head cannot grow: its weights are sparse");
  Json& arguments = model.state.at("settings", "the state").at("made_from", "the state").at("model", "the state");
  if (arguments.kind == Json::kNull) refuse("the head cannot grow: the network is none of sparcl.nn, so Python could not make it again");
  Json& classes = arguments.at("arguments", "the state").at("classes", "the state");
  classes = Json::of(classes.whole("classes", 1, 1 << 20) + more);
  for (const std::string& said : names) model.classes.items.push_back(Json::of(said));
  Json& weight = model.graph.items[last - 1].at("weight", "the graph");
  weight.items[0] = Json::of(weight.items[0].whole("weight", 1, 1 << 20) + more);
  std::mt19937_64 random(seed ^ 0x68656164u);
  const double reach = 1 / std::sqrt(static_cast<double>(nodes[last - 1].shape.weight[1]));
  for (const char* part : {".weight", ".bias"}) {
    const auto found = model.file.tensors.find(name + part);
    if (found == model.file.tensors.end()) continue;
    found->second.floats(found->first);
    if (found->second.shape.empty() || found->second.count() == 0) refuse(found->first + " has no rows");
    append_rows(found->second, more, reach, random);
  }
  const auto logits = model.file.tensors.find("learner/method/buffer/logits");
  if (logits != model.file.tensors.end()) {
    if (logits->second.shape.size() != 2) refuse("the buffer's logits must have two axes");
    append_columns(logits->second, more);
  }
}

}  // namespace sparcl
