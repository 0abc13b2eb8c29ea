// One sparse convolution over packed tiles: which tiles there are, where their inputs lie, in which order nonzeros are visited.
// Forward, input gradient and weight gradient are all passes; they differ in their lists, taps and outputs.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/kernels.h"

namespace sparcl {

// How the nonzeros are listed, one list for each output channel of the pass. Seen from the other side, consecutive channels
// that share their positions are consecutive input channels: one entry then stands for `depth` nonzeros.
struct Form {
  int channels = 0;  // lists
  int block = 1;     // consecutive channels that share their positions: 1, 2 or 4
  int depth = 1;     // consecutive input channels of an entry: 1, or 2 or 4 where block is 1
  long nonzeros = 0;
};

// The nonzeros, each list ascending by input channel, then tap.
struct Lists : Form {
  std::vector<int32_t> start;      // [channels + 1]
  std::vector<int32_t> key;        // [K / depth] (first) input channel of the pass * taps + tap
  std::vector<int32_t> canonical;  // [K / depth][depth] place in `values`; empty: the same order
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
  long row(long columns) const { return flat && tail ? (columns - 1) * batch + tail : columns * batch; }  // floats
};

// A tensor, or relu(x * scale + shift) of one, channel by channel: a BatchNorm's result, which then need not be written.
struct Term {
  Numbers data;
  const float *scale, *shift;  // [channels], or both null
  bool relu;                   // only with a scale
  Term(const Numbers& x = nullptr, const float* by = nullptr, const float* plus = nullptr, bool positive = false)
      : data(x), scale(by), shift(plus), relu(positive) {}
  Term(const float* x) : Term(Numbers(x)) {}
  // Channels [first, ...), `at` floats into each.
  Scaled from(long first, long channel, long at) const;
};

// A pass's input: a tensor, or what is made of one on the way in: relu(x * scale + shift + residual).
struct Source : Term {
  Term residual;  // only with a scale; data null: none
  Source(const Numbers& x) : Term(x) {}
  Source(const float* x) : Term(x) {}
  Source(const Term& term, const Term& plus = {}) : Term(term), residual(plus) {}
};

// What is added to a pass's result, laid out like it: `data` (null: nothing; it may be the result's own memory), but only where
// `where` says so (signs of each channel, see sign_bytes; null: everywhere), which is how a gradient comes back through a ReLU.
struct Added {
  Numbers data;
  const uint8_t* where = nullptr;
};

// Both gradients, or that of the input, come with kBack; the weights' alone with kWeights.
enum class Purpose { kForward, kBack, kWeights };

// A pass for one size of input on one unit: tiles, packed layout, offsets.
class Pass {
 public:
  Pass(const Kernels& unit, const PassShape& shape, const Form& form, Purpose purpose);

  // The lists in the order in which they are walked, so that memory is read in one stream: block of input channels after
  // block, in each the outputs, in each the channels by the length of their lists, so that the processor foresees where a
  // list ends (a wrong guess costs as much as two nonzeros). Of a list, entries whose weight gradient is wanted come first.
  struct Order {
    int block, depth;
    std::vector<int32_t> sequence;   // [blocks][channels / block] first channel of the list, within its output
    std::vector<int32_t> start;      // [blocks * channels / block + 1]
    std::vector<int32_t> dotted;     // [blocks * channels / block] end of the entries with a weight gradient
    std::vector<uint32_t> offsets;   // [K / block / depth], then kOffsetsBeyond zeros
    std::vector<int32_t> canonical;  // [K / block / depth][block or depth] place in `values`
    long nonzeros() const { return static_cast<long>(canonical.size()); }
  };
  // dotted: [K] of `values`, whose weight gradients are wanted, the same for all nonzeros of an entry; null: all.
  Order order(const Lists& lists, const uint8_t* dotted = nullptr) const;

  long tiles() const { return static_cast<long>(tile_rows_) * tile_columns_; }

  // Returns the multiply-adds, as do the others.
  long long convolve(const Walk& walk, const Order& order, const float* values, const float* bias, const Source& x, const Room& out,
                     int threads, const Added& added = {}) const;
  // Writes gvalues at the nonzeros of `order`, and nowhere else.
  long long weight_gradient(const Walk& walk, const Order& order, const Source& x, const Numbers& gy, float* gvalues,
                            int threads) const;
  // Of the pass from output gradient to input gradient: both gradients. x: the convolution's input; gvalues: null, or written at
  // the nonzeros of `order` whose weight gradient is wanted.
  struct Work {
    long long input, weights;
  };
  Work backward(const Walk& walk, const Order& order, const float* values, const Source& x, const Numbers& gy, const Room& gx,
                float* gvalues, int threads, const Added& added = {}) const;

 private:
  struct Place;  // of a tile
  struct Laid;
  struct Gradients;
  ListView view(const Order& order, int block, const Output& output) const;
  Place place(const Walk& walk, long item) const;
  const float* ordered(const Order& order, const float* values, int threads) const;
  template <class Body>
  void sum_parts(const Walk& walk, const Order& order, float* gvalues, int threads, Body body) const;
  Laid laid(const Walk& walk, const Place& place, bool half, int channels, int height, int width) const;
  Pack packing(const Walk& walk, const Place& place, const Source& x, int channels, int height, int width, int first, int count,
               float* to) const;
  void pack_input(const Walk& walk, const Place& place, const Source& x, int first, int count, float* to) const;
  Visited back_tile(const Walk& walk, const Order& order, const Place& tile, const Output& output, int block, const Convolve& to,
                    const Gradients& gradients) const;
  void pack_tile(const Walk& walk, const Place& tile, const Output& output, const Source& x, int first, int last, float* to) const;
  bool streams(const Walk& walk, const Room& out) const;
  Work convolve_item(const Walk& walk, const Order& order, long item, const float* values, const float* bias, const Source& x,
                     const Room& out, const Added& added, const Gradients* gradients) const;
  long long weight_gradient_item(const Walk& walk, const Order& order, const Place& place, int first, int last,
                                 const Source& x, const Numbers& gy, float* sums) const;
  void choose_tile(const Form& form, Purpose purpose);
  void choose_blocks(const Form& form, Purpose purpose);
  void choose_groups();
  void lay_out();
  int phase_rows(int rows) const;
  int phase_columns(int columns) const;
  long channel_bytes(int rows, int columns) const;
  long packed_floats(bool all) const;

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
};

inline void clear(const Room& x, long count) { std::memset(x.as<void>(), 0, static_cast<size_t>(count) * (x.half ? 2 : 4)); }
inline int ceil_div(long a, long b) { return static_cast<int>((a + b - 1) / b); }

}  // namespace sparcl
