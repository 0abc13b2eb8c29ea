#include "device/units.h"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace sparcl {

Places Pattern::expand(const Places& units, long per_channel) const {
  if (block == 1) return units;
  Places index;
  index.reserve(units.size() * static_cast<size_t>(block));
  for (int32_t unit : units) {
    const long first = unit / per_channel * (block * per_channel) + unit % per_channel;
    for (long j = 0; j < block; ++j) index.push_back(static_cast<int32_t>(first + j * per_channel));
  }
  std::sort(index.begin(), index.end());
  return index;
}

Places Pattern::of_index(const Places& index, long per_channel) const {
  if (block == 1) return index;
  Places units;
  for (int32_t place : index) {
    const long channel = place / per_channel;
    if (channel % block == 0) units.push_back(static_cast<int32_t>(channel / block * per_channel + place % per_channel));
  }
  return units;
}

std::vector<size_t> Pattern::rank(const Places& index, long per_channel) const {
  const Places units = of_index(index, per_channel);
  std::vector<size_t> ranks;
  for (int32_t place : index) {
    const int32_t unit = static_cast<int32_t>(place / (per_channel * block) * per_channel + place % per_channel);
    ranks.push_back(static_cast<size_t>(std::lower_bound(units.begin(), units.end(), unit) - units.begin()));
  }
  return ranks;
}

std::vector<float> Pattern::score(const std::vector<float>& scores, const Places& index, long per_channel) const {
  if (block == 1) return scores;
  const std::vector<size_t> ranks = rank(index, per_channel);
  std::vector<float> means(index.size() / static_cast<size_t>(block), 0.0f);
  for (size_t i = 0; i < index.size(); ++i) means[ranks[i]] += scores[i];
  for (float& mean : means) mean /= static_cast<float>(block);
  return means;
}

std::vector<uint8_t> Pattern::spread(const std::vector<uint8_t>& of_units, const Places& index, long per_channel) const {
  if (block == 1) return of_units;
  std::vector<uint8_t> flags;
  for (size_t rank : rank(index, per_channel)) flags.push_back(of_units[rank]);
  return flags;
}

std::vector<uint8_t> lowest(const std::vector<float>& scores, long count) {
  std::vector<uint8_t> mask(scores.size(), 0);
  count = std::min(count, static_cast<long>(scores.size()));
  if (count <= 0) return mask;
  std::vector<float> sorted;
  for (float score : scores) sorted.push_back(std::isnan(score) ? INFINITY : score);
  const std::vector<float> finite = sorted;
  std::nth_element(sorted.begin(), sorted.begin() + (count - 1), sorted.end());
  const float threshold = sorted[static_cast<size_t>(count - 1)];
  long left = count;
  for (size_t i = 0; i < finite.size(); ++i)
    if (finite[i] < threshold) mask[i] = 1, --left;
  for (size_t i = 0; i < finite.size() && left > 0; ++i)
    if (finite[i] == threshold) mask[i] = 1, --left;
  return mask;
}

Places merged(const Places& one, const Places& other) {
  Places both;
  std::merge(one.begin(), one.end(), other.begin(), other.end(), std::back_inserter(both));
  return both;
}

Places where(const Places& places, const std::vector<uint8_t>& flags, uint8_t wanted) {
  Places some;
  for (size_t i = 0; i < places.size(); ++i)
    if (flags[i] == wanted) some.push_back(places[i]);
  return some;
}

}  // namespace sparcl
