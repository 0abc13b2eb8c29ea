#include "device/position.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>

#include "device/schedule.h"

namespace sparcl {
namespace {

constexpr long kUnits = 200, kMost = (1L << 31) - 1;
constexpr double kCertainty = 4;
constexpr double kMostOfOneStep = 2;  // budgets of seconds that a task's first step may take, as in Python
constexpr char kPath[] = "learner/position/order", kWhat[] = "the position";

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

std::string too_little(const Budget& budget, double seconds_of_step) {
  char step[64];
  std::snprintf(step, sizeof step, seconds_of_step < 1 ? "one step takes %.3g s; use %.1g or more" : "one step takes %.1f s; use %.0f or more", seconds_of_step,
                seconds_of_step);
  return budget.text() + " is too little: " + step;
}

}  // namespace

std::string Budget::text() const {
  const Json amount = epochs ? Json::of(epochs) : steps ? Json::of(steps) : Json::of_real(seconds);
  return (epochs ? "--epochs " : steps ? "--steps " : "--max-seconds ") + to_text(amount);
}

Json Budget::state() const {
  if (epochs) return Json::of_members({{"epochs", Json::of(epochs)}});
  return Json::of_members({steps ? std::make_pair(std::string("steps"), Json::of(steps)) : std::make_pair(std::string("seconds"), Json::of_real(seconds))});
}

Budget budget_of(const Json& said) {
  Budget budget;
  const char* const allowed = "the file's budget is not one of: epochs, steps, seconds";
  if (said.members.size() != 1) refuse(allowed);
  const std::string& kind = said.members.begin()->first;
  const Json& amount = said.members.begin()->second;
  if (kind == "epochs") budget.epochs = amount.whole("epochs", 1, kMost);
  else if (kind == "steps") budget.steps = amount.whole("steps", 1, kMost);
  else if (kind == "seconds") budget.seconds = amount.number("seconds", 1e-9, kMostSeconds);
  else refuse(allowed);
  return budget;
}

void Position::plan(std::vector<int64_t> ids, long batch_size, bool drop_last) {
  order = std::move(ids);
  ordered = true;
  const long samples = static_cast<long>(order.size());
  batch = std::min(batch_size, samples);
  const long rest = batch ? samples % batch : 0;
  planned_steps = batch ? samples / batch + (!drop_last && rest >= 2) : 0;
}

long Position::upcoming(bool drop_last) const {
  const long left = static_cast<long>(order.size()) - cursor;
  if (left >= batch) return left ? batch : 0;
  return drop_last || left < 2 ? 0 : left;  // one sample has no batch statistics
}

void Position::end_epoch(double most) {
  if (cursor) {
    const double n = static_cast<double>(cursor), needed = most + kCertainty * std::sqrt(most * (1 - most) / n);
    if (needed >= 1.0 || static_cast<double>(right) > needed * n) learned = true;
    accuracy = static_cast<double>(right) / n;
  }
  right = step = cursor = 0;
  ++epoch;
  ordered = false;
  order.clear();
}

bool Position::over(const Budget& budget) const {
  if (budget.epochs) return epoch >= budget.epochs;
  if (budget.steps) return done >= budget.steps;
  return done > 0 && static_cast<long>(pace.size()) == kUnits && done >= pace.back();
}

double Position::spent(const Budget& budget) const {
  if (budget.epochs) return kByEpochs;
  if (budget.steps) return (static_cast<double>(done) + 0.5) / static_cast<double>(budget.steps);
  return static_cast<double>(std::upper_bound(pace.begin(), pace.end(), done) - pace.begin()) / static_cast<double>(kUnits);
}

void Position::note(const Budget& budget, double seconds_of_step, bool paced) {
  ++done;
  seconds += seconds_of_step;
  if (budget.seconds > 0 && !replayed && done == 1 && seconds_of_step > kMostOfOneStep * budget.seconds) refuse(too_little(budget, seconds_of_step));
  if (replayed || (!paced && budget.seconds <= 0)) return;
  double share = budget.seconds > 0 ? seconds / budget.seconds : static_cast<double>(done) / static_cast<double>(std::max(budget.steps, 1L));
  if (budget.epochs) share = (static_cast<double>(epoch) + static_cast<double>(step + 1) / static_cast<double>(std::max(planned_steps, 1L))) / static_cast<double>(budget.epochs);
  const long units = static_cast<long>(std::min(share, 1.0) * static_cast<double>(kUnits) + kRounding);
  while (static_cast<long>(pace.size()) < units) pace.push_back(done);
}

Json Position::store(ModelFile& model) const {
  drop_tensors(model, kPath);
  if (!begun) return Json();
  std::vector<Json> steps;
  for (long after : pace) steps.push_back(Json::of(after));
  const Json there = ordered ? put_tensor(model, kPath, tensor_of("I64", {static_cast<long>(order.size())}, order)) : Json();
  return Json::of_members({{"accuracy", Json::of_real(accuracy)}, {"batch", Json::of(batch)}, {"budget", budget.state()}, {"cursor", Json::of(cursor)}, {"data", Json::of(data)},
                           {"done", Json::of(done)}, {"epoch", Json::of(epoch)}, {"learned", Json::of_truth(learned)}, {"order", there},
                           {"pace", Json::of_list(steps)}, {"planned_steps", Json::of(planned_steps)}, {"replayed", Json::of_truth(replayed)},
                           {"right", Json::of(right)}, {"seconds", Json::of_real(seconds)}, {"step", Json::of(step)}, {"task", Json::of(task)}});
}

void Position::load_pace(const Json& state) {
  done = state.at("done", kWhat).whole("the position: done", 0, kMost);
  replayed = state.at("replayed", kWhat).truth("the position: replayed");
  for (const Json& after : state.at("pace", kWhat).list("the position: pace", 0, static_cast<size_t>(kUnits))) pace.push_back(after.whole("a step of the pace", pace.empty() ? 1 : pace.back(), kMost));
}

void Position::load(const ModelFile& model, const Json& state, long samples) {
  const auto whole = [&](const char* name, long most) { return state.at(name, kWhat).whole(std::string(kWhat) + ": " + name, 0, most); };
  begun = true;
  task = whole("task", 1L << 40);
  epoch = whole("epoch", kMost);
  step = whole("step", kMost);
  load_pace(state);
  right = whole("right", samples);
  planned_steps = whole("planned_steps", samples);
  learned = state.at("learned", kWhat).truth("the position: learned");
  accuracy = state.at("accuracy", kWhat).number("the position: accuracy", 0, 1);
  if (const Json* said = state.find("budget"); said && said->kind != Json::kNull) budget = budget_of(*said);
  seconds = state.at("seconds", kWhat).number("the position: seconds", 0, 1e30);
  ordered = state.at("order", kWhat).kind != Json::kNull;
  batch = whole("batch", samples);
  if (!ordered) return;
  const Tensor& from = model.file.at(kPath);
  if (from.shape.size() != 1 || from.count() > samples) refuse("the position: order must be a list of at most " + std::to_string(samples) + " samples");
  const int64_t* ids = from.int64s("the position: order");
  order.assign(ids, ids + from.count());
  for (int64_t id : order)
    if (id < 0 || id >= samples) refuse("the position: order names a sample that is not there");
  if (batch < 1) refuse("the position: batch must be 1 or more");
  cursor = whole("cursor", static_cast<long>(order.size()));
}

}  // namespace sparcl
