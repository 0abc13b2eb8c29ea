// When a sparsifier acts, and what it may spend on ranking (sparcl.sparsity: sparsifier.Moments, collected.Allowance, Collected).
#pragma once
#include <vector>

#include "device/model_file.h"
#include "device/units.h"

namespace sparcl {

constexpr double kByEpochs = -1;  // in the place of a share of the budget: the budget is a number of epochs, which moments count

constexpr double kRounding = 1e-9;  // what binary fractions may be short of a share: 0.29 of 200 parts is 57.999...

// Fixed shares of a task, rounded to steps.
class Moments {
 public:
  // apart: steps between two, at least; none from the share `until` on.
  explicit Moments(std::vector<double> fractions = {}, long apart = 1, double until = 1) : fractions_(std::move(fractions)), apart_(apart), until_(until) {}
  void begin_task(long epochs);
  void begin_epoch(long epoch, long steps);
  long due(long step, double spent);  // how many have come since the last call
  bool near(long step, long window, double spent) const;
  void pass_all() { passed_ = static_cast<long>(fractions_.size()); }  // none comes in this task any more
  bool all_passed() const { return passed_ == static_cast<long>(fractions_.size()); }
  long passed() const { return passed_; }
  Json state() const;
  void load(const Json& state, const std::string& what);

 private:
  long before(double moment, double whole) const;
  bool comes(long step, long ahead, double spent) const;  // one with the step so many ahead, if none does before
  std::vector<double> fractions_;
  long apart_;
  double until_;
  long epochs_ = 1, passed_ = 0, asked_ = 0, last_ = 0, epoch_ = 0, steps_ = 1;
};

using Gradients = std::vector<std::vector<float>>;  // of each prunable layer, at its active weights

// Gradients of L~(D_t) and of L(M) out of training steps, and the share of a task that they may cost.
class Collected {
 public:
  void begin_task();
  void begin_step() { asked_ = asked_window_ = false; }
  void end_step() { ++steps_; }
  void ask(bool window);
  bool asked() const { return asked_; }
  bool wanted() const;
  void add(const Gradients& task, const Gradients& replay, long extra, long samples);
  void close_window() { in_window_ = false; }
  long batches() const { return batches_; }
  Gradients mean(bool of_replay) const;  // throws std::logic_error where no step was read
  void move(size_t layer, const Places& before, const Places& after);
  Json store(ModelFile& model, const std::string& path) const;
  // sizes: active weights of each layer
  void load(const Json& state, const ModelFile& model, const std::string& path, const std::vector<size_t>& sizes);

 private:
  Gradients task_, replay_;
  long batches_ = 0, steps_ = 0, reads_ = 0;
  double spent_ = 0, cost_ = 0;
  bool in_window_ = false, asked_ = false, asked_window_ = false;
};

}  // namespace sparcl
