#include "device/losses.h"

#include <algorithm>
#include <cmath>

namespace sparcl {

double cross_entropy(const float* logits, const std::vector<long>& labels, long classes, double weight, const std::vector<bool>& allowed, size_t restricted,
                     float* gradient) {
  const long batch = static_cast<long>(labels.size());
  double loss = 0;
  for (long n = 0; n < batch; ++n) {
    const bool some = !allowed.empty() && static_cast<size_t>(n) < restricted;
    const auto takes_part = [&](long c) { return !some || allowed[static_cast<size_t>(c)]; };
    double highest = -INFINITY, sum = 0;
    for (long c = 0; c < classes; ++c)
      if (takes_part(c)) highest = std::max<double>(highest, logits[c * batch + n]);
    for (long c = 0; c < classes; ++c)
      if (takes_part(c)) sum += std::exp(logits[c * batch + n] - highest);
    for (long c = 0; c < classes; ++c) {
      const double log_share = logits[c * batch + n] - highest - std::log(sum);
      const bool right = labels[static_cast<size_t>(n)] == c;
      if (right) loss -= log_share;
      gradient[c * batch + n] = takes_part(c) ? static_cast<float>(weight * (std::exp(log_share) - right) / static_cast<double>(batch)) : 0.0f;
    }
  }
  return weight * loss / static_cast<double>(batch);
}

double squared_distance(const float* logits, const std::vector<float>& target, long classes, double weight, float* gradient) {
  const long batch = static_cast<long>(target.size()) / classes;
  const double count = static_cast<double>(std::count_if(target.begin(), target.end(), [](float value) { return !std::isnan(value); }));
  double loss = 0;
  for (long n = 0; n < batch; ++n)
    for (long c = 0; c < classes; ++c) {
      const double wanted = target[static_cast<size_t>(n * classes + c)], difference = static_cast<double>(logits[c * batch + n]) - wanted;
      if (!std::isnan(wanted)) loss += difference * difference;
      gradient[c * batch + n] = std::isnan(wanted) ? 0.0f : static_cast<float>(2 * weight * difference / count);
    }
  return weight * loss / count;
}

}  // namespace sparcl
