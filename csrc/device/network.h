// A batch-last network that trains itself with the engine's functions alone: the network is data, the rest walks through it.
//
// Tensors are numbered in the order in which they are made, 0 is the input. Axes as in plan.h: [channels][rows][columns][N].
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/arena.h"
#include "engine/layers.h"

namespace sparcl {

struct Layer {
  enum Kind { kConvolution, kNorm, kPool } kind;
  int input, output;  // tensors
  // Convolution: without dilation, padded to keep its input's size at stride 1.
  int channels, size, stride;  // of its output; rows and columns of the kernel
  bool prunable, bias;
  // Norm: y = relu(norm(x) + residual); a pool averages over all positions.
  int residual;  // tensor, or -1
  bool relu;
};

// ResNet-18 with the CIFAR stem (He et al., 2016), without its softmax.
std::vector<Layer> resnet18(int width, int classes);

// Which weights of the prunable layers exist: a random mask, the same for the same numbers. block 4: output channels
// 4g .. 4g + 3 share their positions. sparsity 0: all, the dense network.
struct Mask {
  double sparsity;
  int block;
  unsigned seed;
};
std::vector<int32_t> draw_positions(const ConvShape& shape, const Mask& mask, int layer);  // ascending

struct Parameter {
  std::vector<float> value, gradient;
};

class Network {
 public:
  // Draws its positions and its first weights.
  Network(std::vector<Layer> layers, const Extent& input, const Mask& mask, int threads);

  // Mean cross-entropy of the batch x [channels][rows][columns][N], labels [N]. Both must live until backward().
  double forward(const float* x, const int* labels);
  // The gradient of every parameter, for the last forward(), whose tensors are given back on the way.
  void backward();
  void update(float rate);  // plain SGD
  double step(const float* x, const int* labels, float rate);

  // A convolution's active weights and bias, a norm's scale and shift; empty where there is none.
  struct State {
    std::unique_ptr<ConvPlan> plan;
    Parameter weight, bias;
    std::vector<float> mean, rstd;
  };
  const std::vector<Layer>& layers() const { return layers_; }
  std::vector<State>& states() { return states_; }

 private:
  void make_convolution(size_t at, const Mask& mask);
  void run(size_t at);
  void run_back(size_t at);
  double cross_entropy();
  Norm norm(size_t at, const float* x) const;
  Window window(const Layer& layer) const;
  Block room(int tensor) const;
  bool can_be_remade(int tensor) const;
  Source source(int tensor, std::vector<float>& scales) const;
  void collect(int tensor, Block part);

  std::vector<Layer> layers_;
  std::vector<State> states_;     // of each layer
  std::vector<Extent> extents_;   // of each tensor
  std::vector<int> maker_;        // the layer that makes it; the input: -1
  std::vector<size_t> last_use_;  // the last layer that reads it in the forward pass
  std::vector<Block> values_, gradients_;
  const float* x_ = nullptr;
  const int* labels_ = nullptr;
  int threads_;
};

}  // namespace sparcl
