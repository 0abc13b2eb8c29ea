// One sparse convolution over packed tiles: which tiles there are, where their inputs lie, in which order nonzeros are visited.
// Forward, input gradient and weight gradient are all passes; they differ in their lists, taps and outputs.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace sparcl {

// The nonzeros, by list (one for each output channel of the pass), ascending by input channel, then tap.
struct Lists {
  int channels = 0;                // lists
  int block = 1;                   // consecutive channels that share their positions: 1, 2 or 4
  std::vector<int32_t> start;      // [channels + 1]
  std::vector<int32_t> key;        // [K] input channel of the pass * taps + tap
  std::vector<int32_t> canonical;  // [K] place in `values`; empty: the same order
};

// The input that tap t needs for grid position (u, v): row u * row_step + row, column v * column_step + column.
struct Tap {
  int row, column;
};

// Channels [first, first + count) of the lists write rows row + u * row_step, u < rows, likewise columns.
struct Output {
  int first, count;
  int row, column, rows, columns;
};

struct PassShape {
  int in_channels, in_height, in_width;
  int row_step, column_step;
  std::vector<Tap> taps;
  std::vector<Output> outputs;
  int out_height, out_width, out_row_step, out_column_step;
};

// How a tensor is walked: as it is, or as rows of vectors where positions and samples need not be told apart.
struct Walk {
  bool flat;    // 1x1, stride 1, no padding: height 1, width = vectors of a channel
  long batch;   // floats of one column that are data: N, or V where flat
  long tail;    // lanes of the last column where flat and not full, else 0
  long chunks;  // vectors of one column: ceil(N / V), or 1 where flat
};

// A pass's input: a tensor, or what is made of one on the way in: relu(x * scale + shift), channel by channel (a BatchNorm's
// result, which then need not be kept).
struct Source {
  const float* data;
  const float *scale, *shift;  // [channels], or both null
  bool relu;                   // only with a scale
  Source(const float* x, const float* by = nullptr, const float* plus = nullptr, bool positive = false)
      : data(x), scale(by), shift(plus), relu(positive) {}
};

// What is added to a pass's result, laid out like it: `data` (null: nothing; it may be the result's own memory), but only where
// `where` is positive (null: everywhere), which is how a gradient comes back through a ReLU.
struct Added {
  const float *data = nullptr, *where = nullptr;
};

// A pass for one size of input on one unit: tiles, packed layout, offsets.
class Pass {
 public:
  Pass(const Kernels& unit, const PassShape& shape, const Lists& lists, bool gradient_of_weights);

  // The lists in the order in which they are walked, so that memory is read in one stream: block of input channels after
  // block, in each the outputs, in each the channels by the length of their lists, so that the processor foresees where a
  // list ends (a wrong guess costs as much as two nonzeros).
  struct Order {
    int block;
    std::vector<int32_t> sequence;   // [blocks][channels / block] first channel of the list, within its output
    std::vector<int32_t> start;      // [blocks * channels / block + 1]
    std::vector<uint32_t> offsets;   // [K / block]
    std::vector<int32_t> canonical;  // [K / block][block] place in `values`
    long nonzeros() const { return static_cast<long>(canonical.size()); }
  };
  Order order(const Lists& lists) const;

  long tiles() const { return static_cast<long>(tile_rows_) * tile_columns_; }

  // Both return the multiply-adds.
  long long convolve(const Walk& walk, const float* values, const float* bias, const Source& x, float* out, int threads,
                     const Added& added = {}) const;
  // Writes gvalues at the nonzeros of `order`, and nowhere else.
  long long weight_gradient(const Walk& walk, const Order& order, const Source& x, const float* gy, float* gvalues,
                            int threads) const;

 private:
  struct Place;  // of a tile
  ListView view(const Order& order, int block, const Output& output) const;
  Place place(const Walk& walk, long item) const;
  void pack_input(const Walk& walk, const Place& place, const Source& x, int first, int count, float* to) const;
  bool streams(const Walk& walk, const float* out) const;
  long long convolve_item(const Walk& walk, long item, const float* values, const float* bias, const Source& x, float* out,
                          const Added& added) const;
  long long weight_gradient_item(const Walk& walk, const Order& order, const Place& place, int first, int last,
                                 const Source& x, const float* gy, float* sums) const;
  void lay_out();
  long packed_floats(bool all) const;
  void choose_tiles(const Lists& lists, bool gradient_of_weights);

  const Kernels* unit_;
  PassShape shape_;
  int channels_;                       // lists
  int row_min_, column_min_;           // of the taps
  int row_span_, column_span_;         // max - min
  int row_phases_, column_phases_;
  int grid_rows_, grid_columns_;       // the largest of the outputs
  int micro_;                          // index of the register tile's shape
  TileShape tile_;                     // register tile
  int group_rows_, group_columns_;     // register tiles packed together
  int tile_rows_, tile_columns_;       // groups in the grid
  int packed_rows_, packed_columns_;   // of each phase of a group
  long packed_row_, packed_phase_, packed_channel_;  // floats from one to the next
  int block_channels_, blocks_;        // input channels walked together
  Order order_;
};

}  // namespace sparcl
