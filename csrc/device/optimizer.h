// The optimizers of a file that this program goes on with: SGD (momentum and Nesterov too), Adam and AdamW, as torch.optim computes them.
// Weights that are not chosen do not move, nor does what the optimizer keeps of them.
#pragma once
#include <string>
#include <vector>

#include "device/graph.h"

namespace sparcl {

class Optimizer {
 public:
  // Puts the file's state into the graph's slots. Throws std::invalid_argument for what this program cannot go on with.
  Optimizer(const ModelFile& model, Graph& graph);
  void step(Graph& graph);
  void store(ModelFile& model, const Graph& graph) const;

 private:
  struct Held {  // a parameter
    size_t at;
    bool bias;
    std::string name;
    double steps = 0;  // of Adam
    bool begun = false;
  };
  Parameter& parameter(Graph& graph, const Held& held) const;
  std::vector<std::string> slots() const;
  void read_state(const ModelFile& model, Graph& graph, Held& held) const;
  void move_sgd(Parameter& p, const std::vector<uint8_t>& chosen, bool first, int threads) const;
  void move_adam(Parameter& p, const std::vector<uint8_t>& chosen, double steps, int threads) const;

  enum Kind { kSgd, kAdam, kAdamW } kind_ = kSgd;
  double rate_ = 0, decay_ = 0, momentum_ = 0, dampening_ = 0, beta1_ = 0, beta2_ = 0, eps_ = 0;
  bool nesterov_ = false;
  std::vector<Held> held_;
};

}  // namespace sparcl
