// The FLOPs that training executes, as sparcl.cost.flops.Ledger counts them: 2 for each multiply-add of a weight at an output position
// and sample, whatever the masks are at the time.
#pragma once
#include <string>
#include <vector>

#include "device/graph.h"

namespace sparcl {

class Ledger {
 public:
  // layers: the nodes of the prunable layers.
  Ledger(const Graph& graph, const std::vector<size_t>& layers);
  void load(const Json& state);
  Json state() const;

  // A training step: `samples` pass forward and back, `of_task` of them the task's.
  void step(const Graph& graph, long samples, long of_task);
  // Of it, what ranking cost: `extra` samples passed back once more for the prunable layers, `repeated` for all, and all weight
  // gradients of `samples` were computed.
  void ranked(const Graph& graph, long extra, long repeated, long samples);
  void removed(long samples) { removed_ += samples; }

  long forward() const { return forward_; }
  long backward() const { return backward_; }
  long ranking() const { return ranking_; }
  long executed() const { return forward_ + backward_ + ranking_; }

 private:
  struct Call {  // of a convolution or linear layer
    size_t at;
    long positions;
    bool passes_on, ranked, ranks_below;  // see sparcl.cost.flops.Call
  };
  struct Costs {
    long forward = 0, backward = 0, importance = 0, frozen = 0;
  };
  Costs costs(const Graph& graph) const;

  std::vector<Call> calls_;
  long forward_ = 0, backward_ = 0, ranking_ = 0, seen_ = 0, removed_ = 0;
};

}  // namespace sparcl
