// The network of a model file, computed and trained by the engine's functions: nodes are data, the rest walks through them.
//
// Tensors are numbered in the order in which they are made, 0 is the input. Axes as in plan.h: [channels][rows][columns][N].
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "device/model_file.h"
#include "engine/arena.h"
#include "engine/layers.h"

namespace sparcl {

struct Node {
  enum Op { kConvolution, kNorm, kRelu, kFlatten, kGlobalAverage, kAverage, kMaximum, kAdd } op;
  std::string name;
  int input, output, residual = -1;  // tensors; residual is what a norm adds, or an add beside its input
  ConvShape shape{};                 // of a convolution
  bool bias = false, relu = false, linear = false;
  long channels = 0;  // of a norm
  float eps = 0, momentum = 0;
  Window window{};
};
// Throws std::invalid_argument: an unknown node, or one that reads what is not there.
std::vector<Node> nodes_of(const Json& graph);

struct Parameter {
  std::vector<float> value, gradient;
  std::map<std::string, std::vector<float>> slots;  // the optimizer's, one number for each value
};

class Graph {
 public:
  // Throws std::invalid_argument where the file's tensors do not fit its graph.
  Graph(const ModelFile& model, int threads);

  const Extent& input() const { return input_; }  // of one sample
  long classes() const { return classes_; }
  int threads() const { return threads_; }
  long macs() const { return macs_; }  // of one sample, forward
  long positions(size_t at) const;     // of a node's output, of one sample

  // Logits [classes][N] of x [channels][rows][columns][N]. Training: norms use the batch's statistics and move the running ones; what
  // backward() reads is kept. x must live until then.
  const float* forward(const float* x, long batch, bool training);
  // Adds the gradient of every parameter for the last forward(), from that of the logits, [classes][N]. again: another will follow.
  void backward(const float* logits, bool again = false);
  void clear_gradients();

  struct State {
    std::unique_ptr<ConvPlan> plan;
    Parameter weight, bias;  // of a convolution its active weights, of a norm its scale and shift
    std::vector<int32_t> index;
    bool sparse = false;     // whether the file holds values and index of it
    std::vector<uint8_t> chosen;  // of the active weights, whether each is trained; empty: all are
    std::vector<float> mean, rstd, running_mean, running_var;
    int64_t tracked = 0;
  };
  const std::vector<Node>& nodes() const { return nodes_; }
  std::vector<State>& states() { return states_; }
  const std::vector<State>& states() const { return states_; }
  // Makes `index`, ascending, the active weights of a node: those that stay keep value and slots, the others begin at 0; all are chosen.
  void set_index(size_t at, std::vector<int32_t> index);
  void set_chosen(size_t at, std::vector<uint8_t> chosen);
  // Whether the gradients of what is not chosen are computed all the same.
  void compute_frozen(bool on);
  void store(ModelFile& model) const;  // weights, masks and statistics, as they are now
  void take_over(ModelFile& model) const;  // frees the file's own weights and masks, until store() puts them there again

 private:
  void load_convolution(const SafeTensors& file, size_t at);
  void load_norm(const SafeTensors& file, size_t at);
  void make_plan(size_t at);
  void count_macs();
  Extent extent_behind(size_t at, const Extent& in) const;
  void choose_kept();
  void size_for(long batch);
  void run(size_t at, bool training);
  void normalise(size_t at, bool training, float* y);
  void run_back(size_t at, bool again);
  void add_back(size_t at);
  void convolve_back(size_t at, float* weight);
  void normalise_back(size_t at, bool again, float* weight, float* bias);
  Norm norm(size_t at) const;
  Window window(size_t at) const;
  Block room(int tensor) const;
  bool is_plain_norm(int tensor) const;
  const float* value(int tensor) const { return tensor ? values_[static_cast<size_t>(tensor)].get() : x_; }
  Term term(int tensor, std::vector<float>& scales) const;
  Source source(int tensor, std::vector<float> (&scales)[2]) const;
  void settle(int tensor);
  void collect(int tensor, Block part);

  // How long a tensor's values are there. What a norm makes need not be written for those who can make it as they read.
  enum class Kept : uint8_t { kNever, kForward, kBack };
  // Of a tensor; where signs stand it counts only where they are positive: the way back through a ReLU, not yet written.
  struct Gradient {
    Block sum, signs;
  };

  std::vector<Node> nodes_;
  std::vector<State> states_;     // of each node
  std::vector<Extent> extents_;   // of each tensor
  std::vector<size_t> last_use_;  // the last node that reads it in the forward pass
  std::vector<Kept> kept_;        // of each tensor
  std::vector<Block> values_;
  std::vector<Gradient> gradients_;
  std::vector<float> part_;       // gradients of one node's parameters, to be added to those that are there
  std::vector<Block> signs_;      // of each node that is a norm with ReLU and residual: those of its result
  Extent input_;
  long classes_, macs_ = 0;
  const float* x_ = nullptr;
  int threads_;
  bool frozen_computed_ = false;
  bool cleared_ = false;  // whether all gradients of parameters are 0: the way back writes, instead of adding to them
};

}  // namespace sparcl
