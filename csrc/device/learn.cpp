#include "device/learn.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "device/losses.h"
#include "device/sha256.h"

namespace sparcl {
namespace {

constexpr long kMostSteps = 1L << 50;
constexpr char kBuffer[] = "learner/method/buffer/";

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

std::string digest_of(const Samples& samples) {
  Sha256 digest;
  digest.update(samples.raw.data(), samples.raw.size());
  digest.update(samples.labels.data(), samples.labels.size() * sizeof(long));
  for (const std::string& name : samples.classes) digest.update(name.c_str(), name.size() + 1);
  return digest.hex();
}

// How many classes of the samples the network does not have: they are appended to it.
long appended(ModelFile& model, const Samples& samples, bool inside) {
  std::vector<std::string> fresh;
  for (const std::string& name : samples.classes) {
    bool known = false;
    for (const Json& had : model.classes.list("classes", 0, 1 << 20)) known = known || had.string("a class") == name;
    if (!known) fresh.push_back(name);
  }
  if (fresh.empty() || inside) return 0;
  const Json& settings = model.state.at("settings", "the state");
  grow_head(model, fresh, static_cast<unsigned long>(settings.at("seed", "the settings").whole("seed", 0, 1L << 62)));
  return static_cast<long>(fresh.size());
}

const Json& device_of(const ModelFile& model) { return model.device; }

bool is_inside(const ModelFile& model) { return device_of(model).at("position", "device").kind != Json::kNull; }

template <class Item>
Tensor made(const char* dtype, std::vector<long> shape, const std::vector<Item>& from) {
  Tensor tensor{dtype, std::move(shape), std::vector<uint8_t>(from.size() * sizeof(Item))};
  if (!from.empty()) std::memcpy(tensor.bytes.data(), from.data(), tensor.bytes.size());
  return tensor;
}

}  // namespace

Learning::Learning(ModelFile& model, const Samples& samples, int threads, bool begin_anew)
    : model_(model), samples_(samples), grown_(appended(model, samples, is_inside(model) && !begin_anew)), graph_(model, threads),
      transform_(transform_of(model.transform, graph_.input())) {
  read_settings();
  map_classes();
  resume(digest_of(samples), begin_anew);
  read_buffer();
}

void Learning::read_settings() {
  const Json& settings = model_.state.at("settings", "the state");
  batch_ = std::min<long>(settings.at("batch_size", "settings").whole("batch_size", 1, 1 << 20), static_cast<long>(samples_.size()));
  replay_batch_ = settings.at("replay_batch_size", "settings").whole("replay_batch_size", 1, 1 << 20);
  const Json& budget = settings.at("budget", "settings");
  if (budget.members.size() != 1) refuse("the file's budget is not one of: epochs, steps, seconds");
  const std::string& kind = budget.members.begin()->first;
  const Json& amount = budget.members.begin()->second;
  if (kind == "epochs") budget_.epochs = amount.whole("epochs", 1, 1L << 40);
  else if (kind == "steps") budget_.steps = amount.whole("steps", 1, kMostSteps);
  else if (kind == "seconds") budget_.seconds = amount.number("seconds", 1e-9, 1e30);
  else refuse("the file's budget is not one of: epochs, steps, seconds");
  seed_ = settings.at("seed", "settings").whole("seed", 0, 1L << 62);
  const Json& optimizer = model_.state.at("optimizer", "the state");
  if (optimizer.at("kind", "the optimizer").string("the optimizer") != "SGD") refuse("this program goes on with SGD alone, the file's optimizer is another");
  const Json& group = optimizer.at("groups", "the optimizer").list("parameter groups", 1, 1)[0];
  rate_ = static_cast<float>(group.at("lr", "the optimizer").number("lr", 0, 1e30));
  decay_ = static_cast<float>(group.at("weight_decay", "the optimizer").number("weight_decay", 0, 1e30));
  if (group.at("momentum", "the optimizer").number("momentum", 0, 1) != 0) refuse("this program goes on with SGD without momentum, the file's has some");
  const Json& method = device_of(model_).at("method", "device");
  method_.name = method.at("name", "the method").string("the method");
  if (method_.name != "er" && method_.name != "der" && method_.name != "derpp" && method_.name != "finetune")
    refuse("method " + method_.name.substr(0, 40) + " is not in this program; allowed: finetune, er, der, derpp");
  method_.single_head = method.at("single_head", "the method").truth("single_head");
  if (method_.name != "finetune") method_.buffer_size = method.at("buffer_size", "the method").whole("buffer_size", 1, 1L << 40);
  if (method_.stores_logits()) method_.alpha = method.at("alpha", "the method").number("alpha", 0, 1e30);
  if (method_.name == "derpp") method_.beta = method.at("beta", "the method").number("beta", 0, 1e30);
  const Json& learner = model_.state.at("learner", "the state");
  learned_ = learner.at("learned", "the state").whole("learned", 0, 1L << 40);
  steps_ = learner.at("steps", "the state").whole("steps", 0, kMostSteps);
}

void Learning::map_classes() {
  const auto& names = model_.classes.list("classes", 0, 1 << 20);
  for (const std::string& name : samples_.classes) {
    const auto found = std::find_if(names.begin(), names.end(), [&](const Json& had) { return had.text == name; });
    if (found == names.end()) refuse("the file stands inside a task of other samples: give those, or --new-task to leave it where it is");
    columns_.push_back(found - names.begin());
  }
}

void Learning::resume(const std::string& digest, bool begin_anew) {
  digest_ = digest;
  const Json& at = device_of(model_).at("position", "device");
  if (at.kind == Json::kNull) return;
  if (begin_anew) {
    ++learned_;
    return;
  }
  if (at.at("data", "the position").string("the position's data") != digest)
    refuse("the file stands inside a task of other samples: give those, or --new-task to leave it where it is");
  position.epoch = at.at("epoch", "the position").whole("epoch", 0, 1L << 40);
  position.step = at.at("step", "the position").whole("step", 0, std::max(0L, steps_an_epoch() - 1));
  position.done = at.at("done", "the position").whole("done", 0, kMostSteps);
  position.seconds = at.at("seconds", "the position").number("seconds", 0, 1e30);
}

void Learning::read_buffer() {
  if (method_.buffer_size == 0) return;
  const Json& state = model_.state.at("learner", "the state").at("method", "the state").at("buffer", "the state");
  buffer_.seen = state.at("seen", "the buffer").whole("seen", 0, 1L << 62);
  buffer_.capacity = method_.buffer_size;
  const long held = std::min(buffer_.seen, buffer_.capacity);
  if (held == 0) return;
  const Tensor &inputs = model_.file.at(std::string(kBuffer) + "inputs"), &labels = model_.file.at(std::string(kBuffer) + "labels");
  if (inputs.dtype != (samples_.bytes ? "U8" : "F32") || inputs.bytes.size() != static_cast<size_t>(held) * samples_.stride())
    refuse("the samples are of another type or shape than those in the buffer");
  buffer_.inputs = inputs.bytes;
  const int64_t* from = labels.int64s("the buffer's labels", held);
  for (long i = 0; i < held; ++i) {
    if (from[i] < 0 || from[i] >= graph_.classes()) refuse("the buffer holds a label that is no class");
    buffer_.labels.push_back(from[i]);
  }
  if (!method_.stores_logits()) return;
  const float* logits = model_.file.at(std::string(kBuffer) + "logits").floats("the buffer's logits", held * graph_.classes());
  buffer_.logits.assign(logits, logits + held * graph_.classes());
}

bool Learning::over(const Budget& budget) const {
  if (budget.seconds > 0) return position.seconds >= budget.seconds;
  return budget.steps > 0 ? position.done >= budget.steps : position.epoch >= budget.epochs;
}

std::mt19937_64 Learning::generator(unsigned purpose) const {
  const auto low = [](long value) { return static_cast<unsigned>(value & 0xffffffff); };
  std::seed_seq seed{low(seed_), low(seed_ >> 32), low(learned_), low(position.epoch), purpose ? low(position.step) : 0u, purpose};
  return std::mt19937_64(seed);
}

const std::vector<size_t>& Learning::order() {
  if (order_of_ == position.epoch) return order_;
  order_.resize(samples_.size());
  std::iota(order_.begin(), order_.end(), size_t{0});
  std::mt19937_64 random = generator(0);
  for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[random() % i]);
  order_of_ = position.epoch;
  return order_;
}

// Different places in the buffer at random; all, where there are fewer.
std::vector<size_t> Learning::draw(std::mt19937_64& random) const {
  std::vector<size_t> places(buffer_.size());
  std::iota(places.begin(), places.end(), size_t{0});
  const size_t count = std::min(places.size(), static_cast<size_t>(replay_batch_));
  for (size_t i = 0; i < count; ++i) std::swap(places[i], places[i + random() % (places.size() - i)]);
  places.resize(count);
  return places;
}

void Learning::add_sample(const uint8_t* raw, std::mt19937_64& random, long n, long N) {
  Place place{0, 0, false};
  const unsigned long offsets = 2ul * static_cast<unsigned long>(transform_.crop_padding) + 1;
  if (transform_.crop_padding) {
    place.row = static_cast<int>(random() % offsets) - transform_.crop_padding;
    place.column = static_cast<int>(random() % offsets) - transform_.crop_padding;
  }
  if (transform_.flip) place.flip = random() & 1;
  put_sample(transform_, samples_.extent, samples_.bytes, raw, place, x_.data(), n, N);
}

// One pass over remembered samples: cross-entropy, or the distance to the logits that were stored.
double Learning::replay(const std::vector<size_t>& picked, bool logits, double weight, std::mt19937_64& random) {
  const long N = static_cast<long>(picked.size()), classes = graph_.classes();
  x_.resize(static_cast<size_t>(samples_.extent.count() * N));
  std::vector<long> labels;
  std::vector<float> target;
  for (long n = 0; n < N; ++n) {
    const size_t at = picked[static_cast<size_t>(n)];
    add_sample(buffer_.inputs.data() + at * samples_.stride(), random, n, N);
    labels.push_back(buffer_.labels[at]);
    if (logits) target.insert(target.end(), buffer_.logits.begin() + static_cast<long>(at) * classes, buffer_.logits.begin() + static_cast<long>(at + 1) * classes);
  }
  const float* answer = graph_.forward(x_.data(), N, true);
  std::vector<float> gradient(static_cast<size_t>(classes * N));
  const double loss = logits ? squared_distance(answer, target, classes, weight, gradient.data())
                             : cross_entropy(answer, labels, classes, weight, {}, 0, gradient.data());
  graph_.backward(gradient.data());
  return loss;
}

void Learning::step() {
  const auto start = std::chrono::steady_clock::now();
  std::mt19937_64 random = generator(1);
  const auto first = order().begin() + position.step * batch_;
  const std::vector<size_t> ids(first, first + batch_);
  const std::vector<size_t> beside = method_.name == "er" ? draw(random) : std::vector<size_t>();
  const long N = batch_ + static_cast<long>(beside.size()), classes = graph_.classes();
  x_.resize(static_cast<size_t>(samples_.extent.count() * N));
  std::vector<long> labels;
  for (size_t id : ids) {
    add_sample(samples_.raw.data() + id * samples_.stride(), random, static_cast<long>(labels.size()), N);
    labels.push_back(columns_[static_cast<size_t>(samples_.labels[id])]);
  }
  for (size_t at : beside) {
    add_sample(buffer_.inputs.data() + at * samples_.stride(), random, static_cast<long>(labels.size()), N);
    labels.push_back(buffer_.labels[at]);
  }
  std::vector<bool> allowed;
  if (method_.single_head) {
    allowed.assign(static_cast<size_t>(classes), false);
    for (long column : columns_) allowed[static_cast<size_t>(column)] = true;
  }
  graph_.clear_gradients();
  const float* answer = graph_.forward(x_.data(), N, true);
  const std::vector<float> logits(answer, answer + classes * N);
  std::vector<float> gradient(logits.size());
  loss = cross_entropy(logits.data(), labels, classes, 1.0, allowed, ids.size(), gradient.data());
  graph_.backward(gradient.data());
  if (method_.stores_logits() && buffer_.size()) loss += replay(draw(random), true, method_.alpha, random);
  if (method_.name == "derpp" && buffer_.size()) loss += replay(draw(random), false, method_.beta, random);
  if (!std::isfinite(loss)) throw std::runtime_error("the loss became NaN or infinite in step " + std::to_string(position.done + 1) + ": lower the learning rate");
  update();
  remember(ids, logits.data(), N, random);
  ++steps_, ++position.done;
  if (++position.step == steps_an_epoch()) ++position.epoch, position.step = 0;
  position.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void Learning::update() {
  for (Graph::State& state : graph_.states())
    for (Parameter* p : {&state.weight, &state.bias})
      for (size_t i = 0; i < p->value.size(); ++i) p->value[i] -= rate_ * (p->gradient[i] + decay_ * p->value[i]);
}

// The task's samples of a step, as stored; logits [classes][N], of which they are the first.
void Learning::remember(const std::vector<size_t>& ids, const float* logits, long N, std::mt19937_64& random) {
  if (buffer_.capacity == 0) return;
  const long classes = graph_.classes();
  const size_t stride = samples_.stride();
  std::uniform_real_distribution<double> uniform(0, 1);
  for (size_t i = 0; i < ids.size(); ++i) {
    const double drawn = uniform(random);
    const bool room = buffer_.seen < buffer_.capacity;
    const long slot = room ? buffer_.seen : static_cast<long>(drawn * static_cast<double>(buffer_.seen + 1));
    ++buffer_.seen;
    if (slot >= buffer_.capacity) continue;
    const size_t at = static_cast<size_t>(slot);
    if (room) {
      buffer_.inputs.resize((at + 1) * stride);
      buffer_.labels.resize(at + 1);
      if (method_.stores_logits()) buffer_.logits.resize((at + 1) * static_cast<size_t>(classes));
    }
    std::memcpy(buffer_.inputs.data() + at * stride, samples_.raw.data() + ids[i] * stride, stride);
    buffer_.labels[at] = columns_[static_cast<size_t>(samples_.labels[ids[i]])];
    for (long c = 0; method_.stores_logits() && c < classes; ++c)
      buffer_.logits[at * static_cast<size_t>(classes) + static_cast<size_t>(c)] = logits[c * N + static_cast<long>(i)];
  }
}

void Learning::end_task() {
  ++learned_;
  position = Position();
}

void Learning::store_buffer() {
  if (buffer_.capacity == 0) return;
  const long held = static_cast<long>(buffer_.size());
  const Extent& e = samples_.extent;
  std::vector<long> shape{held, e.channels};
  if (model_.input_shape.items.size() == 3) shape = {held, e.channels, e.height, e.width};
  Json& state = model_.state.at("learner", "the state").at("method", "the state").at("buffer", "the state");
  state.members = {{"seen", Json::of(buffer_.seen)}};
  if (held == 0) return;
  auto& tensors = model_.file.tensors;
  tensors[std::string(kBuffer) + "inputs"] = {samples_.bytes ? "U8" : "F32", shape, buffer_.inputs};
  tensors[std::string(kBuffer) + "labels"] = made("I64", {held}, buffer_.labels);
  if (method_.stores_logits()) tensors[std::string(kBuffer) + "logits"] = made("F32", {held, graph_.classes()}, buffer_.logits);
  for (const char* name : {"inputs", "labels", "logits"}) {
    if (!tensors.count(std::string(kBuffer) + name)) continue;
    Json place;
    place.kind = Json::kObject;
    place.members = {{"$tensor", Json::of(std::string(kBuffer) + name)}};
    state.members.emplace_back(name, place);
  }
}

void Learning::save(const std::string& path) {
  graph_.store(model_);
  store_buffer();
  Json& learner = model_.state.at("learner", "the state");
  learner.at("learned", "the state") = Json::of(learned_);
  learner.at("steps", "the state") = Json::of(steps_);
  Json at;
  if (position.done > 0) {
    char seconds[32];
    std::snprintf(seconds, sizeof seconds, "%.6f", position.seconds);
    Json spent = Json::of(0L);
    spent.text = seconds;
    at.kind = Json::kObject;
    at.members = {{"data", Json::of(digest_)}, {"done", Json::of(position.done)}, {"epoch", Json::of(position.epoch)},
                  {"seconds", spent}, {"step", Json::of(position.step)}};
  }
  model_.device.at("position", "device") = at;
  write_model(path, model_);
}

}  // namespace sparcl
