#include "device/learn.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

#include "device/losses.h"
#include "device/sha256.h"
#include "engine/arena.h"

namespace sparcl {
namespace {

constexpr long kMostSteps = 1L << 50;
constexpr char kState[] = "the state";

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

// How many classes of the samples the network does not have: they are appended to it.
long appended(ModelFile& model, const Samples& samples, bool inside) {
  std::vector<std::string> fresh;
  for (const std::string& name : samples.classes) {
    bool known = false;
    for (const Json& had : model.classes.list("classes", 0, 1 << 20)) known = known || had.string("a class") == name;
    if (!known) fresh.push_back(name);
  }
  if (fresh.empty() || inside) return 0;
  grow_head(model, fresh);
  return static_cast<long>(fresh.size());
}

// Samples that a fingerprint of data that is read lazily looks at, as torch.linspace(0, count - 1, n, float64).long() has them.
std::vector<size_t> witnesses(size_t count) {
  constexpr size_t kMost = 64;
  const size_t n = std::min(count, kMost);
  const double last = static_cast<double>(count) - 1, step = n > 1 ? last / static_cast<double>(n - 1) : 0;
  std::vector<size_t> found;
  for (size_t i = 0; i < n; ++i)
    found.push_back(static_cast<size_t>(i < n / 2 ? step * static_cast<double>(i) : n > 1 ? last - step * static_cast<double>(n - i - 1) : 0));
  return found;
}

// Whether two fingerprints are of the same samples, held in memory or read lazily (sparcl.learner.saving.same_data).
bool same_data(const std::string& ours, const std::string& theirs) {
  const size_t space = ours.find(' ');
  if (theirs.find(' ') != std::string::npos) return theirs.substr(0, theirs.find(' ')) == ours.substr(0, space);
  return theirs == ours.substr(0, space) || theirs == ours.substr(space + 1);
}

std::vector<long> columns_of(const ModelFile& model, const Samples& samples) {
  std::vector<long> columns;
  const auto& names = model.classes.list("classes", 0, 1 << 20);
  for (const std::string& name : samples.classes) {
    const auto found = std::find_if(names.begin(), names.end(), [&](const Json& had) { return had.text == name; });
    if (found == names.end()) refuse("the file stands inside a task of other samples: give those, or --new-task to leave it where it is");
    columns.push_back(found - names.begin());
  }
  return columns;
}

Random generator(const ModelFile& model, const char* name) {
  const std::string path = std::string("learner/generators/") + name;
  return Random(model.file.at(path), path);
}

std::vector<size_t> nodes_of(const std::vector<SparseLayer>& layers) {
  std::vector<size_t> nodes;
  for (const SparseLayer& layer : layers) nodes.push_back(layer.at);
  return nodes;
}

}  // namespace

bool stands_inside(const ModelFile& model) { return model.state.at("learner", kState).at("position", kState).kind != Json::kNull; }

Learning::Learning(ModelFile& model, const Samples& samples, int threads, bool begin_anew, const Budget& wanted)
    : model_(model), samples_(samples), grown_(appended(model, samples, stands_inside(model) && !begin_anew)), graph_(model, threads),
      transform_(transform_of(model.transform, graph_.input())), sparsifier_(model, graph_), optimizer_(model, graph_), average_(model, graph_),
      ledger_(graph_, nodes_of(sparsifier_.layers())), order_(generator(model, "order")), augment_(generator(model, "augment")),
      remember_(generator(model, "method")) {
  for (const char* others : {"head", "torch"}) generator(model, others);  // refuses what is none, before any work
  read_settings();
  budget_ = wanted.given() ? wanted : budget_of_file_;
  if (!stands_inside(model) || begin_anew) check_count();
  const std::vector<long> columns = columns_of(model, samples);
  std::vector<long> counts(static_cast<size_t>(graph_.classes()), 0);
  own_.assign(counts.size(), false);
  for (long label : samples.labels) {
    const size_t column = static_cast<size_t>(columns[static_cast<size_t>(label)]);
    labels_.push_back(static_cast<long>(column));
    own_[column] = true;
    ++counts[column];
  }
  most_ = static_cast<double>(*std::max_element(counts.begin(), counts.end())) / static_cast<double>(samples.size());
  if (const Json* counted = model.device.find("cost"); counted && counted->kind != Json::kNull) ledger_.load(*counted);
  if (method_.buffer_size) buffer_.load(model, samples, method_.buffer_size, method_.stores_logits(), graph_.classes());
  data_ = fingerprint();
  read_position(begin_anew, wanted);
  graph_.take_over(model);
  mark_ = std::chrono::steady_clock::now();  // what goes before is no training
}

void Learning::read_settings() {
  const Json& settings = model_.state.at("settings", kState);
  batch_ = settings.at("batch_size", "settings").whole("batch_size", 1, 1 << 20);
  replay_batch_ = settings.at("replay_batch_size", "settings").whole("replay_batch_size", 1, 1 << 20);
  drop_last_ = settings.at("drop_last", "settings").truth("drop_last");
  budget_of_file_ = budget_of(settings.at("budget", "settings"));
  const Json& method = model_.device.at("method", "device");
  method_.name = method.at("name", "the method").string("the method");
  if (method_.name != "er" && method_.name != "der" && method_.name != "derpp" && method_.name != "finetune")
    refuse("method " + method_.name.substr(0, 40) + " is not in this program; allowed: finetune, er, der, derpp");
  method_.single_head = method.at("single_head", "the method").truth("single_head");
  if (method_.name != "finetune") method_.buffer_size = method.at("buffer_size", "the method").whole("buffer_size", 1, 1L << 40);
  if (method_.stores_logits()) method_.alpha = method.at("alpha", "the method").number("alpha", 0, 1e30);
  if (method_.name == "derpp") method_.beta = method.at("beta", "the method").number("beta", 0, 1e30);
  const Json& learner = model_.state.at("learner", kState);
  if (learner.find("frozen")) refuse("the file has layers that are not trained; this program trains every layer");
  learned_ = learner.at("learned", kState).whole("learned", 0, 1L << 40);
  steps_ = learner.at("steps", kState).whole("steps", 0, kMostSteps);
}

// As sparcl.learner.saving.fingerprint has it.
std::string Learning::fingerprint() const {
  std::string shape;
  const Extent& e = samples_.extent;
  const bool image = model_.input_shape.items.size() == 3;
  for (long size : image ? std::vector<long>{e.channels, e.height, e.width} : std::vector<long>{e.channels}) shape += ", " + std::to_string(size);
  const std::string head = std::string(samples_.bytes ? "torch.uint8" : "torch.float32") + " [" + std::to_string(samples_.size()) + shape + "] torch.int64";
  Sha256 all, some;
  all.update(head.data(), head.size());
  all.update(samples_.raw.data(), samples_.raw.size());
  some.update((head + "lazy").data(), head.size() + 4);
  for (size_t i : witnesses(samples_.size())) some.update(samples_.raw.data() + i * samples_.stride(), samples_.stride());
  for (Sha256* digest : {&all, &some}) digest->update(labels_.data(), labels_.size() * sizeof(long));
  return all.hex() + " " + some.hex();
}

// As in Python removal is for budgets of epochs, unless the file's own is another and removal was asked for.
bool Learning::removes() const { return budget_.epochs > 0 || (budget_of_file_.epochs == 0 && !sparsifier_.removes_by_epochs()); }

bool Learning::removal_is_off() const { return sparsifier_.removes() && !removes(); }

void Learning::read_position(bool begin_anew, const Budget& wanted) {
  const Json& at = model_.state.at("learner", kState).at("position", kState);
  if (at.kind == Json::kNull) return;
  if (begin_anew) {
    sparsifier_.end_task();
    Position left;
    left.load_pace(at);
    record_pace(left);
    ++learned_;
    return;
  }
  const std::string& data = at.at("data", "the position").string("the position's data");
  if (!same_data(data_, data)) refuse("the file stands inside a task of other samples: give those, or --new-task to leave it where it is");
  position.load(model_, at, static_cast<long>(samples_.size()));
  position.data = data;
  const std::string under_way = position.budget.text();
  if (position.budget.given() && wanted.given() && wanted.text() != under_way)
    refuse("the file stands inside a task of " + under_way + ": give that or no budget to go on, or --new-task to leave it where it is");
  if (position.budget.given()) budget_ = position.budget;
  position.budget = budget_;  // a file of an earlier version does not tell
  if (position.task != learned_) refuse("the position is not inside the next task");
  if (sparsifier_.removes() && sparsifier_.samples() != static_cast<long>(samples_.size())) refuse("DDR knows of another number of samples");
  sparsifier_.set_removes(removes());
}

// PyTorch's own generator is seeded at every task: nothing is drawn of it here, but Python goes on from it (sparcl.seeds.derive).
Random Learning::seeded_for_task() const {
  const std::string named = std::to_string(model_.state.at("settings", kState).at("seed", "settings").whole("seed", 0, 1L << 62)) + "/torch/" + std::to_string(learned_);
  Sha256 digest;
  digest.update(named.data(), named.size());
  return Random::seeded(std::stoull(digest.hex().substr(0, 16), nullptr, 16) >> 1);
}

void Learning::begin_task() {
  put_tensor(model_, "learner/generators/torch", seeded_for_task().state());
  Json& classes = model_.state.at("learner", kState).at("classes", kState);
  Json& of_tasks = classes.at("of_tasks", "the classes");
  of_tasks.list("the tasks' classes", 0, 1 << 20);
  std::vector<Json> columns;
  for (size_t c = 0; c < own_.size(); ++c)
    if (own_[c]) columns.push_back(Json::of(static_cast<long>(c)));
  of_tasks.items.resize(std::min(of_tasks.items.size(), static_cast<size_t>(learned_)));
  of_tasks.items.push_back(Json::of_list(columns));
  sparsifier_.begin_task(learned_, static_cast<long>(samples_.size()), budget_.epochs ? budget_.epochs : 1, removes());
  position = Position();
  position.begun = true;
  position.task = learned_;
  position.data = data_;
  position.budget = budget_;
  const auto& paces = model_.state.at("learner", kState).at("pace", kState).list("the pace", 0, 1 << 20);
  if (budget_of_file_.seconds <= 0 || budget_.seconds != budget_of_file_.seconds || static_cast<long>(paces.size()) <= learned_) return;
  position.replayed = true;
  for (const Json& after : paces[static_cast<size_t>(learned_)].list("a pace", 200, 200)) position.pace.push_back(after.whole("a step of the pace", 1, 1L << 31));
}

void Learning::begin_epoch() {
  std::vector<int64_t> kept;
  for (int64_t id : order_.permutation(static_cast<long>(samples_.size())))
    if (sparsifier_.keeps(id)) kept.push_back(id);
  position.plan(std::move(kept), batch_, drop_last_);
  sparsifier_.begin_epoch(position.epoch, position.planned_steps);
}

void Learning::step() {
  if (!position.begun) begin_task();
  if (!position.ordered) begin_epoch();
  const long removed = sparsifier_.removed();
  if (sparsifier_.begin_step(position.step, position.spent(budget_)))
    position.shorten([&](int64_t id) { return sparsifier_.keeps(id); }, batch_, drop_last_);
  ledger_.removed(sparsifier_.removed() - removed);
  if (const long samples = position.upcoming(drop_last_)) {
    train();
    const auto now = std::chrono::steady_clock::now();
    position.note(budget_, std::chrono::duration<double>(now - mark_).count(), budget_of_file_.seconds > 0);
    mark_ = now;
    position.cursor += samples;
    ++position.step;
    ++steps_;
  }
  if (!position.upcoming(drop_last_)) position.end_epoch(most_);
}

void Learning::end_task() {
  check_finite();
  sparsifier_.end_task();
  record_pace(position);
  ++learned_;
  position = Position();
}

// Under seconds the state has one pace for each task, also for one that was left.
void Learning::record_pace(const Position& over) {
  if (budget_of_file_.seconds <= 0 || over.replayed) return;
  std::vector<Json> pace;
  for (long after : over.pace) pace.push_back(Json::of(after));
  while (pace.size() < 200) pace.push_back(Json::of(over.done));
  model_.state.at("learner", kState).at("pace", kState).items.push_back(Json::of_list(pace));
}

double Learning::density() const {
  double active = 0, all = 0;
  for (const SparseLayer& layer : sparsifier_.layers()) {
    active += static_cast<double>(graph_.states()[layer.at].index.size());
    const auto& w = graph_.nodes()[layer.at].shape.weight;
    all += static_cast<double>(w[0]) * static_cast<double>(layer.per_channel);
  }
  return all > 0 ? active / all : 1;
}

// One sample has no batch statistics (sparcl.learner.alone).
void Learning::check_count() const {
  for (const Node& node : graph_.nodes())
    if (node.op == Node::kNorm && samples_.size() == 1)
      refuse("there is 1 sample to learn: layer " + node.name.substr(0, 80) + " needs 2 or more for its batch statistics");
}

// Such a state is no place to go on from (sparcl.learner.saving.capture).
void Learning::check_finite() const {
  for (size_t at = 0; at < graph_.nodes().size(); ++at) {
    const Graph::State& state = graph_.states()[at];
    for (const auto* values : {&state.weight.value, &state.bias.value, &state.running_mean, &state.running_var})
      if (!std::all_of(values->begin(), values->end(), [](float value) { return std::isfinite(value); }))
        throw std::runtime_error(graph_.nodes()[at].name.substr(0, 80) + " became NaN or infinite by step " + std::to_string(position.done) + kTooFast);
  }
}

void Learning::save(const std::string& path) {
  check_finite();
  trim();  // what is written is not to come on top of a step's memory
  graph_.store(model_);
  optimizer_.store(model_, graph_);
  average_.store(model_, graph_);
  sparsifier_.store(model_);
  buffer_.store(model_, samples_);
  store_state();
  write_model(path, model_);
  graph_.take_over(model_);
}

void Learning::store_state() {
  Json& learner = model_.state.at("learner", kState);
  learner.at("learned", kState) = Json::of(learned_);
  learner.at("steps", kState) = Json::of(steps_);
  learner.at("position", kState) = position.store(model_);
  learner.at("transform", kState) = model_.transform;
  put_tensor(model_, "learner/generators/order", order_.state());
  put_tensor(model_, "learner/generators/augment", augment_.state());
  put_tensor(model_, "learner/generators/method", remember_.state());
  model_.device.set("cost", ledger_.state());
}

}  // namespace sparcl
