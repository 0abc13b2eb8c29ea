// One more task, learned from where a model file stands, as sparcl.learner.Training learns it: fine-tuning, ER, DER or DER++, under the
// file's sparsifier. Every random number is drawn from the generators in the file, in Python's order.
#pragma once
#include <chrono>
#include <string>
#include <vector>

#include "device/average.h"
#include "device/buffer.h"
#include "device/graph.h"
#include "device/ledger.h"
#include "device/optimizer.h"
#include "device/position.h"
#include "device/random.h"
#include "device/samples.h"
#include "device/sparsity.h"

namespace sparcl {

struct Method {
  std::string name;
  long buffer_size = 0;
  double alpha = 0, beta = 0;
  bool single_head = false;
  bool stores_logits() const { return name == "der" || name == "derpp"; }
};

bool stands_inside(const ModelFile& model);  // inside a task

constexpr char kTooFast[] = ": the learning rate in the file is too high; what was saved last is kept";

class Learning {
 public:
  // Appends the classes that the network does not have. wanted: instead of the file's budget, where given. Throws std::invalid_argument
  // for what this program cannot go on with.
  Learning(ModelFile& model, const Samples& samples, int threads, bool begin_anew, const Budget& wanted);

  bool over() const { return position.over(budget_); }
  void step();  // one, unless no batch of the epoch is left
  void end_task();
  void save(const std::string& path);  // the whole state; throws std::runtime_error, also for weights that are no numbers

  Position position;
  double loss = 0;
  long grown() const { return grown_; }
  const std::string& method() const { return method_.name; }
  const Sparsifier& sparsifier() const { return sparsifier_; }
  const Ledger& ledger() const { return ledger_; }
  double density() const;       // of the prunable weights that are active
  bool removal_is_off() const;  // though the file's sparsifier removes samples

 private:
  void read_settings();
  void read_position(bool begin_anew, const Budget& wanted);
  void begin_task();
  void record_pace(const Position& over);
  Random seeded_for_task() const;
  bool removes() const;
  std::string fingerprint() const;
  void begin_epoch();
  void train();
  void add_samples(const std::vector<const uint8_t*>& raw, long first, long N);
  void spread_out(const std::vector<int64_t>& ids, const std::vector<size_t>& beside);
  void watch(const std::vector<int64_t>& ids, const float* logits, long N);
  void read_task(const std::vector<float>& logits, long of_task, long N);
  void backward(const std::vector<float>& gradient, long of_task, long N, bool ranks);
  double replay(bool logits, double weight);
  void replays(bool ranks);
  void check_count() const;
  void check_finite() const;
  void store_state();

  ModelFile& model_;
  const Samples& samples_;
  long grown_;
  Graph graph_;
  Transform transform_;
  Sparsifier sparsifier_;
  Optimizer optimizer_;
  Average average_;
  Ledger ledger_;
  Method method_;
  Buffer buffer_;
  Budget budget_, budget_of_file_;
  Random order_, augment_, remember_;
  long batch_ = 0, replay_batch_ = 0, learned_ = 0, steps_ = 0;
  bool drop_last_ = false;
  std::chrono::steady_clock::time_point mark_;  // until when time is counted, saves included, as in Python
  double most_ = 0;           // share of the samples that the most frequent class has
  std::vector<long> labels_;  // columns of the logits, of the samples
  std::vector<bool> own_;     // of the columns, whether they are the task's
  std::string data_;
  std::vector<float> x_;
  std::vector<long> batch_labels_;
  Gradients of_task_, of_replay_;  // of the step that is ranked by
  long passed_ = 0;                // samples that pass forward and back in a step
  long extra_ = 0, repeated_ = 0;  // those that go back once more: for the task's gradient, and as a whole
};

// Appends rows for new classes to the layer that makes the logits, drawn as Python draws them; and NaN to remembered logits.
void grow_head(ModelFile& model, const std::vector<std::string>& names);

}  // namespace sparcl
