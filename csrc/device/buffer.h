// The rehearsal buffer: a uniform sample of everything seen (Vitter, 1985), as stored; the draws are sparcl.methods.buffer's.
#pragma once
#include <vector>

#include "device/random.h"
#include "device/samples.h"

namespace sparcl {

class Buffer {
 public:
  // Throws std::invalid_argument where the file's does not fit the samples or the network.
  void load(const ModelFile& model, const Samples& samples, long capacity, bool with_logits, long classes);
  void store(ModelFile& model, const Samples& samples) const;

  size_t size() const { return labels_.size(); }
  std::vector<size_t> draw(long count, Random& random) const;  // different places; all, where there are fewer
  const uint8_t* input(size_t at) const { return inputs_.data() + at * stride_; }
  long label(size_t at) const { return labels_[at]; }
  const float* logits(size_t at) const { return logits_.data() + at * static_cast<size_t>(classes_); }
  // Offers samples `ids`, whose logits [classes][N] are the first of a batch's.
  void offer(const Samples& samples, const std::vector<int64_t>& ids, const std::vector<long>& labels, const float* logits, long N, Random& random);

 private:
  long seen_ = 0, capacity_ = 0, classes_ = 0;
  size_t stride_ = 0;
  bool with_logits_ = false;
  std::vector<uint8_t> inputs_;
  std::vector<int64_t> labels_;
  std::vector<float> logits_;  // [n][classes]; NaN: of classes that were not there
};

}  // namespace sparcl
