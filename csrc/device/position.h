// Where a task stands and how long it is trained (sparcl.learner: position, budget): Python goes on from one as from its own.
#pragma once
#include <string>
#include <vector>

#include "device/model_file.h"

namespace sparcl {

constexpr double kMostSeconds = 1e9;  // of a budget, as in Python, which could not load a file with more

struct Budget {
  long epochs = 0, steps = 0;  // of the three one is above 0
  double seconds = 0;
  bool given() const { return epochs || steps || seconds > 0; }
  std::string text() const;  // as the option that asks for it
  Json state() const;
};
Budget budget_of(const Json& said);  // of the settings or the position; throws std::invalid_argument

struct Position {
  bool begun = false;  // whether the task has
  long task = 0, epoch = 0, step = 0, cursor = 0, batch = 0, planned_steps = 0, done = 0;
  bool ordered = false;        // whether the epoch has
  std::vector<int64_t> order;  // its samples
  double seconds = 0;
  std::vector<long> pace;  // after how many steps each two-hundredth of a budget of seconds was spent
  bool replayed = false;   // whether the pace is that of an earlier run
  long right = 0;          // of this epoch's samples so far, predicted rightly among the task's classes
  double accuracy = 0;     // of the last whole epoch, so counted
  bool learned = false;    // whether an epoch was better than guessing
  std::string data;        // fingerprint of the task's samples
  Budget budget;           // that the task was begun with

  void plan(std::vector<int64_t> ids, long batch_size, bool drop_last);
  long upcoming(bool drop_last) const;  // samples of the next step
  // Goes on with those of the rest that are still kept.
  template <class Keeps>
  void shorten(Keeps keeps, long batch_size, bool drop_last) {
    std::vector<int64_t> left(order.begin(), order.begin() + cursor);
    for (size_t i = static_cast<size_t>(cursor); i < order.size(); ++i)
      if (keeps(order[i])) left.push_back(order[i]);
    order = left;
    if (cursor == 0) plan(left, batch_size, drop_last);
  }
  void end_epoch(double most);  // most: share of the most frequent class

  bool over(const Budget& budget) const;
  double spent(const Budget& budget) const;  // as a sparsifier is told it
  // A step was made. paced: the file's budget is seconds, so that it says what a task came to, whatever it is trained for here. Throws
  // std::invalid_argument where a budget of seconds is too little for the first step alone, as in Python.
  void note(const Budget& budget, double seconds_of_step, bool paced);

  Json store(ModelFile& model) const;
  void load(const ModelFile& model, const Json& state, long samples);  // throws std::invalid_argument
  void load_pace(const Json& state);                                    // of it only what became of the budget; throws the same
};

}  // namespace sparcl
