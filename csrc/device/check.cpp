#include "device/check.h"

#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>
#include <vector>

#include "device/resnet.h"

namespace sparcl {
namespace {

constexpr int kWidth = 8, kClasses = 5;
constexpr Extent kInput{3, 16, 16, 6};
constexpr float kRate = 0.05f;
// By which the loss is moved to measure a gradient: more and ReLU's kinks show (3 % of the gradient here, 13 % at 1e-2).
constexpr double kRise = 3e-4;

struct Sample {
  std::vector<float> x;
  std::vector<long> labels;
};

Sample sample() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  Sample s{std::vector<float>(static_cast<size_t>(kInput.count())), std::vector<long>(static_cast<size_t>(kInput.batch))};
  for (float& x : s.x) x = normal(random);
  for (size_t n = 0; n < s.labels.size(); ++n) s.labels[n] = static_cast<long>(n) % kClasses;
  return s;
}

Trainer network(const Mask& mask, int threads) { return Trainer(resnet18(kWidth, kClasses, static_cast<int>(kInput.height), mask), threads); }

[[noreturn]] void wrong(const std::string& what, double got, double want) {
  throw std::runtime_error(what + ": " + std::to_string(got) + " where " + std::to_string(want) + " is right");
}

std::string name(const Trainer& network, size_t at, bool bias) {
  const char* kind = network.graph.nodes()[at].op == Node::kNorm ? "norm" : "convolution";
  return std::string(bias ? "bias" : "weight") + " of layer " + std::to_string(at) + " (" + kind + ")";
}

double size(const std::vector<float>& values) {
  double squares = 0;
  for (float v : values) squares += static_cast<double>(v) * v;
  return std::sqrt(squares);
}

// For each parameter: how the loss changes along its own gradient, measured, is the length of that gradient.
int compare_with_differences(Trainer& net, const Sample& s) {
  int compared = 0;
  net.forward(s.x.data(), s.labels);
  net.backward();
  for (size_t at = 0; at < net.graph.states().size(); ++at)
    for (const bool bias : {false, true}) {
      Parameter& p = bias ? net.graph.states()[at].bias : net.graph.states()[at].weight;
      if (p.value.empty()) continue;
      const std::vector<float> value = p.value;
      const double length = size(p.gradient), reach = kRise / length;
      double loss[2];
      for (int side : {0, 1}) {
        for (size_t k = 0; k < value.size(); ++k)
          p.value[k] = value[k] + static_cast<float>((side ? reach : -reach) / length) * p.gradient[k];
        loss[side] = net.forward(s.x.data(), s.labels);
      }
      p.value = value;
      const double measured = (loss[1] - loss[0]) / (2 * reach);
      if (!(std::fabs(measured - length) <= 0.05 * length)) wrong("gradient of " + name(net, at, bias), length, measured);
      ++compared;
    }
  return compared;
}

// The same network with every position active and zeros where the mask has none: same loss, same gradients where it has one.
void compare_with_zeros(Trainer& sparse, const Mask& mask, const Sample& s, int threads) {
  Trainer dense = network({0.0, 1, mask.seed}, threads);
  std::vector<std::vector<int32_t>> positions(dense.graph.states().size());
  for (size_t at = 0; at < positions.size(); ++at) {
    Graph::State &from = sparse.graph.states()[at], &to = dense.graph.states()[at];
    to.bias.value = from.bias.value;
    if (from.sparse) {
      positions[at] = draw_positions(to.plan->shape(), mask, static_cast<int>(at));
      to.weight.value.assign(to.weight.value.size(), 0.0f);
      for (size_t k = 0; k < positions[at].size(); ++k) to.weight.value[positions[at][k]] = from.weight.value[k];
    } else {
      to.weight.value = from.weight.value;
    }
  }
  const double loss = sparse.forward(s.x.data(), s.labels), same = dense.forward(s.x.data(), s.labels);
  if (!(std::fabs(loss - same) <= 1e-5 * same)) wrong("loss of the sparse network", loss, same);
  sparse.backward();
  dense.backward();
  for (size_t at = 0; at < positions.size(); ++at)
    for (const bool bias : {false, true}) {
      const auto& got = bias ? sparse.graph.states()[at].bias.gradient : sparse.graph.states()[at].weight.gradient;
      const auto& all = bias ? dense.graph.states()[at].bias.gradient : dense.graph.states()[at].weight.gradient;
      const double scale = size(all) / std::sqrt(static_cast<double>(all.size()));
      for (size_t k = 0; k < got.size(); ++k) {
        const float want = bias || positions[at].empty() ? all[k] : all[positions[at][k]];
        if (!(std::fabs(got[k] - want) <= 1e-3 * scale)) wrong("gradient of " + name(sparse, at, bias), got[k], want);
      }
    }
}

void compare_threads(Trainer& one, Trainer& several, const Sample& s) {
  for (Trainer* net : {&one, &several}) {
    net->forward(s.x.data(), s.labels);
    net->backward();
  }
  for (size_t at = 0; at < one.graph.states().size(); ++at)
    for (const bool bias : {false, true}) {
      const auto& a = bias ? one.graph.states()[at].bias.gradient : one.graph.states()[at].weight.gradient;
      const auto& b = bias ? several.graph.states()[at].bias.gradient : several.graph.states()[at].weight.gradient;
      if (!a.empty() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)))
        throw std::runtime_error("gradient of " + name(one, at, bias) + ": the bits depend on the number of threads");
    }
}

}  // namespace

std::string check_training(int threads) {
  const Sample s = sample();
  const Mask masks[] = {{0.9, 1, 7}, {0.75, 4, 7}};
  Trainer first = network(masks[0], threads);
  const int compared = compare_with_differences(first, s);
  for (const Mask& mask : masks) {
    Trainer net = network(mask, threads), other = network(mask, threads == 1 ? 3 : 1);
    compare_with_zeros(net, mask, s, threads);
    compare_threads(net, other, s);
    const double before = net.step(s.x.data(), s.labels, kRate);
    for (int i = 0; i < 3; ++i) net.step(s.x.data(), s.labels, kRate);
    const double after = net.forward(s.x.data(), s.labels);
    if (!(after < before)) wrong("loss after four steps", after, before);
  }
  return std::to_string(compared) + " gradients against differences, two patterns against the dense network with zeros";
}

}  // namespace sparcl
