// ResNet-18 as data, and its random masks.
#include <algorithm>
#include <cmath>
#include <random>

#include "device/network.h"

namespace sparcl {

std::vector<Layer> resnet18(int width, int classes) {
  std::vector<Layer> layers;
  int tensors = 1;
  const auto convolve = [&](int input, int channels, int size, int stride, bool prunable) {
    layers.push_back({Layer::kConvolution, input, tensors, channels, size, stride, prunable, false, -1, false});
    return tensors++;
  };
  const auto normalise = [&](int input, bool relu, int residual) {
    layers.push_back({Layer::kNorm, input, tensors, 0, 0, 0, false, false, residual, relu});
    return tensors++;
  };
  int x = normalise(convolve(0, width, 3, 1, false), true, -1), channels = width;
  for (int stage = 0; stage < 4; ++stage)
    for (int block = 0; block < 2; ++block) {
      const int outputs = width << stage, stride = stage > 0 && block == 0 ? 2 : 1;
      const int first = normalise(convolve(x, outputs, 3, stride, true), true, -1);
      const int second = convolve(first, outputs, 3, 1, true);
      const bool same = stride == 1 && channels == outputs;
      const int shortcut = same ? x : normalise(convolve(x, outputs, 1, stride, false), false, -1);
      x = normalise(second, true, shortcut);
      channels = outputs;
    }
  layers.push_back({Layer::kPool, x, tensors, 0, 0, 0, false, false, -1, false});
  layers.push_back({Layer::kConvolution, tensors, tensors + 1, classes, 1, 1, false, true, -1, false});
  return layers;
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
