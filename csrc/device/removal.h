// DDR, dynamic data removal (sparcl.sparsity.ddr): samples that are learned already leave the task.
#pragma once
#include <vector>

#include "device/random.h"
#include "device/schedule.h"

namespace sparcl {

class Removal {
 public:
  Removal();
  // From the settings and the state in a file. Throws std::invalid_argument.
  void load(const Json& settings, const Json& state, const ModelFile& model, const std::string& path);
  Json store(ModelFile& model, const std::string& path) const;

  void begin_task(long samples, long epochs, bool removes);
  void begin_epoch(long epoch, long steps) { moments_.begin_epoch(epoch, steps); }
  // Returns whether samples left.
  bool begin_step(long step, double spent);
  bool keeps(int64_t id) const { return kept_[static_cast<size_t>(id)] != 0; }
  void note(const std::vector<int64_t>& ids, const std::vector<uint8_t>& wrong);
  long removed() const { return removed_; }
  long samples() const { return static_cast<long>(kept_.size()); }
  bool by_epochs() const { return by_epochs_; }  // nobody asked for it: not under steps or seconds
  void set_removes(bool removes) { removes_ = removes; }

 private:
  void remove();
  Random random_;
  Moments moments_;
  double share_ = 0;
  bool forgetting_ = false, removes_ = true, by_epochs_ = false;
  long removed_ = 0;
  std::vector<uint8_t> kept_, seen_, was_right_;
  std::vector<int32_t> count_;
};

}  // namespace sparcl
