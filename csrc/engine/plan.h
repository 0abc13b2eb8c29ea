// What a sparse convolution needs to know about its nonzeros, built once for a mask and shared by its three passes.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "engine/pass.h"

namespace sparcl {

struct ConvShape {
  std::array<int, 4> weight;  // O, I / groups, rows, columns
  std::array<int, 2> stride, padding, dilation;
  int groups;
};

// A batch-last tensor [channels][height][width][N].
struct Extent {
  long channels, height, width, batch;
  long count() const { return channels * height * width * batch; }
};

// Halves lie vector by vector of samples, [N / V][channels][height][width][V]: pieces, each of them batch-last, so that no two
// threads share a line. They are for whole vectors, of any unit, and at least one: no samples would make no pieces.
constexpr int kMostLanes = 16;
inline bool halves_fit(const Extent& e) { return e.batch > 0 && e.batch % kMostLanes == 0; }
inline long pieces_of(const Numbers& x, const Extent& e) { return x.half ? e.batch / kernels().lanes : 1; }

class ConvPlan {
 public:
  // `index`: ascending row-major positions of the nonzeros in the dense weight. With block = G, output channels
  // gG .. gG + G - 1 share their positions. Throws std::invalid_argument.
  ConvPlan(const int32_t* index, long nonzeros, const ConvShape& shape, int block);

  long nonzeros() const { return nonzeros_; }
  const ConvShape& shape() const { return shape_; }
  int input_channels() const { return shape_.weight[1] * shape_.groups; }
  Extent output_extent(const Extent& input) const;  // throws std::invalid_argument where the kernel does not fit

  // The weight gradient is computed at these nonzeros only (null: at all). chosen: [K] of 0 and 1.
  void set_chosen(const uint8_t* chosen);

  void forward(const float* values, const float* bias, const Source& x, const Extent& input, const Room& out, int threads);
  // The gradient of the input, of the values, or both; null where it is not wanted (x is read for the values' alone). Both take one
  // walk where that does no more multiply-adds: where there are as many input positions as output positions for each tap.
  void backward(const float* values, const Source& x, const Numbers& gy, const Extent& input, const Room& gx, float* gvalues, int threads,
                const Added& added = {});

 private:
  struct Geometry;
  struct Chosen;
  std::shared_ptr<const Geometry> geometry(const Extent& input, bool half);
  std::vector<Tap> forward_taps() const;
  void build_forward(const int32_t* index, int block);
  void find_phases();
  Form transposed_form() const;
  Lists transposed() const;
  Lists lists_of(const Chosen& chosen) const;
  std::shared_ptr<const Chosen> chosen();
  std::shared_ptr<const Pass::Order> forward_order(const Geometry& geometry) const;
  std::shared_ptr<const Pass::Order> back_order(const Geometry& geometry, const std::shared_ptr<const Chosen>& chosen) const;
  std::shared_ptr<const Pass::Order> weight_order(const Geometry& geometry, const std::shared_ptr<const Chosen>& chosen) const;

  ConvShape shape_;
  long nonzeros_;
  Lists forward_;
  std::shared_ptr<const Chosen> chosen_;  // null: all
  std::vector<int> phase_of_tap_;        // of the input gradient
  std::mutex mutex_;                     // guards what follows, and chosen_
  std::vector<std::shared_ptr<const Geometry>> geometries_;
};

struct Counters {
  long long forward, input_gradient, weight_gradient;
};
// Multiply-adds since the start or the last reset. One nonzero at one output position for one sample is one multiply-add;
// positions where the kernel reaches into the zero padding are multiplied, and counted, like the others (as the usual FLOP
// count of a dense convolution does), while idle lanes and positions beyond the output are not counted.
Counters counters();
void reset_counters();

}  // namespace sparcl
