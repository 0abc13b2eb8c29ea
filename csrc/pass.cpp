#include "pass.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "parallel.h"

namespace sparcl {
namespace {

// What an input tile may fill of the first cache (48 KB where measured), and a group of tiles of the second (1 MB).
constexpr long kFirstCache = 24 * 1024, kSecondCache = 512 * 1024;
// Nonzeros that a list should have within a block of channels: with fewer, carrying sums from block to block (of the weight
// gradient: adding up lanes) costs more than the first cache gives.
constexpr long kShortList = 14, kShortDot = 6;
// The register tile of the weight gradient is only a loop over positions, so it may be longer.
constexpr int kDotRows = 4, kDotColumns = 8;
// Parts of the positions whose weight gradients are summed apart. Fixed, so that the bits do not depend on the threads.
constexpr long kParts = 4;
// Results of as many bytes go past the caches (a training step at .95 on two threads: 66 -> 62 ms; any limit below 8 MB does).
constexpr long kStreamed = 2 << 20;
// Nonzeros that are put in order, or back, at a time.
constexpr long kSpan = 16384;

int ceil_div(long a, long b) { return static_cast<int>((a + b - 1) / b); }

}  // namespace

struct Pass::Place {
  int row, column;  // grid position of the group's first tile
  long lane;        // first lane of the chunk
  int lanes;
};

Pass::Pass(const Kernels& unit, const PassShape& shape, const Lists& lists, bool gradient_of_weights)
    : unit_(&unit), shape_(shape), channels_(lists.channels) {
  row_min_ = column_min_ = 1 << 30;
  int row_max = -(1 << 30), column_max = row_max;
  for (const Tap& tap : shape_.taps) {
    row_min_ = std::min(row_min_, tap.row);
    row_max = std::max(row_max, tap.row);
    column_min_ = std::min(column_min_, tap.column);
    column_max = std::max(column_max, tap.column);
  }
  row_span_ = row_max - row_min_;
  column_span_ = column_max - column_min_;
  row_phases_ = std::min(shape_.row_step, row_span_ + 1);
  column_phases_ = std::min(shape_.column_step, column_span_ + 1);
  grid_rows_ = grid_columns_ = 0;
  for (const Output& output : shape_.outputs) {
    grid_rows_ = std::max(grid_rows_, output.rows);
    grid_columns_ = std::max(grid_columns_, output.columns);
  }
  choose_tiles(lists, gradient_of_weights);
  if (!gradient_of_weights) order_ = order(lists);  // a weight gradient is given one: that of the chosen nonzeros
}

void Pass::choose_tiles(const Lists& lists, bool gradient_of_weights) {
  const TileShape* shapes = unit_->shapes[lists.block == 4 ? 2 : lists.block == 2 ? 1 : 0];
  double best = 1e300;
  for (int s = 0; s < kMaxShapes && shapes[s].rows > 0; ++s) {
    const double tiles = static_cast<double>(ceil_div(grid_rows_, shapes[s].rows)) * ceil_div(grid_columns_, shapes[s].columns);
    const double cost = tiles * (shapes[s].rows * shapes[s].columns + 1.5);
    if (cost < best) best = cost, micro_ = s, tile_ = shapes[s];
  }
  if (gradient_of_weights) {  // the loop over positions is not unrolled: any shape will do
    tile_.rows = std::min(grid_rows_, kDotRows);
    tile_.columns = std::min(grid_columns_, std::max(kDotColumns, 16 / tile_.rows));
  }
  const long vector_bytes = 4L * unit_->lanes;
  const auto phase_rows = [&](int rows) { return rows + row_span_ / shape_.row_step; };
  const auto phase_columns = [&](int columns) { return columns + column_span_ / shape_.column_step; };
  const auto channel_bytes = [&](int rows, int columns) {
    return vector_bytes * row_phases_ * column_phases_ * phase_rows(rows) * phase_columns(columns);
  };
  const long taken = std::max<long>(1, static_cast<long>(lists.key.size()) / std::max(1, lists.channels));
  const long for_length = ((gradient_of_weights ? kShortDot : kShortList) * shape_.in_channels + taken - 1) / taken;
  long channels = std::max(kFirstCache / channel_bytes(tile_.rows, tile_.columns), for_length);
  if (lists.block > 1) channels = shape_.in_channels;  // each load serves several sums: the second cache is fast enough
  block_channels_ = static_cast<int>(std::min<long>(std::max<long>(1, channels), shape_.in_channels));
  blocks_ = ceil_div(shape_.in_channels, block_channels_);

  group_rows_ = group_columns_ = 1;
  const int all_rows = ceil_div(grid_rows_, tile_.rows), all_columns = ceil_div(grid_columns_, tile_.columns);
  for (;;) {  // pack as many tiles together as the second cache holds: their halos are shared
    const bool wide = group_columns_ <= group_rows_ ? group_columns_ < all_columns : group_rows_ >= all_rows;
    const int rows = wide ? group_rows_ : group_rows_ * 2, columns = wide ? group_columns_ * 2 : group_columns_;
    if (rows > 2 * all_rows || columns > 2 * all_columns) break;
    if (group_rows_ >= all_rows && group_columns_ >= all_columns) break;
    if (channel_bytes(rows * tile_.rows, columns * tile_.columns) * shape_.in_channels > kSecondCache) break;
    group_rows_ = std::min(rows, all_rows);
    group_columns_ = std::min(columns, all_columns);
  }
  tile_rows_ = ceil_div(all_rows, group_rows_);
  tile_columns_ = ceil_div(all_columns, group_columns_);
  packed_rows_ = phase_rows(group_rows_ * tile_.rows);
  packed_columns_ = phase_columns(group_columns_ * tile_.columns);
  lay_out();
}

// Distances in a packed tile. One that holds the whole image has zeros at both ends of every row: the last ones of a row can be
// the first ones of the next, and likewise the last rows of a channel. For 4x4 images that is 25 vectors instead of 36.
void Pass::lay_out() {
  int columns = packed_columns_, rows = packed_rows_;
  if (row_phases_ * column_phases_ == 1 && shape_.row_step * shape_.column_step == 1) {
    const int left = std::max(0, -column_min_), right = packed_columns_ - left - shape_.in_width;
    if (tile_columns_ == 1) columns -= std::max(0, std::min(left, right));
    const int top = std::max(0, -row_min_), bottom = packed_rows_ - top - shape_.in_height;
    if (tile_rows_ == 1) rows -= std::max(0, std::min(top, bottom));
  }
  packed_row_ = static_cast<long>(columns) * unit_->lanes;
  packed_phase_ = rows * packed_row_;
  packed_channel_ = packed_phase_ * row_phases_ * column_phases_;
}

// Of a packed group: all input channels, or one block of them. Shared edges leave the last one's hanging over.
long Pass::packed_floats(bool all) const {
  const long overhang = static_cast<long>(packed_rows_) * packed_columns_ * unit_->lanes;
  return packed_channel_ * (all ? shape_.in_channels : block_channels_) + overhang;
}

Pass::Order Pass::order(const Lists& lists) const {
  const int taps = static_cast<int>(shape_.taps.size());
  std::vector<uint32_t> table(static_cast<size_t>(shape_.in_channels) * taps);
  for (int c = 0; c < shape_.in_channels; ++c)
    for (int t = 0; t < taps; ++t) {
      const int r = shape_.taps[t].row - row_min_, q = shape_.taps[t].column - column_min_;
      const long phase = static_cast<long>(r % shape_.row_step) * column_phases_ + q % shape_.column_step;
      table[static_cast<size_t>(c) * taps + t] =
          static_cast<uint32_t>((c % block_channels_) * packed_channel_ + phase * packed_phase_ +
                                r / shape_.row_step * packed_row_ + q / shape_.column_step * unit_->lanes);
    }
  Order order;
  const int G = order.block = lists.block;
  const int32_t* key = lists.key.data();
  std::vector<int32_t> at(lists.start.begin(), lists.start.end() - 1), end(at);  // what each list has left, and in this block
  order.start.push_back(0);
  order.offsets.reserve(lists.key.size() / G);
  order.canonical.reserve(lists.key.size());
  for (int b = 0; b < blocks_; ++b)
    for (const Output& output : shape_.outputs) {
      const int32_t limit = static_cast<int32_t>(std::min<long>((b + 1L) * block_channels_, shape_.in_channels) * taps);
      for (int c = output.first; c < output.first + output.count; ++c)
        end[c] = static_cast<int32_t>(std::lower_bound(key + at[c], key + lists.start[c + 1], limit) - key);
      const auto begin = static_cast<long>(order.sequence.size());
      for (int c = 0; c < output.count; c += G) order.sequence.push_back(c);
      const auto length = [&](int32_t c) { return end[output.first + c] - at[output.first + c]; };
      std::stable_sort(order.sequence.begin() + begin, order.sequence.end(),
                       [&](int32_t c, int32_t d) { return length(c) < length(d); });
      for (auto c = order.sequence.begin() + begin; c != order.sequence.end(); ++c) {
        const int32_t first = output.first + *c;
        for (int32_t k = at[first]; k < end[first]; ++k) {
          order.offsets.push_back(table[static_cast<size_t>(key[k])]);
          for (int g = 0; g < G; ++g) {
            const int32_t same = k - at[first] + at[first + g];
            order.canonical.push_back(lists.canonical.empty() ? same : lists.canonical[same]);
          }
        }
        order.start.push_back(static_cast<int32_t>(order.offsets.size()));
      }
      for (int c = output.first; c < output.first + output.count; ++c) at[c] = end[c];
    }
  return order;
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

void Pass::pack_input(const Walk& walk, const Place& place, const Source& x, int first, int count, float* to) const {
  Pack p;
  p.column_stride = walk.batch;
  p.row_stride = walk.flat && walk.tail ? (shape_.in_width - 1) * walk.batch + walk.tail : shape_.in_width * walk.batch;
  p.channel_stride = p.row_stride * shape_.in_height;
  p.source = x.data + first * p.channel_stride + place.lane;
  p.scale = x.scale ? x.scale + first : nullptr;
  p.shift = x.scale ? x.shift + first : nullptr;
  p.floor = x.relu ? 0.0f : -INFINITY;
  p.channels = count;
  p.height = shape_.in_height;
  p.width = shape_.in_width;
  p.lanes = place.lanes;
  p.tail_column = walk.tail ? shape_.in_width - 1 : -1;
  p.tail_lanes = static_cast<int>(walk.tail);
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
  p.packed = to;
  unit_->pack(p);
}

// Whether the result goes past the caches: it is large, and every vector of it begins on a whole one.
bool Pass::streams(const Walk& walk, const float* out) const {
  const long bytes = 4L * channels_ * grid_rows_ * grid_columns_ * walk.batch;  // of all outputs together
  const bool aligned = walk.batch % unit_->lanes == 0 && !walk.tail && reinterpret_cast<uintptr_t>(out) % (4 * unit_->lanes) == 0;
  return unit_->streams && aligned && bytes >= kStreamed;
}

long long Pass::convolve_item(const Walk& walk, long item, const float* values, const float* bias, const Source& x, float* out,
                              const Added& added) const {
  const Place at = place(walk, item);
  const int V = unit_->lanes, T = tile_.rows * tile_.columns;
  const bool at_once = group_rows_ * group_columns_ > 1;  // else each block is packed just before it is used
  float* packed = scratch(0, packed_floats(at_once));
  float* partial = blocks_ > 1 ? scratch(1, static_cast<long>(channels_) * T * V) : nullptr;
  if (at_once) pack_input(walk, at, x, 0, shape_.in_channels, packed);

  Convolve a;
  a.packed_row = packed_row_;
  a.values = values;
  a.out_column = shape_.out_column_step * walk.batch;
  const long out_row = walk.flat && walk.tail ? (shape_.out_width - 1) * walk.batch + walk.tail : shape_.out_width * walk.batch;
  a.out_row = shape_.out_row_step * out_row;
  a.out_channel = out_row * shape_.out_height;
  a.lanes = at.lanes;
  a.tail_lanes = static_cast<int>(walk.tail);
  a.streaming = added.data != out && streams(walk, out);
  long long done = 0;
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
          a.lists = view(order_, b, output);
          a.partial = partial ? partial + static_cast<long>(output.first) * T * V : nullptr;
          a.bias = bias;
          a.out = out + (output.row * out_row) + static_cast<long>(row) * a.out_row + output.column * walk.batch +
                  column * a.out_column + at.lane;
          a.add = added.data ? added.data + (a.out - out) : nullptr;
          a.where = added.where ? added.where + (a.out - out) : nullptr;
          a.tail_column = walk.tail && column + a.columns == output.columns ? a.columns - 1 : -1;
          const long visited = unit_->convolve(order_.block, micro_, a);
          const long cells = a.rows * ((a.columns - (a.tail_column >= 0)) * static_cast<long>(at.lanes) +
                                       (a.tail_column >= 0 ? walk.tail : 0));
          done += static_cast<long long>(visited) * cells;
        }
      }
    }
  return done;
}

long long Pass::convolve(const Walk& walk, const float* values, const float* bias, const Source& x, float* out,
                         int threads, const Added& added) const {
  std::atomic<long long> done{0};
  const long nonzeros = order_.nonzeros();
  float* ordered = scratch(2, nonzeros);
  const int32_t* canonical = order_.canonical.data();
  parallel_for(threads, ceil_div(nonzeros, kSpan), [&](long span) {
    const long last = std::min(nonzeros, (span + 1) * kSpan);
    for (long k = span * kSpan; k < last; ++k) ordered[k] = values[canonical[k]];
  });
  parallel_for(threads, tiles() * walk.chunks, [&](long item) {
    done.fetch_add(convolve_item(walk, item, ordered, bias, x, out, added), std::memory_order_relaxed);
  });
  return done.load();
}

long long Pass::weight_gradient_item(const Walk& walk, const Order& order, const Place& at, int first, int last,
                                     const Source& x, const float* gy, float* sums) const {
  const int V = unit_->lanes;
  const long cells = static_cast<long>(tile_.rows) * tile_.columns;
  const bool at_once = group_rows_ * group_columns_ > 1;
  float* packed = scratch(0, packed_floats(at_once));
  float* gradient = scratch(1, (last - first) * cells * V);
  if (at_once) pack_input(walk, at, x, 0, shape_.in_channels, packed);
  const Output& output = shape_.outputs[0];
  const long out_row = walk.flat && walk.tail ? (output.columns - 1) * walk.batch + walk.tail : output.columns * walk.batch;

  Pack g{};
  g.column_stride = walk.batch;
  g.row_stride = out_row;
  g.channel_stride = out_row * output.rows;
  g.source = gy + first * g.channel_stride + at.lane;
  g.channels = last - first;
  g.height = output.rows;
  g.width = output.columns;
  g.lanes = at.lanes;
  g.tail_column = walk.tail ? output.columns - 1 : -1;
  g.tail_lanes = static_cast<int>(walk.tail);
  g.row_step = g.column_step = g.row_phases = g.column_phases = 1;
  g.rows = tile_.rows;
  g.columns = tile_.columns;
  g.packed_row = static_cast<long>(tile_.columns) * V;
  g.packed_phase = cells * V;
  g.packed = gradient;

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
      g.row = at.row + i * tile_.rows;
      g.column = at.column + j * tile_.columns;
      const int rows = std::min(tile_.rows, output.rows - g.row), columns = std::min(tile_.columns, output.columns - g.column);
      if (rows <= 0 || columns <= 0) continue;
      unit_->pack(g);
      const bool tail = walk.tail && g.column + columns == output.columns;
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

long long Pass::weight_gradient(const Walk& walk, const Order& order, const Source& x, const float* gy, float* gvalues,
                                int threads) const {
  const long items = tiles() * walk.chunks, parts = std::min(items, kParts), nonzeros = order.nonzeros();
  // Fewer parts than threads: the lists are divided as well, which changes no sum.
  const long slices = std::max<long>(1, std::min<long>(threads > parts ? ceil_div(threads, parts) : 1, channels_ / 4));
  float* sums = scratch(2, parts * nonzeros);
  std::fill(sums, sums + parts * nonzeros, 0.0f);
  std::atomic<long long> done{0};
  parallel_for(threads, parts * slices, [&](long work) {
    const long part = work / slices, slice = work % slices;
    const int first = static_cast<int>(channels_ / 4 * slice / slices * 4);
    const int last = slice + 1 == slices ? channels_ : static_cast<int>(channels_ / 4 * (slice + 1) / slices * 4);
    long long own = 0;
    for (long item = items * part / parts; item < items * (part + 1) / parts; ++item)
      own += weight_gradient_item(walk, order, place(walk, item), first, last, x, gy, sums + part * nonzeros);
    done.fetch_add(own, std::memory_order_relaxed);
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
  return done.load();
}

}  // namespace sparcl
