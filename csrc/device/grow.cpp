#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "device/learn.h"

namespace sparcl {
namespace {

constexpr char kGenerator[] = "learner/generators/head";

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

// Drawn as torch.Tensor.uniform_ draws them; reach 0: zeros, of which nothing is drawn.
void append_rows(Tensor& tensor, long rows, double reach, Random& random) {
  const long row = tensor.count() / tensor.shape[0];
  std::vector<float> fresh(static_cast<size_t>(rows * row), 0.0f);
  for (float& value : fresh)
    if (reach > 0) value = random.uniform(static_cast<float>(-reach), static_cast<float>(reach));
  const uint8_t* from = reinterpret_cast<const uint8_t*>(fresh.data());
  tensor.bytes.insert(tensor.bytes.end(), from, from + fresh.size() * sizeof(float));
  tensor.shape[0] += rows;
}

// The average of rows that were drawn begins with them.
void copy_rows(const Tensor& drawn, long rows, Tensor& average) {
  if (average.bytes.size() != drawn.bytes.size()) refuse("an average in the file has not the shape of its weight");
  const size_t tail = drawn.bytes.size() / static_cast<size_t>(drawn.shape[0]) * static_cast<size_t>(rows), before = drawn.bytes.size() - tail;
  std::memcpy(average.bytes.data() + before, drawn.bytes.data() + before, tail);
}

// Remembered answers say nothing of classes that were not there: NaN.
void append_columns(Tensor& tensor, long columns) {
  const long rows = tensor.shape[0], before = tensor.shape[1];
  tensor.floats("the buffer's logits", rows * before);
  std::vector<float> wider(static_cast<size_t>(rows * (before + columns)), NAN);
  for (long row = 0; row < rows; ++row)
    std::memcpy(wider.data() + row * (before + columns), tensor.bytes.data() + row * before * 4, static_cast<size_t>(before) * 4);
  tensor = tensor_of("F32", {rows, before + columns}, wider);
}

// Whether a text is a whole number as Python writes it.
bool is_whole(const std::string& text) {
  const size_t sign = text[0] == '-';
  const bool digits = text.size() > sign && text.size() <= 18 && text.find_first_not_of("0123456789", sign) == std::string::npos;
  return digits && (text[sign] != '0' || text == "0");
}

// Where the state names all columns, it names the new ones, by numbers where the others are. A head that does not grow in Python is made
// again with more classes: by Python where the network is of sparcl.nn, else by whoever hands it to Learner.load.
void add_names(ModelFile& model, const std::vector<std::string>& names) {
  Json& classes = model.state.at("learner", "the state").at("classes", "the state");
  Json& known = classes.at("names", "the classes");
  const bool grows = classes.at("grows", "the classes").truth("grows");
  const size_t named = known.list("the classes' names", 0, 1 << 20).size();
  if (grows || named == model.classes.items.size()) {
    const bool numbers = named && std::all_of(known.items.begin(), known.items.end(), [](const Json& had) { return had.kind == Json::kNumber; });
    for (const std::string& name : names) known.items.push_back(numbers && is_whole(name) ? Json::of(std::stol(name)) : Json::of(name));
  }
  if (!grows) {
    Json& recipe = model.state.at("settings", "the state").at("made_from", "the state").at("model", "the state");
    if (recipe.kind != Json::kNull) {
      Json& count = recipe.at("arguments", "the state").at("classes", "the state");
      count = Json::of(count.whole("classes", 1, 1 << 20) + static_cast<long>(names.size()));
    }
  }
  for (const std::string& name : names) model.classes.items.push_back(Json::of(name));
}

}  // namespace

void grow_head(ModelFile& model, const std::vector<std::string>& names) {
  const long more = static_cast<long>(names.size());
  const std::vector<Node> nodes = nodes_of(model.graph);
  size_t last = nodes.size();
  while (last > 0 && nodes[last - 1].op != Node::kConvolution) --last;
  if (last == 0 || last != nodes.size()) refuse("the head cannot grow: the network does not end in a linear layer");
  const std::string& layer = nodes[last - 1].name;
  if (model.file.find("layers/" + layer + "/values")) refuse("the head cannot grow: its weights are sparse");
  add_names(model, names);
  Json& weight = model.graph.items[last - 1].at("weight", "the graph");
  const long rows = weight.items[0].whole("weight", 1, 1 << 20);
  weight.items[0] = Json::of(rows + more);
  Random random(model.file.at(kGenerator), kGenerator);
  const double reach = 1 / std::sqrt(static_cast<double>(nodes[last - 1].shape.weight[1]));
  auto& tensors = model.file.tensors;
  for (const char* part : {".weight", ".bias"}) {
    const auto found = tensors.find("model/" + layer + part);
    if (found == tensors.end()) continue;
    found->second.floats(found->first);
    if (found->second.shape.empty() || found->second.shape[0] != rows) refuse(found->first + " has not as many rows as there are logits");
    append_rows(found->second, more, reach, random);
    const std::string state = "optimizer/state/" + layer + part + "/";
    for (auto it = tensors.lower_bound(state); it != tensors.end() && it->first.compare(0, state.size(), state) == 0; ++it)
      if (!it->second.shape.empty() && it->second.shape[0] == rows) {
        it->second.floats(it->first);
        append_rows(it->second, more, 0, random);
        if (it->first == state + "average") copy_rows(found->second, more, it->second);
      }
  }
  put_tensor(model, kGenerator, random.state());
  const auto logits = tensors.find("learner/method/buffer/logits");
  if (logits == tensors.end()) return;
  if (logits->second.shape.size() != 2) refuse("the buffer's logits must have two axes");
  append_columns(logits->second, more);
}

}  // namespace sparcl
