// Which weights are active together (sparcl.sparsity.patterns): a unit is a weight, or a block of them, as in docs/device.md. Unit
// b * P + p holds the weights (b * G + j) * P + p, j < G, of P positions of an output channel and G channels a block.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace sparcl {

using Places = std::vector<int32_t>;  // ascending

struct Pattern {
  long block = 1;

  Places expand(const Places& units, long per_channel) const;       // the weights of units
  Places of_index(const Places& index, long per_channel) const;     // the units of weights that make up whole ones
  // Mean of the weights' scores for each active unit, in the order of of_index: summed up in the order of the channels, as PyTorch does
  // it for blocks of up to four.
  std::vector<float> score(const std::vector<float>& scores, const Places& index, long per_channel) const;
  std::vector<uint8_t> spread(const std::vector<uint8_t>& of_units, const Places& index, long per_channel) const;  // onto the weights

 private:
  std::vector<std::size_t> rank(const Places& index, long per_channel) const;
};

// 1 at exactly the `count` lowest scores; among equals the first. NaN counts as the highest.
std::vector<uint8_t> lowest(const std::vector<float>& scores, long count);
Places merged(const Places& one, const Places& other);
// Those of `places` where `flags` is `wanted`.
Places where(const Places& places, const std::vector<uint8_t>& flags, uint8_t wanted);

}  // namespace sparcl
