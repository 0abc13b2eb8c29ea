#include "device/buffer.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace sparcl {
namespace {

constexpr char kPath[] = "learner/method/buffer/";

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

}  // namespace

void Buffer::load(const ModelFile& model, const Samples& samples, long capacity, bool with_logits, long classes) {
  const Json& state = model.state.at("learner", "the state").at("method", "the state").at("buffer", "the state");
  seen_ = state.at("seen", "the buffer").whole("seen", 0, 1L << 62);
  capacity_ = capacity;
  classes_ = classes;
  stride_ = samples.stride();
  with_logits_ = with_logits;
  const long held = std::min(seen_, capacity_);
  if (held == 0) return;
  const Tensor &inputs = model.file.at(std::string(kPath) + "inputs"), &labels = model.file.at(std::string(kPath) + "labels");
  if (inputs.dtype != (samples.bytes ? "U8" : "F32") || inputs.bytes.size() != static_cast<size_t>(held) * stride_)
    refuse("the samples are of another type or shape than those in the buffer");
  inputs_ = inputs.bytes;
  const int64_t* from = labels.int64s("the buffer's labels", held);
  for (long i = 0; i < held; ++i) {
    if (from[i] < 0 || from[i] >= classes) refuse("the buffer holds a label that is no class");
    labels_.push_back(from[i]);
  }
  if (!with_logits) return;
  const float* logits = model.file.at(std::string(kPath) + "logits").floats("the buffer's logits", held * classes);
  logits_.assign(logits, logits + held * classes);
}

void Buffer::store(ModelFile& model, const Samples& samples) const {
  if (capacity_ == 0) return;
  const long held = static_cast<long>(size());
  const Extent& e = samples.extent;
  std::vector<long> shape{held, e.channels};
  if (model.input_shape.items.size() == 3) shape = {held, e.channels, e.height, e.width};
  Json state = Json::of_members({{"seen", Json::of(seen_)}});
  if (held) {
    state.set("inputs", put_tensor(model, std::string(kPath) + "inputs", {samples.bytes ? "U8" : "F32", shape, inputs_}));
    state.set("labels", put_tensor(model, std::string(kPath) + "labels", tensor_of("I64", {held}, labels_)));
    if (with_logits_) state.set("logits", put_tensor(model, std::string(kPath) + "logits", tensor_of("F32", {held, classes_}, logits_)));
  }
  model.state.at("learner", "the state").at("method", "the state").at("buffer", "the state") = state;
}

std::vector<size_t> Buffer::draw(long count, Random& random) const {
  const std::vector<int64_t> order = random.permutation(static_cast<long>(size()));
  return std::vector<size_t>(order.begin(), order.begin() + std::min(count, static_cast<long>(order.size())));
}

void Buffer::offer(const Samples& samples, const std::vector<int64_t>& ids, const std::vector<long>& labels, const float* logits, long N, Random& random) {
  if (capacity_ == 0) return;
  for (size_t i = 0; i < ids.size(); ++i) {
    const double drawn = random.uniform();
    const bool room = seen_ < capacity_;
    const long slot = room ? seen_ : static_cast<long>(drawn * static_cast<double>(seen_ + 1));
    ++seen_;
    if (slot >= capacity_) continue;
    const size_t at = static_cast<size_t>(slot);
    if (room) {
      inputs_.resize((at + 1) * stride_);
      labels_.resize(at + 1);
      if (with_logits_) logits_.resize((at + 1) * static_cast<size_t>(classes_));
    }
    std::memcpy(inputs_.data() + at * stride_, samples.raw.data() + static_cast<size_t>(ids[i]) * stride_, stride_);
    labels_[at] = labels[i];
    for (long c = 0; with_logits_ && c < classes_; ++c) logits_[at * static_cast<size_t>(classes_) + static_cast<size_t>(c)] = logits[c * N + static_cast<long>(i)];
  }
}

}  // namespace sparcl
