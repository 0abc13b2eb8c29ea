// The walks over the packed tiles of a pass.
#include <algorithm>
#include <atomic>
#include <cmath>

#include "engine/parallel.h"
#include "engine/pass.h"

namespace sparcl {
namespace {

// Parts of the positions whose weight gradients are summed apart: as many as fit into so many sums, but some for the threads. They
// depend on the sizes alone, so the bits do not depend on the threads.
constexpr long kSums = 1 << 18, kFewParts = 4, kManyParts = 16;
// Results of as many bytes go past the caches (a training step at .95 on two threads: 66 -> 62 ms; any limit below 8 MB does).
constexpr long kStreamed = 2 << 20;
// Nonzeros that are put in order, or back, at a time.
constexpr long kSpan = 16384;

}  // namespace

struct Pass::Place {
  int row, column;  // grid position of the group's first tile
  long lane;        // first lane of the chunk
  int lanes;
};

Scaled Term::from(long first, long channel, long at) const {
  return {data ? data + (first * channel + at) : data, scale ? scale + first : nullptr, scale ? shift + first : nullptr,
          relu ? 0.0f : -INFINITY};
}

ListView Pass::view(const Order& order, int block, const Output& output) const {
  const long list = (static_cast<long>(block) * channels_ + output.first) / order.block;
  return {order.sequence.data() + list, order.start.data() + list, output.count / order.block, order.offsets.data()};
}

Pass::Place Pass::place(const Walk& walk, long item) const {
  const long tile = item / walk.chunks, chunk = item % walk.chunks;
  Place place;
  place.row = static_cast<int>(tile / tile_columns_) * group_rows_ * tile_.rows;
  place.column = static_cast<int>(tile % tile_columns_) * group_columns_ * tile_.columns;
  place.lane = chunk * unit_->lanes;
  place.lanes = static_cast<int>(std::min<long>(unit_->lanes, walk.batch - place.lane));
  return place;
}

// Where the chunk of a place begins in a tensor, and the numbers from one column, row and channel to the next.
struct Pass::Laid {
  long at, column, row, channel;
};

Pass::Laid Pass::laid(const Walk& walk, const Place& place, bool half, int channels, int height, int width) const {
  if (!half) return {place.lane, walk.batch, walk.row(width), walk.row(width) * height};
  const long row = static_cast<long>(width) * unit_->lanes, channel = row * height;
  return {place.lane / unit_->lanes * channels * channel, unit_->lanes, row, channel};
}

// How channels [first, first + count) of a tensor of this size are packed, wherever the window lies.
Pack Pass::packing(const Walk& walk, const Place& place, const Source& x, int channels, int height, int width, int first, int count,
                   float* to) const {
  const Laid from = laid(walk, place, x.data.half, channels, height, width);
  Pack p;
  p.column_stride = from.column;
  p.row_stride = from.row;
  p.channel_stride = from.channel;
  p.source = x.from(first, from.channel, from.at);
  p.residual = x.residual.from(first, from.channel, from.at);
  p.channels = count;
  p.height = height;
  p.width = width;
  p.lanes = place.lanes;
  p.tail_column = walk.tail ? width - 1 : -1;
  p.tail_lanes = static_cast<int>(walk.tail);
  p.packed = to;
  return p;
}

void Pass::pack_input(const Walk& walk, const Place& place, const Source& x, int first, int count, float* to) const {
  Pack p = packing(walk, place, x, shape_.in_channels, shape_.in_height, shape_.in_width, first, count, to);
  p.row = place.row * shape_.row_step + row_min_;
  p.column = place.column * shape_.column_step + column_min_;
  p.row_step = shape_.row_step;
  p.column_step = shape_.column_step;
  p.row_phases = row_phases_;
  p.column_phases = column_phases_;
  p.rows = packed_rows_;
  p.columns = packed_columns_;
  p.packed_row = packed_row_;
  p.packed_phase = packed_phase_;
  unit_->pack(p);
}

// Channels [first, last) of a tensor that is laid out like the output, at the positions of one register tile, without a halo:
// [last - first][rows * columns][V].
void Pass::pack_tile(const Walk& walk, const Place& tile, const Output& output, const Source& x, int first, int last,
                     float* to) const {
  Pack p = packing(walk, tile, x, output.count, shape_.out_height, shape_.out_width, first, last - first, to);
  p.row = output.row + tile.row * shape_.out_row_step;
  p.column = output.column + tile.column * shape_.out_column_step;
  p.row_step = shape_.out_row_step;
  p.column_step = shape_.out_column_step;
  p.row_phases = p.column_phases = 1;
  p.rows = tile_.rows;
  p.columns = tile_.columns;
  p.packed_row = static_cast<long>(tile_.columns) * unit_->lanes;
  p.packed_phase = tile_.rows * p.packed_row;
  unit_->pack(p);
}

// Whether the result goes past the caches: it is large, and every vector of it (of halves, every two) begins on a whole line.
bool Pass::streams(const Walk& walk, const Room& out) const {
  const long bytes = (out.half ? 2L : 4L) * channels_ * grid_rows_ * grid_columns_ * walk.batch;  // of all outputs together
  const bool pairs = shape_.out_column_step == 1 && tile_.columns % 2 == 0 && shape_.out_width % 2 == 0;
  const bool whole = out.half ? pairs : walk.batch % unit_->lanes == 0 && !walk.tail;
  const bool aligned = reinterpret_cast<uintptr_t>(out.at) % (4 * unit_->lanes) == 0;
  return unit_->streams && whole && aligned && bytes >= kStreamed;
}

// What a pass to the input gradient is to do: the lists of channels [first, last), and their weight gradients on the way.
struct Pass::Gradients {
  const Source& x;  // the convolution's input
  float* sums;      // null: no weight gradients
  int first, last;
};

// Input channels' block `block` of one register tile. The convolution's input at the tile is packed at the first.
Visited Pass::back_tile(const Walk& walk, const Order& order, const Place& tile, const Output& output, int block, const Convolve& to,
                        const Gradients& gradients) const {
  Backward b;
  b.to = to;
  b.packed_channel = packed_channel_;
  b.dotted = order.dotted.data() + (to.lists.start - order.start.data());
  b.first = gradients.first;
  b.last = gradients.last;
  b.sums = gradients.sums;
  b.x = nullptr;
  if (gradients.sums) {
    const long cells = static_cast<long>(tile_.rows) * tile_.columns * unit_->lanes;
    float* x = scratch(4, channels_ * cells) + (output.first / output.count) * (b.last - b.first) * cells;
    if (block == 0) pack_tile(walk, tile, output, gradients.x, b.first, b.last, x);
    b.x = x;
  }
  return unit_->backward(order.depth, micro_, b);
}

Pass::Work Pass::convolve_item(const Walk& walk, const Order& order, long item, const float* values, const float* bias,
                               const Source& x, const Room& out, const Added& added, const Gradients* gradients) const {
  const Place at = place(walk, item);
  const int V = unit_->lanes, T = tile_.rows * tile_.columns;
  const bool at_once = group_rows_ * group_columns_ > 1;  // else each block is packed just before it is used
  float* packed = scratch(0, packed_floats(at_once));
  float* partial = blocks_ > 1 ? scratch(1, static_cast<long>(channels_) * T * V) : nullptr;
  if (at_once) pack_input(walk, at, x, 0, shape_.in_channels, packed);

  Convolve a;
  a.packed_row = packed_row_;
  a.values = values;
  const int written = shape_.outputs[0].count;  // channels
  const Laid to = laid(walk, at, out.half, written, shape_.out_height, shape_.out_width);
  a.out_column = shape_.out_column_step * to.column;
  a.out_row = shape_.out_row_step * to.row;
  a.out_channel = to.channel;
  a.lanes = at.lanes;
  a.tail_lanes = static_cast<int>(walk.tail);
  a.where_channel = sign_bytes(a.out_channel);
  a.where = added.where && out.half ? added.where + at.lane / V * written * a.where_channel : added.where;
  a.streaming = added.data.at != out.at && streams(walk, out);
  Work done{0, 0};
  for (int i = 0; i < group_rows_; ++i)
    for (int j = 0; j < group_columns_; ++j) {
      const int row = at.row + i * tile_.rows, column = at.column + j * tile_.columns;
      if (row >= grid_rows_ || column >= grid_columns_) continue;
      for (int b = 0; b < blocks_; ++b) {
        const int first = b * block_channels_, count = std::min(block_channels_, shape_.in_channels - first);
        if (!at_once) pack_input(walk, at, x, first, count, packed);
        a.packed = packed + (at_once ? first * packed_channel_ : 0) +
                   i * tile_.rows * packed_row_ + static_cast<long>(j) * tile_.columns * V;
        a.load_partial = b > 0;
        a.store_partial = b + 1 < blocks_;
        for (const Output& output : shape_.outputs) {
          a.rows = std::min(tile_.rows, output.rows - row);
          a.columns = std::min(tile_.columns, output.columns - column);
          if (a.rows <= 0 || a.columns <= 0) continue;
          a.lists = view(order, b, output);
          a.partial = partial ? partial + static_cast<long>(output.first) * T * V : nullptr;
          a.bias = bias;
          const long first = output.row * to.row + row * a.out_row + output.column * to.column + column * a.out_column;
          a.where_at = out.half ? first : first + to.at;
          a.out = out + (first + to.at);
          a.add = added.data ? added.data + (first + to.at) : added.data;
          a.tail_column = walk.tail && column + a.columns == output.columns ? a.columns - 1 : -1;
          const Visited visited = gradients ? back_tile(walk, order, {row, column, at.lane, at.lanes}, output, b, a, *gradients)
                                            : Visited{unit_->convolve(order.block, micro_, a), 0};
          const long long cells = a.rows * ((a.columns - (a.tail_column >= 0)) * static_cast<long>(at.lanes) +
                                            (a.tail_column >= 0 ? walk.tail : 0));
          done.input += visited.all * cells;
          done.weights += visited.dotted * cells;
        }
      }
    }
  return done;
}

// The values in the order in which they are walked.
const float* Pass::ordered(const Order& order, const float* values, int threads) const {
  const long nonzeros = order.nonzeros();
  float* to = scratch(2, nonzeros);
  const int32_t* canonical = order.canonical.data();
  parallel_for(threads, ceil_div(nonzeros, kSpan), [&](long span) {
    const long last = std::min(nonzeros, (span + 1) * kSpan);
    for (long k = span * kSpan; k < last; ++k) to[k] = values[canonical[k]];
  });
  return to;
}

long long Pass::convolve(const Walk& walk, const Order& order, const float* values, const float* bias, const Source& x, const Room& out,
                         int threads, const Added& added) const {
  std::atomic<long long> done{0};
  const float* walked = ordered(order, values, threads);
  parallel_for(threads, tiles() * walk.chunks, [&](long item) {
    const Work work = convolve_item(walk, order, item, walked, bias, x, out, added, nullptr);
    done.fetch_add(work.input, std::memory_order_relaxed);
  });
  return done.load();
}

long long Pass::weight_gradient_item(const Walk& walk, const Order& order, const Place& at, int first, int last,
                                     const Source& x, const Numbers& gy, float* sums) const {
  const int V = unit_->lanes;
  const long cells = static_cast<long>(tile_.rows) * tile_.columns;
  const bool at_once = group_rows_ * group_columns_ > 1;
  float* packed = scratch(0, packed_floats(at_once));
  float* gradient = scratch(1, (last - first) * cells * V);
  if (at_once) pack_input(walk, at, x, 0, shape_.in_channels, packed);
  const Output& output = shape_.outputs[0];
  WeightGradient a;
  a.packed_row = packed_row_;
  a.gradient = gradient;
  a.rows = tile_.rows;
  a.columns = tile_.columns;
  a.first = first;
  a.last = last;
  a.sums = sums;
  long long done = 0;
  for (int i = 0; i < group_rows_; ++i)
    for (int j = 0; j < group_columns_; ++j) {
      const Place tile{at.row + i * tile_.rows, at.column + j * tile_.columns, at.lane, at.lanes};
      const int rows = std::min(tile_.rows, output.rows - tile.row);
      const int columns = std::min(tile_.columns, output.columns - tile.column);
      if (rows <= 0 || columns <= 0) continue;
      pack_tile(walk, tile, output, gy, first, last, gradient);
      const bool tail = walk.tail && tile.column + columns == output.columns;
      const long counted = rows * ((columns - tail) * static_cast<long>(at.lanes) + (tail ? walk.tail : 0));
      for (int b = 0; b < blocks_; ++b) {
        const int begin = b * block_channels_;
        if (!at_once) pack_input(walk, at, x, begin, std::min(block_channels_, shape_.in_channels - begin), packed);
        a.packed = packed + (at_once ? begin * packed_channel_ : 0) +
                   i * tile_.rows * packed_row_ + static_cast<long>(j) * tile_.columns * V;
        a.lists = view(order, b, output);
        done += static_cast<long long>(unit_->weight_gradient(order.block, a)) * counted;
      }
    }
  return done;
}

// Calls body(first item, last item, sums, first channel, last channel) for parts of the positions, whose `sums` are then added
// up in order into gvalues. Fewer parts than threads: the lists are divided as well, which changes no sum.
template <class Body>
void Pass::sum_parts(const Walk& walk, const Order& order, float* gvalues, int threads, Body body) const {
  const long items = tiles() * walk.chunks, nonzeros = order.nonzeros();
  const long parts = std::min(items, std::clamp(kSums / std::max(1L, nonzeros), kFewParts, kManyParts));
  const int channels = shape_.outputs[0].count;
  const long slices = std::max<long>(1, std::min<long>(threads > parts ? ceil_div(threads, parts) : 1, channels / 4));
  float* sums = scratch(3, parts * nonzeros);  // slot 2 holds the values
  if (slices > 1) std::fill(sums, sums + parts * nonzeros, 0.0f);
  parallel_for(threads, parts * slices, [&](long work) {
    const long part = work / slices, slice = work % slices;
    const int first = static_cast<int>(channels / 4 * slice / slices * 4);
    const int last = slice + 1 == slices ? channels : static_cast<int>(channels / 4 * (slice + 1) / slices * 4);
    float* own = sums + part * nonzeros;
    if (slices == 1) std::fill(own, own + nonzeros, 0.0f);
    body(items * part / parts, items * (part + 1) / parts, own, first, last);
  });
  const int32_t* canonical = order.canonical.data();
  parallel_for(threads, ceil_div(nonzeros, kSpan), [&](long span) {
    const long last = std::min(nonzeros, (span + 1) * kSpan);
    for (long k = span * kSpan; k < last; ++k) {
      float sum = sums[k];
      for (long part = 1; part < parts; ++part) sum += sums[part * nonzeros + k];
      gvalues[canonical[k]] = sum;
    }
  });
}

long long Pass::weight_gradient(const Walk& walk, const Order& order, const Source& x, const Numbers& gy, float* gvalues,
                                int threads) const {
  std::atomic<long long> done{0};
  sum_parts(walk, order, gvalues, threads, [&](long item, long end, float* sums, int first, int last) {
    long long own = 0;
    for (; item < end; ++item) own += weight_gradient_item(walk, order, place(walk, item), first, last, x, gy, sums);
    done.fetch_add(own, std::memory_order_relaxed);
  });
  return done.load();
}

Pass::Work Pass::backward(const Walk& walk, const Order& order, const float* values, const Source& x, const Numbers& gy, const Room& gx,
                          float* gvalues, int threads, const Added& added) const {
  std::atomic<long long> input{0}, weights{0};
  const float* walked = ordered(order, values, threads);
  const auto run = [&](long item, const Gradients& gradients) {
    const Work work = convolve_item(walk, order, item, walked, nullptr, gy, gx, added, &gradients);
    input.fetch_add(work.input, std::memory_order_relaxed);
    weights.fetch_add(work.weights, std::memory_order_relaxed);
  };
  if (gvalues)
    sum_parts(walk, order, gvalues, threads, [&](long item, long end, float* sums, int first, int last) {
      for (; item < end; ++item) run(item, {x, sums, first, last});
    });
  else
    parallel_for(threads, tiles() * walk.chunks, [&](long item) { run(item, {x, nullptr, 0, shape_.outputs[0].count}); });
  return {input.load(), weights.load()};
}

}  // namespace sparcl
