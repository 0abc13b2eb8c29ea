// PyTorch's CPU generator: MT19937 (Matsumoto and Nishimura, 1998), its state as torch.Generator.get_state() gives it, and the draws
// that Python makes of it, number for number. What Python would have drawn next, a device draws.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "device/model_file.h"

namespace sparcl {

class Random {
 public:
  Random() = default;
  explicit Random(const Tensor& state, const std::string& what);  // uint8 [5056]; throws std::invalid_argument
  static Random seeded(uint64_t seed);  // torch.Generator().manual_seed(seed)
  Tensor state() const;

  uint32_t bits();
  double uniform();                              // torch.rand, float64
  float uniform(float low, float high);          // Tensor.uniform_, float32
  long below(long n);                            // torch.randint(n, ...)
  std::vector<int64_t> permutation(long n);      // torch.randperm

 private:
  uint64_t bits64();
  void refill();
  std::vector<uint8_t> whole_;  // as it came: what is not of the engine passes through
  uint32_t words_[624] = {};
  int32_t left_ = 1;
  uint32_t next_ = 0;
};

// `count` (all, where there are fewer) of the places that are free, ascending; every set of them is as likely as any other. The draws are
// those of sparcl.sparsity.sparsifier.draw_free.
std::vector<int32_t> draw_free(const std::vector<uint8_t>& free, long count, Random& random);

}  // namespace sparcl
