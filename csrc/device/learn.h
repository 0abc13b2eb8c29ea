// One more task, learned from where a model file stands: ER, DER, DER++ or fine-tuning, plain SGD, masks as they are.
#pragma once
#include <random>
#include <string>
#include <vector>

#include "device/graph.h"
#include "device/samples.h"

namespace sparcl {

struct Method {
  std::string name;
  long buffer_size = 0;
  double alpha = 0, beta = 0;
  bool single_head = false;
  bool stores_logits() const { return name == "der" || name == "derpp"; }
};

// A uniform sample of everything seen (Vitter, 1985), as stored.
struct Buffer {
  long seen = 0, capacity = 0;
  std::vector<uint8_t> inputs;
  std::vector<long> labels;
  std::vector<float> logits;  // [n][classes], or none
  size_t size() const { return labels.size(); }
};

struct Budget {
  long epochs = 0, steps = 0;  // exactly one of the three is above 0
  double seconds = 0;
};

// Where a task stands; every random number of a step follows from the seed and this, so a killed run goes on to the same bits.
struct Position {
  long epoch = 0, step = 0, done = 0;  // done: steps of the task
  double seconds = 0;
};

class Learning {
 public:
  // Appends the classes that the network does not have. Throws std::invalid_argument for what this program cannot go on with.
  Learning(ModelFile& model, const Samples& samples, int threads, bool begin_anew);

  bool over(const Budget& budget) const;
  void step();
  void end_task();
  void save(const std::string& path);  // the whole state; throws std::runtime_error

  Position position;
  double loss = 0;
  long steps_an_epoch() const { return static_cast<long>(samples_.size()) / batch_; }
  const Budget& budget_of_file() const { return budget_; }
  long grown() const { return grown_; }
  const std::string& method() const { return method_.name; }

 private:
  void read_settings();
  void read_buffer();
  void resume(const std::string& digest, bool begin_anew);
  void map_classes();
  std::mt19937_64 generator(unsigned purpose) const;
  const std::vector<size_t>& order();
  std::vector<size_t> draw(std::mt19937_64& random) const;
  void add_sample(const uint8_t* raw, std::mt19937_64& random, long n, long N);
  double replay(const std::vector<size_t>& picked, bool logits, double weight, std::mt19937_64& random);
  void remember(const std::vector<size_t>& ids, const float* logits, long N, std::mt19937_64& random);
  void update();
  void store_buffer();

  ModelFile& model_;
  const Samples& samples_;
  std::vector<long> columns_;  // of the logits, for each class of the samples
  long grown_;
  Graph graph_;
  Transform transform_;
  Method method_;
  Buffer buffer_;
  Budget budget_;
  long batch_ = 0, replay_batch_ = 0, learned_ = 0, steps_ = 0, seed_ = 0;
  float rate_ = 0, decay_ = 0;
  std::string digest_;
  std::vector<size_t> order_;
  long order_of_ = -1;
  std::vector<float> x_;
};

// Appends rows for new classes to the layer that makes the logits, drawn as PyTorch draws them; and zeros to remembered logits.
void grow_head(ModelFile& model, const std::vector<std::string>& names, unsigned long seed);

}  // namespace sparcl
