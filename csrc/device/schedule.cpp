#include "device/schedule.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace sparcl {
namespace {

constexpr double kMostShare = 0.02, kBackward = 2.0 / 3.0;
constexpr long kMost = 1L << 50;

}  // namespace

void Moments::begin_task(long epochs) {
  epochs_ = epochs;
  passed_ = asked_ = last_ = 0;
  begin_epoch(0, 1);
}

void Moments::begin_epoch(long epoch, long steps) {
  epoch_ = epoch;
  steps_ = std::max(steps, 1L);
}

long Moments::before(double moment, double whole) const {
  return std::count_if(fractions_.begin(), fractions_.end(), [&](double share) { return share * whole < moment + kRounding; });
}

long Moments::due(long step, double spent) {
  ++asked_;
  if (epoch_ == 0 && step == 0) return 0;
  const bool by_epochs = spent == kByEpochs;
  const double now = by_epochs ? static_cast<double>(epoch_) + (static_cast<double>(step) + 0.5) / static_cast<double>(steps_) : spent;
  const double whole = by_epochs ? static_cast<double>(epochs_) : 1.0;
  const long passed = before(now, whole), due = passed - passed_;
  if (due <= 0 || asked_ - last_ < apart_ || now >= until_ * whole) return 0;
  passed_ = passed;
  last_ = asked_;
  return due;
}

bool Moments::near(long step, long window, double spent) const {
  for (long ahead = 1; ahead <= window; ++ahead)
    if (comes(step, ahead, spent)) return true;
  return false;
}

bool Moments::comes(long step, long ahead, double spent) const {
  const bool by_epochs = spent == kByEpochs;
  const double whole = by_epochs ? static_cast<double>(epochs_) : 1.0;
  const double then = by_epochs ? static_cast<double>(epoch_) + (static_cast<double>(step + ahead) + 0.5) / static_cast<double>(steps_)
                                : spent * (1 + static_cast<double>(ahead) / (static_cast<double>(asked_) - 0.5));
  if (asked_ + ahead - last_ < apart_ || then >= until_ * whole) return false;
  return before(then, whole) > passed_;
}

Json Moments::state() const {
  return Json::of_members({{"asked", Json::of(asked_)}, {"epoch", Json::of(epoch_)}, {"epochs", Json::of(epochs_)}, {"last", Json::of(last_)}, {"passed", Json::of(passed_)},
                           {"steps", Json::of(steps_)}});
}

void Moments::load(const Json& state, const std::string& what) {
  epochs_ = state.at("epochs", what).whole(what + ": epochs", 1, kMost);
  steps_ = state.at("steps", what).whole(what + ": steps", 1, kMost);
  passed_ = state.at("passed", what).whole(what + ": passed", 0, static_cast<long>(fractions_.size()));
  epoch_ = state.at("epoch", what).whole(what + ": epoch", 0, kMost);
  asked_ = state.at("asked", what).whole(what + ": asked", 0, kMost);
  last_ = state.at("last", what).whole(what + ": last", 0, asked_);
}

void Collected::begin_task() {
  steps_ = reads_ = batches_ = 0;
  spent_ = 0;
  in_window_ = asked_ = asked_window_ = false;
  task_.clear();
  replay_.clear();
}

void Collected::ask(bool window) {
  asked_ = true;
  asked_window_ = asked_window_ || window;
}

bool Collected::wanted() const { return asked_ && (reads_ == 0 || spent_ + cost_ <= kMostShare * static_cast<double>(steps_ + 1)); }

void Collected::add(const Gradients& task, const Gradients& replay, long extra, long samples) {
  cost_ = kBackward * static_cast<double>(extra) / static_cast<double>(std::max(samples, 1L));
  spent_ += cost_;
  ++reads_;
  if (asked_window_ && in_window_) {
    const auto plus = [](Gradients& sums, const Gradients& more) {
      for (size_t layer = 0; layer < sums.size(); ++layer)
        for (size_t i = 0; i < sums[layer].size(); ++i) sums[layer][i] += more[layer][i];
    };
    plus(task_, task);
    plus(replay_, replay);
    ++batches_;
  } else {
    task_ = task;
    replay_ = replay;
    batches_ = 1;
  }
  in_window_ = asked_window_;
}

Gradients Collected::mean(bool of_replay) const {
  if (!batches_) throw std::logic_error("nothing to rank by");
  Gradients means = of_replay ? replay_ : task_;
  for (auto& layer : means)
    for (float& g : layer) g /= static_cast<float>(batches_);
  return means;
}

void Collected::move(size_t layer, const Places& before, const Places& after) {
  if (!batches_) return;
  for (Gradients* sums : {&task_, &replay_}) {
    const std::vector<float> old = (*sums)[layer];
    double size = 0;
    for (float g : old) size += std::fabs(static_cast<double>(g));
    std::vector<float> fresh(after.size(), old.empty() ? 0.0f : static_cast<float>(size / static_cast<double>(old.size())));
    size_t at = 0;
    for (size_t i = 0; i < after.size(); ++i) {
      while (at < before.size() && before[at] < after[i]) ++at;
      if (at < before.size() && before[at] == after[i]) fresh[i] = old[at];
    }
    (*sums)[layer] = fresh;
  }
}

Json Collected::store(ModelFile& model, const std::string& path) const {
  const auto put = [&](const char* name, const Gradients& sums) {
    Json all = Json::of_members({});
    for (size_t layer = 0; layer < sums.size(); ++layer) {
      const std::string number = std::to_string(layer);
      all.set(number, put_tensor(model, path + "/" + name + "/" + number, tensor_of("F32", {static_cast<long>(sums[layer].size())}, sums[layer])));
    }
    return all;
  };
  const Json budget = Json::of_members({{"cost", Json::of_real(cost_)}, {"reads", Json::of(reads_)}, {"spent", Json::of_real(spent_)}, {"steps", Json::of(steps_)}});
  return Json::of_members({{"batches", Json::of(batches_)}, {"budget", budget}, {"in_window", Json::of_truth(in_window_)}, {"replay", put("replay", replay_)},
                           {"task", put("task", task_)}});
}

void Collected::load(const Json& state, const ModelFile& model, const std::string& path, const std::vector<size_t>& sizes) {
  const std::string what = "the gradients for ranking";
  begin_task();
  const Json& budget = state.at("budget", what);
  steps_ = budget.at("steps", what).whole(what + ": steps", 0, kMost);
  reads_ = budget.at("reads", what).whole(what + ": reads", 0, kMost);
  spent_ = budget.at("spent", what).number(what + ": spent", 0, 1e300);
  cost_ = budget.at("cost", what).number(what + ": cost", 0, 1e300);
  batches_ = state.at("batches", what).whole(what + ": batches", 0, kMost);
  in_window_ = state.at("in_window", what).truth(what + ": in_window");
  for (size_t layer = 0; batches_ && layer < sizes.size(); ++layer) {
    const auto read = [&](const std::string& name) {
      const float* from = model.file.at(name).floats(name, static_cast<long>(sizes[layer]));
      return std::vector<float>(from, from + sizes[layer]);
    };
    task_.push_back(read(path + "/task/" + std::to_string(layer)));
    replay_.push_back(read(path + "/replay/" + std::to_string(layer)));
  }
}

}  // namespace sparcl
