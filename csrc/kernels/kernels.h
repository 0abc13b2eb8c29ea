// What one instruction set offers: plain pointers and sizes, one table of functions for each unit.
//
// Axes: N batch, O output channels, I input channels, K nonzeros, V lanes of one vector.
// Every tensor is batch-last: [channel][row][column][N], N innermost. Strides count floats.
// A *tile* is a few output positions of V samples; its inputs are copied ("packed") once into
// [channel][phase][row][column][V] with the zero padding in place, so that each nonzero weight is one constant offset
// for every position of the tile, whatever the stride, the dilation and the edge.
#pragma once
#include <cstdint>

namespace sparcl {

struct TileShape {
  int rows, columns;
};

// The upper half of a float: bfloat16. Kernels read it as the float whose lower half is zero, and write the nearest, of two the
// even one.
struct Half {
  uint16_t bits;
};
#if defined(SPARCL_FLOATS_ALONE)
constexpr bool kHalves = false;  // a program that has none is a fifth smaller
#else
constexpr bool kHalves = true;
#endif

// Where the numbers of a tensor lie, which are to be read: floats or halves. Always inlined, so that no unit hands its code to
// another.
#define SPARCL_INLINED __attribute__((always_inline))
struct Numbers {
  const void* at = nullptr;
  bool half = false;
  SPARCL_INLINED Numbers(decltype(nullptr) = nullptr) {}
  SPARCL_INLINED Numbers(const float* x) : at(x) {}
  SPARCL_INLINED Numbers(const Half* x) : at(x), half(true) {}
  SPARCL_INLINED explicit operator bool() const { return at; }
  SPARCL_INLINED Numbers operator+(long n) const { return half ? Numbers(as<Half>() + n) : Numbers(as<float>() + n); }
  template <class T>
  SPARCL_INLINED const T* as() const {
    return static_cast<const T*>(at);
  }
};
// The same, which may be written, too.
struct Room : Numbers {
  SPARCL_INLINED Room(decltype(nullptr) = nullptr) {}
  SPARCL_INLINED Room(float* x) : Numbers(x) {}
  SPARCL_INLINED Room(Half* x) : Numbers(x) {}
  SPARCL_INLINED Room operator+(long n) const { return half ? Room(as<Half>() + n) : Room(as<float>() + n); }
  template <class T>
  SPARCL_INLINED T* as() const {
    return static_cast<T*>(const_cast<void*>(at));
  }
};

// A tensor, or max(x * scale + shift, floor) of one, channel by channel.
struct Scaled {
  Numbers x;
  const float *scale, *shift;  // [channels]; null: x as it is
  float floor;
};

// Copies `channels` channels of a window of `source` into a packed tile. Phase p of stride s holds rows p, p+s, p+2s...
struct Pack {
  Scaled source;    // x: lane 0 of the chunk, at row 0, column 0
  // Laid out like it, of the same kind, and added to it before the floor is; only to a source with a scale; x null: none.
  Scaled residual;
  long channel_stride, row_stride, column_stride;
  int channels, height, width;      // what exists of the source; outside it is zero
  int lanes;                        // of the V that exist, the others are zero
  int tail_column, tail_lanes;      // one source column may have fewer lanes still (-1: none)
  int row, column;                  // source position of the packed tile's corner; may be negative
  int row_step, column_step;        // stride
  int row_phases, column_phases;    // phases that are read at all
  int rows, columns;                // of each phase in the packed tile
  long packed_row, packed_phase;    // floats from one to the next; zeros at their edges may be shared
  float* packed;
};

// The lists that are walked over one packed tile, for one block of input channels. List i belongs to channels sequence[i] ..
// sequence[i] + G - 1, which share its offsets; its entries are [start[i], start[i + 1]), entry k has G values at k * G.
struct ListView {
  const int32_t *sequence, *start;
  int count;
  const uint32_t* offsets;  // floats from `packed`; kOffsetsBeyond more may be read behind the last list
};
constexpr int kOffsetsBeyond = 8;

// Convolves one packed tile.
struct Convolve {
  const float* packed;
  long packed_row;  // floats between two rows of a phase
  ListView lists;
  const float* values;
  float* partial;  // [channel][rows * columns][V], the sums between two blocks
  bool load_partial, store_partial;
  const float* bias;  // [channel], or null
  Room out;           // channel 0, the tile's first position, lane 0 of the chunk
  long out_channel, out_row, out_column;
  int rows, columns;  // positions that exist
  int lanes, tail_column, tail_lanes;
  bool streaming;     // whole vectors of `out` are aligned, and are to go past the caches
  // Added to the result: `add`, laid out like `out` (it may be `out`: then a list without an entry or bias leaves it alone), but
  // only where the sign in `where` is positive. Null: nothing; everywhere.
  Numbers add;           // of the kind of `out`
  const uint8_t* where;  // signs of channel 0
  long where_channel;    // bytes from one channel to the next
  long where_at;         // floats from a channel's first to that of `out`
};

// Adds one tile's share to the weight gradients of those lists whose channels lie in [first, last).
struct WeightGradient {
  const float* packed;
  long packed_row;
  const float* gradient;  // [last - first][rows * columns][V], packed
  int rows, columns;
  ListView lists;
  int first, last;
  float* sums;  // where the values would be
};

// Convolves one packed tile of the output gradient into the input gradient, and sums the weight gradients of entries
// [start[i], dotted[i]) of each list. An entry is one offset for `depth` nonzeros, of channels that lie packed_channel apart.
struct Backward {
  Convolve to;             // without bias
  long packed_channel;
  const int32_t* dotted;
  int first, last;         // only lists of these channels
  const float* x;          // the convolution's input, packed: [last - first][rows * columns of the register tile][V]
  float* sums;             // where the values would be; null: no weight gradient
};

struct Visited {
  long all, dotted;  // nonzeros
};

// The signs of a channel of `count` floats: bit i % 8 of byte i / 8 tells whether float i is positive. Four bytes are read at a time.
constexpr long sign_bytes(long count) { return (count + 7) / 8 + 3; }

// One channel of a fused BatchNorm, all its tensors of one kind: y = relu(x * scale + shift + residual).
struct NormForward {
  Numbers x;
  Scaled residual;  // x null: none; scale and shift of this channel
  Room y;
  uint8_t* signs;   // of y, or null
  long count;
  float scale, shift;
  bool relu;
};
struct NormBackward {
  Numbers x, y, gradient;     // y: null where the sign is in `signs` or, where that is null too, computed again from x
  const uint8_t* signs;
  long count;
  float scale, shift, mean;
  bool relu;
  float a, b, c;              // gx = a * g + b + c * (x - mean)
  Room gx, gresidual;         // either may be null
};

constexpr int kMaxShapes = 12;

struct Kernels {
  const char* name;
  int lanes;
  bool streams;  // whether `Convolve::streaming` is understood
  TileShape shapes[3][kMaxShapes];  // for output channels taken 1, 2 and 4 at a time; ends with {0, 0}
  void (*pack)(const Pack&);
  long (*convolve)(int block, int shape, const Convolve&);  // returns the list entries visited
  long (*weight_gradient)(int block, const WeightGradient&);
  Visited (*backward)(int depth, int shape, const Backward&);
  double (*sum)(const float* x, long count);
  void (*moments)(const Numbers& x, long count, double* mean, double* squares);  // squares: sum of (x - mean)^2
  void (*norm_forward)(const NormForward&);
  void (*norm_sums)(const NormBackward&, double* gradient, double* product);  // sum g, sum g * (x - mean)
  void (*norm_backward)(const NormBackward&);
  void (*add_scaled)(const Numbers& x, const Room& y, long count, float scale);  // y += scale * x
  void (*maximum)(const float* x, float* y, long count);                  // y = max(x, y), NaN kept
  void (*transpose)(const float* x, long rows, long columns, long x_row, float* y, long y_row);
};

const Kernels& kernels_plain();
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
const Kernels& kernels_neon();

// The unit in use: the best that the processor has, or the one that SPARCL_ISA names. Throws std::invalid_argument.
const Kernels& kernels();
const char* available_units();  // comma separated, best first
void select_unit(const char* name);  // for tests; null: as at the start

}  // namespace sparcl
