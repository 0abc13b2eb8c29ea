// Losses on logits [classes][N], with their gradients.
#pragma once
#include <cstddef>
#include <vector>

namespace sparcl {

// weight * mean cross-entropy; its gradient is written. allowed (empty: all): per class, whether its logit takes part for the first
// `restricted` samples.
double cross_entropy(const float* logits, const std::vector<long>& labels, long classes, double weight, const std::vector<bool>& allowed, std::size_t restricted,
                     float* gradient);
// weight * mean of (logits - target)^2 over the targets [N][classes] that are known: those of classes that came later are NaN.
double squared_distance(const float* logits, const std::vector<float>& target, long classes, double weight, float* gradient);

}  // namespace sparcl
