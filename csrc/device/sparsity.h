// What a file's sparsifier does while the network learns: TDM moves masks, DGM chooses which gradients move, DDR removes samples, the
// three together are SparCL. Formulas, moments and draws are those of sparcl.sparsity (tdm, dgm, collected, sparcl), ranking by the
// gradients of training steps.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "device/graph.h"
#include "device/random.h"
#include "device/removal.h"
#include "device/schedule.h"
#include "device/units.h"

namespace sparcl {

struct SparseLayer {
  size_t at;  // its node
  std::string name;
  long per_channel, units, target;  // target: active units; 0: the mask never moves
  bool scaled;                      // no norm follows: its gradients are scaled by 1 / density
};

class Sparsifier {
 public:
  // Throws std::invalid_argument: one that is not in this program, or a state that does not fit.
  Sparsifier(const ModelFile& model, Graph& graph);
  void store(ModelFile& model) const;

  void begin_task(long index, long samples, long epochs, bool removes);
  void set_removes(bool removes) { removal_.set_removes(removes); }
  bool keeps(int64_t id) const { return !removes_ || removal_.keeps(id); }
  void begin_epoch(long epoch, long steps);
  bool begin_step(long step, double spent);  // whether samples left the task; spent: see Moments
  bool wants_gradients();
  void take_gradients(const Gradients& task, const Gradients& replay, long extra, long samples);
  void after_forward(const std::vector<int64_t>& ids, const std::vector<uint8_t>& wrong);
  void after_backward();  // the optimizer moves next
  void end_step() { collected_.end_step(); }
  void end_task();

  const std::vector<SparseLayer>& layers() const { return layers_; }
  Gradients gradients() const;  // as they are in the graph now
  long removed() const { return removal_.removed(); }
  bool removes() const { return removes_; }
  bool removes_by_epochs() const { return removal_.by_epochs(); }
  long samples() const { return removal_.samples(); }
  const std::string& name() const { return name_; }

 private:
  struct Weights {  // TDM
    double sparsity = 0, p_intra = 0, p_inter = 0;
    float alpha = 0, beta = 0;
    long batches = 1;
    Moments moments;
    Random random;
  };
  struct Choice {  // DGM
    double frozen = 0;
    long interval = 1, iteration = 0;
    float alpha = 0, beta = 0;
    bool owed = true, ready = false;
  };
  void read_layers(const Json& settings);
  void read_tdm(const Json& settings, const Json& state, const ModelFile& model);
  void read_dgm(const Json& settings, const Json& state);
  std::string path_of(const char* part) const;
  const Json& state_of(const Json& state, const char* part) const;
  Places active(const SparseLayer& layer) const;
  void set_units(const SparseLayer& layer, const Places& units);
  Places draw_unused(const SparseLayer& layer, const Places& taken, long count, const Places& barred);
  long moved(const SparseLayer& layer, double share) const;
  std::vector<uint8_t> leaving(size_t layer, const std::vector<float>& score, const Places& units, long keep) const;
  Gradients importance() const;
  void update();
  void begin_step_of_tdm(long step, double spent);
  void begin_step_of_dgm();
  bool stale() const;
  long resting(long units) const;
  void choose();

  Graph& graph_;
  std::string name_;
  Pattern pattern_;
  std::vector<SparseLayer> layers_;
  std::optional<Weights> tdm_;
  std::optional<Choice> dgm_;
  bool removes_ = false;  // whether there is DDR
  Removal removal_;
  Collected collected_;
};

}  // namespace sparcl
