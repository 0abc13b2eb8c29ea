// ResNet-18 made up for sparcl-bench: random masks and first weights, and its training by plain SGD.
#pragma once
#include <cstdint>
#include <vector>

#include "device/graph.h"

namespace sparcl {

// Which weights of the sixteen 3x3 convolutions of the blocks exist: a random mask, the same for the same numbers. block 4: output
// channels 4g .. 4g + 3 share their positions. sparsity 0: all, the dense network.
struct Mask {
  double sparsity;
  int block;
  unsigned seed;
};
std::vector<int32_t> draw_positions(const ConvShape& shape, const Mask& mask, int layer);  // ascending

// ResNet-18 with the CIFAR stem (He et al., 2016) for square images of three channels, as a file would have it.
ModelFile resnet18(int width, int classes, int image, const Mask& mask);

class Trainer {
 public:
  Trainer(const ModelFile& model, int threads) : graph(model, threads) {}

  // Mean cross-entropy of the batch x [channels][rows][columns][N], labels [N]. x must live until backward().
  double forward(const float* x, const std::vector<long>& labels);
  void backward();  // the gradient of every parameter, for the last forward()
  double step(const float* x, const std::vector<long>& labels, float rate);

  Graph graph;

 private:
  std::vector<float> gradient_;  // of the logits
};

}  // namespace sparcl
