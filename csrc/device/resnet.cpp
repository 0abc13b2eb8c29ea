#include "device/resnet.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>

#include "device/losses.h"
#include "engine/parallel.h"

namespace sparcl {
namespace {

constexpr long kSpan = 16384;
constexpr double kEpsilon = 1e-5, kMomentum = 0.1;  // of the norms

// Nodes, and the tensors that they need.
class Maker {
 public:
  Maker(ModelFile& model, const Mask& mask) : model_(model), mask_(mask) { model.graph.kind = Json::kList; }

  int convolve(int input, int inputs, int channels, int size, int stride, bool prunable) {
    const int at = tensors_ - 1, half = size / 2;
    const ConvShape shape{{channels, inputs, size, size}, {stride, stride}, {half, half}, {1, 1}, 1};
    Json node = begin("convolution", input);
    node.set("weight", list({channels, inputs, size, size}));
    node.set("stride", list({stride, stride}));
    node.set("padding", list({half, half}));
    node.set("dilation", list({1, 1}));
    node.set("groups", Json::of(1L));
    node.set("bias", Json::of_truth(false));
    node.set("linear", Json::of_truth(false));
    draw(at, shape, prunable);
    return end(node);
  }

  int normalise(int input, int channels, bool relu, int residual) {
    const std::string name = this->name();
    Json node = begin("norm", input);
    node.set("channels", Json::of(static_cast<long>(channels)));
    node.set("eps", Json::of_real(kEpsilon));
    node.set("momentum", Json::of_real(kMomentum));
    node.set("residual", Json::of(static_cast<long>(residual)));
    node.set("relu", Json::of_truth(relu));
    const std::vector<float> zeros(static_cast<size_t>(channels), 0.0f), ones(zeros.size(), 1.0f);
    for (const char* part : {".weight", ".running_var"}) put(name + part, ones, {channels});
    for (const char* part : {".bias", ".running_mean"}) put(name + part, zeros, {channels});
    model_.file.tensors["model/" + name + ".num_batches_tracked"] = tensor_of("I64", {}, std::vector<int64_t>{0});
    return end(node);
  }

  int average(int input) { return end(begin("global_average", input)); }

  void classify(int input, int inputs, int classes) {
    const std::string name = this->name();
    convolve(input, inputs, classes, 1, 1, false);
    Json& node = model_.graph.items.back();
    node.set("bias", Json::of_truth(true));
    node.set("linear", Json::of_truth(true));
    put(name + ".bias", std::vector<float>(static_cast<size_t>(classes), 0.0f), {classes});
  }

 private:
  static Json list(const std::vector<long>& numbers) {
    std::vector<Json> items;
    for (long number : numbers) items.push_back(Json::of(number));
    return Json::of_list(items);
  }
  std::string name() const { return std::to_string(tensors_ - 1); }
  Json begin(const char* op, int input) const {
    return Json::of_members({{"op", Json::of(std::string(op))},
                             {"name", Json::of(name())},
                             {"input", Json::of(static_cast<long>(input))},
                             {"output", Json::of(static_cast<long>(tensors_))}});
  }
  int end(const Json& node) {
    model_.graph.items.push_back(node);
    return tensors_++;
  }
  void put(const std::string& what, const std::vector<float>& values, const std::vector<long>& shape) {
    model_.file.tensors["model/" + what] = tensor_of("F32", shape, values);
  }
  void draw(int at, const ConvShape& shape, bool prunable) {
    const auto positions = draw_positions(shape, prunable ? mask_ : Mask{0.0, 1, mask_.seed}, at);
    const double inputs_of_an_output = static_cast<double>(positions.size()) / shape.weight[0];
    std::mt19937 random(mask_.seed + static_cast<unsigned>(at));
    std::normal_distribution<float> normal(0.0f, static_cast<float>(std::sqrt(2.0 / inputs_of_an_output)));
    std::vector<float> values(positions.size());
    for (float& weight : values) weight = normal(random);
    const auto& w = shape.weight;
    if (!prunable) return put(name() + ".weight", values, {w[0], w[1], w[2], w[3]});
    const long count = static_cast<long>(positions.size());
    model_.file.tensors["layers/" + name() + "/values"] = tensor_of("F32", {count}, values);
    model_.file.tensors["layers/" + name() + "/index"] = tensor_of("I32", {count}, positions);
  }

  ModelFile& model_;
  const Mask mask_;
  int tensors_ = 1;
};

}  // namespace

ModelFile resnet18(int width, int classes, int image, const Mask& mask) {
  ModelFile model;
  Maker make(model, mask);
  int x = make.normalise(make.convolve(0, 3, width, 3, 1, false), width, true, -1), channels = width;
  for (int stage = 0; stage < 4; ++stage)
    for (int block = 0; block < 2; ++block) {
      const int outputs = width << stage, stride = stage > 0 && block == 0 ? 2 : 1;
      const int first = make.normalise(make.convolve(x, channels, outputs, 3, stride, true), outputs, true, -1);
      const int second = make.convolve(first, outputs, outputs, 3, 1, true);
      const bool same = stride == 1 && channels == outputs;
      const int shortcut = same ? x : make.normalise(make.convolve(x, channels, outputs, 1, stride, false), outputs, false, -1);
      x = make.normalise(second, outputs, true, shortcut);
      channels = outputs;
    }
  make.classify(make.average(x), channels, classes);
  model.classes.kind = model.input_shape.kind = Json::kList;
  for (long c = 0; c < classes; ++c) model.classes.items.push_back(Json::of(std::to_string(c)));
  for (long size : {3, image, image}) model.input_shape.items.push_back(Json::of(size));
  return model;
}

double Trainer::forward(const float* x, const std::vector<long>& labels) {
  const long classes = graph.classes(), batch = static_cast<long>(labels.size());
  const float* logits = graph.forward(x, batch, true);
  gradient_.resize(static_cast<size_t>(classes * batch));
  return cross_entropy(logits, labels, classes, 1.0, {}, 0, gradient_.data());
}

void Trainer::backward() {
  graph.clear_gradients();
  graph.backward(gradient_.data());
}

double Trainer::step(const float* x, const std::vector<long>& labels, float rate) {
  const double loss = forward(x, labels);
  backward();
  for (Graph::State& state : graph.states())
    for (Parameter* p : {&state.weight, &state.bias}) {
      const long count = static_cast<long>(p->value.size());
      parallel_for(graph.threads(), (count + kSpan - 1) / kSpan, [&](long span) {
        const long first = span * kSpan;
        kernels().add_scaled(p->gradient.data() + first, p->value.data() + first, std::min(kSpan, count - first), -rate);
      });
    }
  return loss;
}

// A unit is the weights that are active together: `block` of them, at one position of neighbouring output channels.
std::vector<int32_t> draw_positions(const ConvShape& shape, const Mask& mask, int layer) {
  const auto& w = shape.weight;
  const long row = static_cast<long>(w[1]) * w[2] * w[3], units = w[0] / mask.block * row;
  long wanted = std::max(1L, std::lround((1.0 - mask.sparsity) * static_cast<double>(units)));
  std::mt19937 random(mask.seed + static_cast<unsigned>(layer));
  std::vector<int32_t> positions;
  positions.reserve(static_cast<size_t>(wanted * mask.block));
  for (long first = 0; first < units; first += row) {  // one block of output channels
    std::vector<int32_t> drawn;
    for (long p = 0; p < row; ++p)
      if (static_cast<long>(random() % static_cast<unsigned long>(units - first - p)) < wanted) {
        drawn.push_back(static_cast<int32_t>(p));
        --wanted;
      }
    for (int j = 0; j < mask.block; ++j)
      for (int32_t p : drawn) positions.push_back(static_cast<int32_t>(first * mask.block + j * row) + p);
  }
  return positions;
}

}  // namespace sparcl
