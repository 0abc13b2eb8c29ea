#include "device/random.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

namespace sparcl {
namespace {

constexpr int kWords = 624, kMiddle = 397;
constexpr size_t kLeft = 8, kSeeded = 12, kNext = 16, kState = 24, kBytes = 5056;  // PyTorch's layout: 64 bits a word
constexpr long kNarrow = 1L << 28;  // PyTorch draws 64 bits for ranges from here on

template <class Number>
Number read(const std::vector<uint8_t>& bytes, size_t at) {
  Number value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

}  // namespace

Random::Random(const Tensor& state, const std::string& what) : whole_(state.bytes) {
  if (state.dtype != "U8" || whole_.size() != kBytes) throw std::invalid_argument(what + " must be the state of a generator, 5056 bytes");
  left_ = read<int32_t>(whole_, kLeft);
  const uint64_t next = read<uint64_t>(whole_, kNext);
  // left - 1 words are taken from `next` on before they are made anew
  if (left_ < 1 || left_ > kWords || next > kWords || next + static_cast<uint64_t>(left_) - 1 > kWords || read<int32_t>(whole_, kSeeded) != 1)
    throw std::invalid_argument(what + " is no state that a generator can have");
  next_ = static_cast<uint32_t>(next);
  for (size_t i = 0; i < kWords; ++i) words_[i] = static_cast<uint32_t>(read<uint64_t>(whole_, kState + 8 * i));
}

Random Random::seeded(uint64_t seed) {
  Random random;
  const int32_t seeded = 1;
  random.whole_.assign(kBytes, 0);
  std::memcpy(random.whole_.data(), &seed, sizeof seed);
  std::memcpy(random.whole_.data() + kSeeded, &seeded, sizeof seeded);
  random.words_[0] = static_cast<uint32_t>(seed);
  for (uint32_t i = 1; i < kWords; ++i) random.words_[i] = 1812433253u * (random.words_[i - 1] ^ (random.words_[i - 1] >> 30)) + i;
  return random;
}

Tensor Random::state() const {
  Tensor tensor{"U8", {static_cast<long>(kBytes)}, whole_};
  const uint64_t next = next_;
  std::memcpy(tensor.bytes.data() + kLeft, &left_, sizeof left_);
  std::memcpy(tensor.bytes.data() + kNext, &next, sizeof next);
  for (size_t i = 0; i < kWords; ++i) {
    const uint64_t word = words_[i];
    std::memcpy(tensor.bytes.data() + kState + 8 * i, &word, sizeof word);
  }
  return tensor;
}

void Random::refill() {
  const auto twisted = [](uint32_t high, uint32_t low) { return (((high & 0x80000000u) | (low & 0x7fffffffu)) >> 1) ^ (low & 1u ? 0x9908b0dfu : 0u); };
  for (int i = 0; i < kWords; ++i) words_[i] = words_[(i + kMiddle) % kWords] ^ twisted(words_[i], words_[(i + 1) % kWords]);
  left_ = kWords;
  next_ = 0;
}

uint32_t Random::bits() {
  if (--left_ == 0) refill();
  uint32_t y = words_[next_++];
  y ^= y >> 11;
  y ^= (y << 7) & 0x9d2c5680u;
  y ^= (y << 15) & 0xefc60000u;
  return y ^ (y >> 18);
}

uint64_t Random::bits64() {
  const uint64_t high = bits();
  return (high << 32) | bits();
}

double Random::uniform() { return static_cast<double>(bits64() & ((1ull << 53) - 1)) * 0x1p-53; }

float Random::uniform(float low, float high) {
  const double share = static_cast<double>(bits() & ((1u << 24) - 1)) * 0x1p-24;
  const double scaled = share * static_cast<double>(high - low);
  return static_cast<float>(scaled + static_cast<double>(low));
}

long Random::below(long n) { return static_cast<long>((n >= kNarrow ? bits64() : bits()) % static_cast<uint64_t>(n)); }

std::vector<int64_t> Random::permutation(long n) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), int64_t{0});
  for (long i = 0; i + 1 < n; ++i) std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(i + static_cast<long>(bits() % static_cast<uint64_t>(n - i)))]);
  return order;
}

std::vector<int32_t> draw_free(const std::vector<uint8_t>& free, long count, Random& random) {
  const long size = static_cast<long>(free.size()), unused = std::count(free.begin(), free.end(), 1);
  count = std::max(count, 0L);
  std::vector<int32_t> drawn;
  if (2 * count > unused || 4 * unused < size) {
    std::vector<int32_t> candidates;
    for (long place = 0; place < size; ++place)
      if (free[static_cast<size_t>(place)]) candidates.push_back(static_cast<int32_t>(place));
    const std::vector<int64_t> order = random.permutation(unused);
    for (long i = 0; i < std::min(count, unused); ++i) drawn.push_back(candidates[static_cast<size_t>(order[static_cast<size_t>(i)])]);
    std::sort(drawn.begin(), drawn.end());
    return drawn;
  }
  while (static_cast<long>(drawn.size()) < count) {
    const long missing = count - static_cast<long>(drawn.size());
    for (long more = missing * size / unused + count / 8 + 8; more > 0; --more) {
      const long place = random.below(size);
      if (free[static_cast<size_t>(place)]) drawn.push_back(static_cast<int32_t>(place));
    }
    std::sort(drawn.begin(), drawn.end());
    drawn.erase(std::unique(drawn.begin(), drawn.end()), drawn.end());
  }
  while (static_cast<long>(drawn.size()) > count) {
    std::vector<uint8_t> stays(drawn.size(), 1);
    for (long surplus = static_cast<long>(drawn.size()) - count; surplus > 0; --surplus)
      stays[static_cast<size_t>(random.below(static_cast<long>(drawn.size())))] = 0;
    size_t kept = 0;
    for (size_t i = 0; i < drawn.size(); ++i) {
      drawn[kept] = drawn[i];
      kept += stays[i];
    }
    drawn.resize(kept);
  }
  return drawn;
}

}  // namespace sparcl
