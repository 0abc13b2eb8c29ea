// Bilinear with antialiasing: the figures of Pillow's Resample.c (MIT-CMU licence), whole numbers but for the weights, so that both
// sides see the same bytes. Compiled without contraction to fused multiply-adds, for the same reason.
#include <algorithm>
#include <cmath>
#include <utility>

#include "device/images.h"

namespace sparcl {
namespace {

constexpr int kBits = 32 - 8 - 2;  // of a weight behind the point

struct Weights {
  long most;                // of one output
  std::vector<long> first;  // input, of each output
  std::vector<long> count;
  std::vector<int> value;   // [outputs][most]
};

Weights weights(long inputs, long outputs) {
  const double scale = static_cast<double>(inputs) / static_cast<double>(outputs), filter = std::max(scale, 1.0);
  const double support = 1.0 * filter, step = 1.0 / filter;
  Weights w{static_cast<long>(std::ceil(support)) * 2 + 1, {}, {}, {}};
  w.value.assign(static_cast<size_t>(outputs * w.most), 0);
  std::vector<double> exact(static_cast<size_t>(w.most));
  for (long o = 0; o < outputs; ++o) {
    const double centre = 0.0 + (static_cast<double>(o) + 0.5) * scale;
    const long low = std::max(0L, static_cast<long>(centre - support + 0.5));
    const long count = std::min(inputs, static_cast<long>(centre + support + 0.5)) - low;
    double sum = 0;
    for (long i = 0; i < count; ++i) {
      const double at = std::abs((static_cast<double>(i + low) - centre + 0.5) * step);
      exact[static_cast<size_t>(i)] = at < 1.0 ? 1.0 - at : 0.0;
      sum += exact[static_cast<size_t>(i)];
    }
    for (long i = 0; i < count; ++i) {
      double& value = exact[static_cast<size_t>(i)];
      if (sum != 0) value /= sum;
      w.value[static_cast<size_t>(o * w.most + i)] = static_cast<int>(0.5 + value * (1 << kBits));
    }
    w.first.push_back(low);
    w.count.push_back(count);
  }
  return w;
}

// Along the middle axis of [before][inputs][after].
std::vector<uint8_t> along(const std::vector<uint8_t>& from, long before, long inputs, long after, long outputs) {
  const Weights w = weights(inputs, outputs);
  std::vector<uint8_t> to(static_cast<size_t>(before * outputs * after));
  for (long b = 0; b < before; ++b)
    for (long o = 0; o < outputs; ++o) {
      const int* value = w.value.data() + o * w.most;
      const long low = w.first[static_cast<size_t>(o)], count = w.count[static_cast<size_t>(o)];
      for (long a = 0; a < after; ++a) {
        const uint8_t* x = from.data() + (b * inputs + low) * after + a;
        int sum = 1 << (kBits - 1);
        for (long i = 0; i < count; ++i) sum += x[i * after] * value[i];
        to[static_cast<size_t>((b * outputs + o) * after + a)] = static_cast<uint8_t>(std::clamp(sum >> kBits, 0, 255));
      }
    }
  return to;
}

}  // namespace

// Columns first, but rows first where the height shrinks by far more than the width: Pillow 13's order, on which the rounding between
// the two depends (by 1 of 255; older ones always take columns first).
Image resized(Image image, long height, long width) {
  Image made{height, width, std::move(image.rgb)};
  const bool narrower = image.width != width, lower = image.height != height;
  const bool rows_first = image.height > height && image.height - height > 2 * (image.width - width);
  if (lower && rows_first) made.rgb = along(made.rgb, 1, image.height, 3 * image.width, height);
  if (narrower) made.rgb = along(made.rgb, rows_first ? height : image.height, image.width, 3, width);
  if (lower && !rows_first) made.rgb = along(made.rgb, 1, image.height, 3 * width, height);
  return made;
}

}  // namespace sparcl
