// An average of the weights and of the norms' running statistics, which answers in their place, as sparcl.learner.average keeps it. That of
// a parameter is a slot of it, and moves with its mask.
#pragma once
#include <vector>

#include "device/graph.h"

namespace sparcl {

class Average {
 public:
  // Puts what the file keeps of it into the graph's slots. Throws std::invalid_argument.
  Average(const ModelFile& model, Graph& graph);
  bool kept() const { return share_ > 0; }
  void take_in(Graph& graph, long step);  // the weights after a step of the task, from 1
  void answer(Graph& graph) const;        // the graph's weights and statistics are their average from now on
  void store(ModelFile& model, const Graph& graph) const;

 private:
  struct Statistics {  // of a norm; empty before the first step
    std::vector<float> mean, var;
  };
  double share_ = 0;  // of the task's steps so far that it spans; 0: none is kept
  std::vector<Statistics> statistics_;  // of each node
};

}  // namespace sparcl
