// A training step: forward, the method's loss, backward, update, memory; and its gradients taken apart, where they are ranked by
// (sparcl.learner.apart).
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "device/learn.h"
#include "device/losses.h"

namespace sparcl {
namespace {

long best_of(const float* logits, long classes, long n, long N, const std::vector<bool>* among) {
  long best = -1;
  for (long c = 0; c < classes; ++c)
    if ((!among || (*among)[static_cast<size_t>(c)]) && (best < 0 || logits[c * N + n] > logits[best * N + n])) best = c;
  return best;
}

}  // namespace

// Samples as stored become the batch's columns from `first` on, augmented by draws as sparcl.streams.augment makes them.
void Learning::add_samples(const std::vector<const uint8_t*>& raw, long first, long N) {
  std::vector<Place> places(raw.size(), Place{0, 0, false});
  if (transform_.crop_padding || transform_.flip) {
    const long offsets = 2L * transform_.crop_padding + 1;
    for (Place& place : places) place.row = static_cast<int>(augment_.below(offsets)) - transform_.crop_padding;
    for (Place& place : places) place.column = static_cast<int>(augment_.below(offsets)) - transform_.crop_padding;
  }
  for (Place& place : places)
    if (transform_.flip) place.flip = augment_.below(2) == 1;
  for (size_t i = 0; i < raw.size(); ++i)
    put_sample(transform_, samples_.extent, samples_.bytes, raw[i], places[i], x_.data(), first + static_cast<long>(i), N);
}

// The batch: the task's samples, then remembered ones that share their pass (ER).
void Learning::spread_out(const std::vector<int64_t>& ids, const std::vector<size_t>& beside) {
  const long N = static_cast<long>(ids.size() + beside.size());
  x_.resize(static_cast<size_t>(samples_.extent.count() * N));
  batch_labels_.clear();
  std::vector<const uint8_t*> own, remembered;
  for (int64_t id : ids) {
    own.push_back(samples_.raw.data() + static_cast<size_t>(id) * samples_.stride());
    batch_labels_.push_back(labels_[static_cast<size_t>(id)]);
  }
  for (size_t at : beside) {
    remembered.push_back(buffer_.input(at));
    batch_labels_.push_back(buffer_.label(at));
  }
  add_samples(own, 0, N);
  if (!beside.empty()) add_samples(remembered, static_cast<long>(own.size()), N);
}

// What DDR and the position's count of right answers look at.
void Learning::watch(const std::vector<int64_t>& ids, const float* logits, long N) {
  std::vector<uint8_t> wrong;
  for (size_t i = 0; i < ids.size(); ++i) {
    const long label = labels_[static_cast<size_t>(ids[i])], n = static_cast<long>(i);
    position.right += best_of(logits, graph_.classes(), n, N, &own_) == label;
    wrong.push_back(best_of(logits, graph_.classes(), n, N, nullptr) != label);
  }
  sparsifier_.after_forward(ids, wrong);
}

// The gradient of L~(D_t), single-head, by one more pass back: it is not what is trained on.
void Learning::read_task(const std::vector<float>& logits, long of_task, long N) {
  const long classes = graph_.classes();
  std::vector<float> some(static_cast<size_t>(classes * of_task)), gradient(some.size()), whole(logits.size(), 0.0f);
  for (long c = 0; c < classes; ++c)
    for (long n = 0; n < of_task; ++n) some[static_cast<size_t>(c * of_task + n)] = logits[static_cast<size_t>(c * N + n)];
  const std::vector<long> labels(batch_labels_.begin(), batch_labels_.begin() + of_task);
  cross_entropy(some.data(), labels, classes, 1.0, own_, static_cast<size_t>(of_task), gradient.data());
  for (long c = 0; c < classes; ++c)
    for (long n = 0; n < of_task; ++n) whole[static_cast<size_t>(c * N + n)] = gradient[static_cast<size_t>(c * of_task + n)];
  graph_.backward(whole.data(), true);
  of_task_ = sparsifier_.gradients();
  graph_.clear_gradients();
  extra_ += N;
}

// Sends the gradient of the logits back. Where the step is ranked by, remembered samples in the task's own pass go back apart.
void Learning::backward(const std::vector<float>& gradient, long of_task, long N, bool ranks) {
  if (!ranks || N == of_task) {
    graph_.backward(gradient.data());
    return;
  }
  std::vector<float> remembered = gradient, own = gradient;
  for (size_t i = 0; i < gradient.size(); ++i) (static_cast<long>(i) % N < of_task ? remembered : own)[i] = 0.0f;
  graph_.backward(remembered.data(), true);
  of_replay_ = sparsifier_.gradients();
  const float scale = static_cast<float>(static_cast<double>(N) / static_cast<double>(N - of_task));  // L(M) is a mean over the remembered
  for (auto& layer : of_replay_)
    for (float& g : layer) g *= scale;
  repeated_ += N;
  graph_.backward(own.data());
}

// One pass over remembered samples: cross-entropy, or the distance to the logits that were stored.
double Learning::replay(bool logits, double weight) {
  const std::vector<size_t> picked = buffer_.draw(replay_batch_, remember_);
  const long N = static_cast<long>(picked.size()), classes = graph_.classes();
  x_.resize(static_cast<size_t>(samples_.extent.count() * N));
  std::vector<const uint8_t*> raw;
  std::vector<long> labels;
  std::vector<float> target;
  for (size_t at : picked) {
    raw.push_back(buffer_.input(at));
    labels.push_back(buffer_.label(at));
    if (logits) target.insert(target.end(), buffer_.logits(at), buffer_.logits(at) + classes);
  }
  add_samples(raw, 0, N);
  const float* answer = graph_.forward(x_.data(), N, true);
  std::vector<float> gradient(static_cast<size_t>(classes * N));
  const double loss = logits ? squared_distance(answer, target, classes, weight, gradient.data())
                             : cross_entropy(answer, labels, classes, weight, {}, 0, gradient.data());
  graph_.backward(gradient.data());
  passed_ += N;
  return loss;
}

// DER's and DER++'s passes over remembered samples; where the step is ranked by, their gradients are read apart.
void Learning::replays(bool ranks) {
  const Gradients own = ranks ? sparsifier_.gradients() : Gradients();
  const auto gradient = [&](size_t layer) -> std::vector<float>& { return graph_.states()[sparsifier_.layers()[layer].at].weight.gradient; };
  for (size_t i = 0; i < own.size(); ++i) std::fill(gradient(i).begin(), gradient(i).end(), 0.0f);
  loss += replay(true, method_.alpha);
  if (method_.name == "derpp") loss += replay(false, method_.beta);
  if (ranks) of_replay_ = sparsifier_.gradients();
  for (size_t i = 0; i < own.size(); ++i)
    for (size_t k = 0; k < own[i].size(); ++k) gradient(i)[k] += own[i][k];
}

void Learning::train() {
  const long of_task = position.upcoming(drop_last_), classes = graph_.classes();
  const std::vector<int64_t> ids(position.order.begin() + position.cursor, position.order.begin() + position.cursor + of_task);
  const std::vector<size_t> beside = method_.name == "er" ? buffer_.draw(replay_batch_, remember_) : std::vector<size_t>();
  const long N = of_task + static_cast<long>(beside.size());
  spread_out(ids, beside);
  const bool ranks = sparsifier_.wants_gradients();
  passed_ = N;
  extra_ = repeated_ = 0;
  graph_.clear_gradients();
  if (ranks) of_replay_ = sparsifier_.gradients();  // nothing, while nothing is remembered
  const float* answer = graph_.forward(x_.data(), N, true);
  const std::vector<float> logits(answer, answer + classes * N);
  std::vector<float> gradient(logits.size());
  loss = cross_entropy(logits.data(), batch_labels_, classes, 1.0, method_.single_head ? own_ : std::vector<bool>(), ids.size(), gradient.data());
  watch(ids, logits.data(), N);
  if (ranks) read_task(logits, of_task, N);
  backward(gradient, of_task, N, ranks);
  if (method_.stores_logits() && buffer_.size()) replays(ranks);
  if (!std::isfinite(loss)) throw std::runtime_error("the loss became NaN or infinite in step " + std::to_string(position.done + 1) + kTooFast);
  ledger_.step(graph_, passed_, of_task);
  if (ranks) {
    ledger_.ranked(graph_, extra_, repeated_, passed_);
    sparsifier_.take_gradients(of_task_, of_replay_, extra_ + repeated_, passed_);
  }
  sparsifier_.after_backward();
  optimizer_.step(graph_);
  sparsifier_.end_step();
  average_.take_in(graph_, position.done + 1);
  buffer_.offer(samples_, ids, std::vector<long>(batch_labels_.begin(), batch_labels_.begin() + of_task), logits.data(), N, remember_);
}

}  // namespace sparcl
