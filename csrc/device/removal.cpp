#include "device/removal.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

namespace sparcl {

Removal::Removal() : moments_({0.1, 0.2, 0.3, 0.4}) {}

void Removal::load(const Json& settings, const Json& state, const ModelFile& model, const std::string& path) {
  share_ = settings.at("share", "DDR").number("DDR's share", 0, 1);
  const std::string& score = settings.at("score", "DDR").string("DDR's score");
  if (score != "misclassified" && score != "forgetting") throw std::invalid_argument("DDR's score must be misclassified or forgetting");
  forgetting_ = score == "forgetting";
  const Json* left_out = settings.find("by_epochs");
  by_epochs_ = left_out && left_out->truth("DDR's by_epochs");
  random_ = Random(model.file.at(path + "/generator"), "DDR's generator");
  moments_.load(state.at("moments", "DDR"), "DDR's moments");
  kept_ = model.file.at(path + "/kept").bools("DDR's kept samples");
  const long samples = static_cast<long>(kept_.size()), gone = std::count(kept_.begin(), kept_.end(), 0);
  removed_ = state.at("removed", "DDR").whole("DDR's removed samples", gone, gone);
  if (samples && gone == samples) throw std::invalid_argument("DDR keeps no sample of the task");
  const int32_t* counts = model.file.at(path + "/count").int32s("DDR's counts", samples);
  count_.assign(counts, counts + samples);
  seen_ = model.file.at(path + "/seen").bools("DDR's seen samples", samples);
  was_right_ = model.file.at(path + "/was_right").bools("DDR's last predictions", samples);
}

Json Removal::store(ModelFile& model, const std::string& path) const {
  const std::vector<long> shape{samples()};
  return Json::of_members({{"count", put_tensor(model, path + "/count", tensor_of("I32", shape, count_))},
                           {"generator", put_tensor(model, path + "/generator", random_.state())},
                           {"kept", put_tensor(model, path + "/kept", tensor_of("BOOL", shape, kept_))},
                           {"moments", moments_.state()},
                           {"removed", Json::of(removed_)},
                           {"seen", put_tensor(model, path + "/seen", tensor_of("BOOL", shape, seen_))},
                           {"was_right", put_tensor(model, path + "/was_right", tensor_of("BOOL", shape, was_right_))}});
}

void Removal::begin_task(long samples, long epochs, bool removes) {
  const size_t n = static_cast<size_t>(samples);
  removed_ = 0;
  removes_ = removes;
  kept_.assign(n, 1);
  seen_.assign(n, 0);
  was_right_.assign(n, 0);
  count_.assign(n, 0);
  moments_.begin_task(epochs);
  if (!removes && !by_epochs_) moments_.pass_all();  // Python, which may go on, removes under any budget what was asked for
}

bool Removal::begin_step(long step, double spent) {
  const long before = removed_;
  if (moments_.due(step, spent) && share_ > 0 && removes_) remove();
  return removed_ != before;
}

void Removal::note(const std::vector<int64_t>& ids, const std::vector<uint8_t>& wrong) {
  if (share_ == 0 || !removes_ || moments_.all_passed()) return;
  for (size_t i = 0; i < ids.size(); ++i) {
    const size_t id = static_cast<size_t>(ids[i]);
    count_[id] += forgetting_ ? wrong[i] && was_right_[id] : wrong[i];
    was_right_[id] = !wrong[i];
    seen_[id] = 1;
  }
}

// Those with the lowest score leave; equal ones in a random order. Then all that is known of a sample starts anew.
void Removal::remove() {
  const long samples = this->samples();
  const long total = std::min(std::lrint(share_ * static_cast<double>(samples) * static_cast<double>(moments_.passed()) / 4.0), samples - 2);
  std::vector<size_t> candidates;
  for (size_t id = 0; id < kept_.size(); ++id)
    if (kept_[id] && seen_[id] && (!forgetting_ || was_right_[id] || count_[id] > 0)) candidates.push_back(id);
  std::vector<size_t> shuffled;
  for (int64_t at : random_.permutation(static_cast<long>(candidates.size()))) shuffled.push_back(candidates[static_cast<size_t>(at)]);
  std::stable_sort(shuffled.begin(), shuffled.end(), [&](size_t a, size_t b) { return count_[a] < count_[b]; });
  const long leave = std::min(std::max(total - removed_, 0L), static_cast<long>(shuffled.size()));
  for (long i = 0; i < leave; ++i) kept_[shuffled[static_cast<size_t>(i)]] = 0;
  removed_ += leave;
  std::fill(count_.begin(), count_.end(), 0);
  std::fill(seen_.begin(), seen_.end(), uint8_t{0});
  std::fill(was_right_.begin(), was_right_.end(), uint8_t{0});
}

}  // namespace sparcl
