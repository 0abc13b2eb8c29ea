#include "device/sparsity.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace sparcl {
namespace {

constexpr char kState[] = "learner/sparsifier";
constexpr double kMostMoved = 0.2;
constexpr long kStepsApart = 10;  // between two mask updates
constexpr long kMost = 1L << 50;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

bool is_there(const Json& settings, const char* part) {
  const Json* found = settings.find(part);
  return found && found->kind != Json::kNull;
}

// alpha * |g| + beta * |m|, rounded as PyTorch does it: no multiply-add is fused (CMakeLists.txt).
std::vector<float> continual(const std::vector<float>& g, const std::vector<float>& m, float alpha, float beta) {
  std::vector<float> score(g.size());
  for (size_t i = 0; i < g.size(); ++i) {
    const float of_task = alpha * std::fabs(g[i]), of_replay = beta * std::fabs(m[i]);
    score[i] = of_task + of_replay;
  }
  return score;
}

}  // namespace

Sparsifier::Sparsifier(const ModelFile& model, Graph& graph) : graph_(graph) {
  const Json& settings = model.device.at("sparsifier", "device (of an earlier version: export it again)");
  name_ = settings.at("name", "the sparsifier").string("the sparsifier");
  static const char* const kKnown[] = {"dense", "static", "tdm", "dgm", "ddr", "sparcl"};
  if (std::none_of(std::begin(kKnown), std::end(kKnown), [&](const char* known) { return name_ == known; }))
    refuse("sparsifier " + name_.substr(0, 40) + " is not in this program; allowed: dense, static, tdm, dgm, ddr, sparcl");
  if (is_there(settings, "ranking") && settings.at("ranking", "the sparsifier").string("ranking") != "step")
    refuse("the file's sparsifier ranks by fresh batches, this program by training steps: make it with ranking='step'");
  pattern_.block = settings.at("block", "the sparsifier").whole("block", 1, 1 << 20);
  read_layers(settings);
  const Json& state = model.state.at("learner", "the state").at("sparsifier", "the state");
  if (is_there(settings, "tdm")) read_tdm(settings.at("tdm", "the sparsifier"), state_of(state, "tdm"), model);
  if (is_there(settings, "dgm")) read_dgm(settings.at("dgm", "the sparsifier"), state_of(state, "dgm"));
  if (removes_ = is_there(settings, "ddr"); removes_)
    removal_.load(settings.at("ddr", "the sparsifier"), state_of(state, "ddr"), model, path_of("ddr"));
  if (!tdm_ && !dgm_) return;
  const char* const holder = tdm_ ? "tdm" : "dgm";
  std::vector<size_t> sizes;
  for (const SparseLayer& layer : layers_) sizes.push_back(graph_.states()[layer.at].index.size());
  collected_.load(state_of(state, holder).at("collected", holder), model, path_of(holder) + "/collected", sizes);
}

std::string Sparsifier::path_of(const char* part) const { return name_ == "sparcl" ? std::string(kState) + "/" + part : kState; }

const Json& Sparsifier::state_of(const Json& state, const char* part) const {
  return name_ == "sparcl" ? state.at(part, "the sparsifier's state") : state;
}

void Sparsifier::read_layers(const Json& settings) {
  const auto& nodes = graph_.nodes();
  size_t sparse = 0;
  for (const Json& said : settings.at("layers", "the sparsifier").list("the sparsifier's layers", 0, nodes.size())) {
    const std::string& name = said.at("name", "a sparse layer").string("a sparse layer's name");
    size_t at = 0;
    while (at < nodes.size() && !(nodes[at].op == Node::kConvolution && nodes[at].name == name && graph_.states()[at].sparse)) ++at;
    if (at == nodes.size()) refuse("the sparsifier names the layer " + name.substr(0, 80) + ", which is not sparse");
    const auto& w = nodes[at].shape.weight;
    const long per_channel = static_cast<long>(w[1]) * w[2] * w[3], units = w[0] * per_channel / pattern_.block;
    if (w[0] % pattern_.block) refuse("layer " + name + ": its channels are no multiple of the block");
    const long target = said.at("target", name).whole(name + ": target", 0, units);
    const Places& index = graph_.states()[at].index;
    if (pattern_.expand(pattern_.of_index(index, per_channel), per_channel) != index) refuse("layer " + name + ": its index is not of whole blocks");
    for (const SparseLayer& other : layers_)
      if (other.at == at) refuse("the sparsifier names the layer " + name + " twice");
    layers_.push_back({at, name, per_channel, units, target, said.at("scaled", name).truth(name + ": scaled")});
  }
  for (const Graph::State& state : graph_.states()) sparse += state.sparse;
  if (sparse != layers_.size()) refuse("the sparsifier does not name all sparse layers");
}

void Sparsifier::read_tdm(const Json& settings, const Json& state, const ModelFile& model) {
  Weights tdm;
  tdm.sparsity = settings.at("sparsity", "TDM").number("TDM's sparsity", 0, 1);
  tdm.p_intra = settings.at("p_intra", "TDM").number("TDM's p_intra", 0, 1);
  tdm.p_inter = settings.at("p_inter", "TDM").number("TDM's p_inter", 0, 1);
  tdm.alpha = static_cast<float>(settings.at("alpha", "TDM").number("TDM's alpha", -1e30, 1e30));
  tdm.beta = static_cast<float>(settings.at("beta", "TDM").number("TDM's beta", -1e30, 1e30));
  tdm.batches = settings.at("batches", "TDM").whole("TDM's batches", 1, 1 << 30);
  tdm.moments = Moments({0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8}, kStepsApart, 0.9);
  tdm.moments.load(state.at("moments", "TDM"), "TDM's moments");
  tdm.random = Random(model.file.at(path_of("tdm") + "/generator"), "TDM's generator");
  for (const SparseLayer& layer : layers_)
    if (layer.target < 1) refuse("layer " + layer.name + ": target must be 1 or more");
  tdm_ = tdm;
}

void Sparsifier::read_dgm(const Json& settings, const Json& state) {
  Choice dgm;
  dgm.frozen = settings.at("frozen", "DGM").number("DGM's frozen", 0, 1);
  dgm.interval = settings.at("interval", "DGM").whole("DGM's interval", 1, kMost);
  dgm.alpha = static_cast<float>(settings.at("alpha", "DGM").number("DGM's alpha", -1e30, 1e30));
  dgm.beta = static_cast<float>(settings.at("beta", "DGM").number("DGM's beta", -1e30, 1e30));
  dgm.iteration = state.at("iteration", "DGM").whole("DGM's iteration", 0, kMost);
  dgm.owed = state.at("owed", "DGM").truth("DGM: owed");
  dgm.ready = state.at("ready", "DGM").truth("DGM: ready");
  dgm_ = dgm;
}

void Sparsifier::store(ModelFile& model) const {
  Json& whole = model.state.at("learner", "the state").at("sparsifier", "the state");
  const auto into = [&](const char* part) -> Json& { return name_ == "sparcl" ? whole.at(part, "the sparsifier's state") : whole; };
  if (tdm_ || dgm_) drop_tensors(model, path_of(tdm_ ? "tdm" : "dgm") + "/collected/");
  if (tdm_) {
    Json& state = into("tdm");
    state.set("generator", put_tensor(model, path_of("tdm") + "/generator", tdm_->random.state()));
    state.set("moments", tdm_->moments.state());
    state.set("collected", collected_.store(model, path_of("tdm") + "/collected"));
  }
  if (dgm_) {
    Json& state = into("dgm");
    state.set("iteration", Json::of(dgm_->iteration));
    state.set("owed", Json::of_truth(dgm_->owed));
    state.set("ready", Json::of_truth(dgm_->ready));
    if (!tdm_) state.set("collected", collected_.store(model, path_of("dgm") + "/collected"));
  }
  if (removes_) into("ddr") = removal_.store(model, path_of("ddr"));
}

Places Sparsifier::active(const SparseLayer& layer) const { return pattern_.of_index(graph_.states()[layer.at].index, layer.per_channel); }

void Sparsifier::set_units(const SparseLayer& layer, const Places& units) { graph_.set_index(layer.at, pattern_.expand(units, layer.per_channel)); }

Places Sparsifier::draw_unused(const SparseLayer& layer, const Places& taken, long count, const Places& barred) {
  std::vector<uint8_t> free(static_cast<size_t>(layer.units), 1);
  for (const Places* places : {&taken, &barred})
    for (int32_t unit : *places) free[static_cast<size_t>(unit)] = 0;
  return draw_free(free, count, tdm_->random);
}

// At most a fifth of the active units, and no more than there is room for.
long Sparsifier::moved(const SparseLayer& layer, double share) const {
  const long wanted = std::lrint(share * static_cast<double>(layer.units)), most = static_cast<long>(kMostMoved * static_cast<double>(layer.target));
  return std::min({wanted, most, layer.units - layer.target});
}

// Of a layer's active units, whether each is among the least important, so that `keep` stay.
std::vector<uint8_t> Sparsifier::leaving(size_t layer, const std::vector<float>& score, const Places& units, long keep) const {
  const SparseLayer& of = layers_[layer];
  return lowest(pattern_.score(score, graph_.states()[of.at].index, of.per_channel), static_cast<long>(units.size()) - keep);
}

void Sparsifier::begin_task(long index, long samples, long epochs, bool removes) {
  if (tdm_) {
    collected_.begin_task();
    tdm_->moments.begin_task(epochs);
    for (const SparseLayer& layer : layers_) {
      if (index == 0 || tdm_->p_inter == 0) break;
      const Places units = active(layer);
      set_units(layer, merged(units, draw_unused(layer, units, moved(layer, tdm_->p_inter), {})));
    }
  }
  if (dgm_) {
    collected_.begin_task();
    dgm_->iteration = 0;
    dgm_->owed = true;
    dgm_->ready = false;
  }
  if (removes_) removal_.begin_task(samples, epochs, removes);
}

void Sparsifier::begin_epoch(long epoch, long steps) {
  if (tdm_) tdm_->moments.begin_epoch(epoch, steps);
  if (removes_) removal_.begin_epoch(epoch, steps);
}

bool Sparsifier::begin_step(long step, double spent) {
  collected_.begin_step();
  if (tdm_) begin_step_of_tdm(step, spent);
  if (dgm_) begin_step_of_dgm();
  return removes_ && removal_.begin_step(step, spent);
}

void Sparsifier::begin_step_of_tdm(long step, double spent) {
  const bool changes = tdm_->sparsity > 0 && (tdm_->p_intra != 0 || tdm_->p_inter != 0);
  if (tdm_->moments.due(step, spent) && changes) update();
  const bool near = tdm_->moments.near(step, tdm_->batches, spent), ranks = changes && (tdm_->alpha != 0 || tdm_->beta != 0);
  if (ranks && (!collected_.batches() || near)) collected_.ask(near);
}

void Sparsifier::begin_step_of_dgm() {
  if (dgm_->frozen > 0 && (dgm_->ready || stale())) choose();
  ++dgm_->iteration;
  dgm_->owed = dgm_->owed || dgm_->iteration % dgm_->interval == 0;
  if (dgm_->frozen > 0 && dgm_->owed) collected_.ask(false);
}

// A mask update since the last choice cleared it.
bool Sparsifier::stale() const {
  if (!collected_.batches()) return false;
  return std::any_of(layers_.begin(), layers_.end(), [&](const SparseLayer& layer) {
    const Graph::State& state = graph_.states()[layer.at];
    return state.chosen.empty() && resting(static_cast<long>(state.index.size()) / pattern_.block) > 0;
  });
}

// Of a layer's active units, as many are not updated: never all of them, or none would be chosen again.
long Sparsifier::resting(long units) const { return std::min(std::lrint(dgm_->frozen * static_cast<double>(units)), std::max(units - 1, 0L)); }

void Sparsifier::choose() {
  const Gradients task = collected_.mean(false), replay = collected_.mean(true);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const SparseLayer& layer = layers_[i];
    const Places& index = graph_.states()[layer.at].index;
    const std::vector<float> score = pattern_.score(continual(task[i], replay[i], dgm_->alpha, dgm_->beta), index, layer.per_channel);
    std::vector<uint8_t> moves = lowest(score, resting(static_cast<long>(score.size())));
    for (uint8_t& flag : moves) flag = !flag;
    graph_.set_chosen(layer.at, pattern_.spread(moves, index, layer.per_channel));
  }
  dgm_->owed = dgm_->owed && !dgm_->ready;
  dgm_->ready = false;
}

// CWI of every active weight; where no gradient counts, its magnitude alone.
Gradients Sparsifier::importance() const {
  const bool ranks = (tdm_->alpha != 0 || tdm_->beta != 0) && collected_.batches() > 0;
  const Gradients task = ranks ? collected_.mean(false) : Gradients(), replay = ranks ? collected_.mean(true) : Gradients();
  Gradients scores;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const std::vector<float>& values = graph_.states()[layers_[i].at].weight.value;
    std::vector<float> score = ranks ? continual(task[i], replay[i], tdm_->alpha, tdm_->beta) : std::vector<float>(values.size(), 0.0f);
    for (size_t k = 0; k < values.size(); ++k) score[k] = std::fabs(values[k]) + score[k];
    scores.push_back(std::move(score));
  }
  return scores;
}

// Removes by CWI down to s + p_intra, so shrinking first what a new task expanded, then grows back to s.
void Sparsifier::update() {
  const Gradients scores = importance();
  collected_.close_window();
  for (size_t i = 0; i < layers_.size(); ++i) {
    const SparseLayer& layer = layers_[i];
    const Places before = graph_.states()[layer.at].index, units = active(layer);
    const long exchanged = std::min(moved(layer, tdm_->p_intra), layer.units - static_cast<long>(units.size()));
    const std::vector<uint8_t> leaves = leaving(i, scores[i], units, layer.target - exchanged);
    const Places removed = where(units, leaves, 1), kept = where(units, leaves, 0);
    const Places grown = draw_unused(layer, kept, layer.target - static_cast<long>(kept.size()), removed);
    set_units(layer, merged(kept, grown));
    collected_.move(i, before, graph_.states()[layer.at].index);
  }
}

bool Sparsifier::wants_gradients() {
  const bool wanted = collected_.wanted();
  if (wanted) graph_.compute_frozen(true);
  return wanted;
}

void Sparsifier::take_gradients(const Gradients& task, const Gradients& replay, long extra, long samples) {
  collected_.add(task, replay, extra, samples);
  if (dgm_) dgm_->ready = dgm_->owed;
}

void Sparsifier::after_forward(const std::vector<int64_t>& ids, const std::vector<uint8_t>& wrong) {
  if (removes_) removal_.note(ids, wrong);
}

Gradients Sparsifier::gradients() const {
  Gradients all;
  for (const SparseLayer& layer : layers_) all.push_back(graph_.states()[layer.at].weight.gradient);
  return all;
}

void Sparsifier::after_backward() {
  graph_.compute_frozen(false);
  for (const SparseLayer& layer : layers_) {
    Graph::State& state = graph_.states()[layer.at];
    const float scale = layer.scaled && layer.target ? static_cast<float>(static_cast<double>(layer.units) / static_cast<double>(layer.target)) : 1.0f;
    for (size_t i = 0; i < state.weight.gradient.size(); ++i) {
      float& g = state.weight.gradient[i];
      g = state.chosen.empty() || state.chosen[i] ? g * scale : 0.0f;
    }
  }
}

// Every task ends at exactly s; what stays keeps DGM's choice.
void Sparsifier::end_task() {
  const auto expanded = [&](const SparseLayer& layer) { return static_cast<long>(active(layer).size()) > layer.target; };
  if (tdm_ && std::any_of(layers_.begin(), layers_.end(), expanded)) {
    const Gradients scores = importance();
    for (size_t i = 0; i < layers_.size(); ++i) {
      const SparseLayer& layer = layers_[i];
      const Places units = active(layer);
      const std::vector<uint8_t> leaves = leaving(i, scores[i], units, layer.target);
      const std::vector<uint8_t> gone = pattern_.spread(leaves, graph_.states()[layer.at].index, layer.per_channel);
      const std::vector<uint8_t> chosen = graph_.states()[layer.at].chosen;
      std::vector<uint8_t> stays;
      for (size_t k = 0; k < chosen.size(); ++k)
        if (!gone[k]) stays.push_back(chosen[k]);
      set_units(layer, where(units, leaves, 0));
      if (!chosen.empty()) graph_.set_chosen(layer.at, stays);
    }
  }
  if (tdm_ || dgm_) collected_.begin_task();
}

}  // namespace sparcl
