// Which tiles a pass has and how they are packed, and the order in which its nonzeros are walked: all that is decided before the
// first step.
#include <algorithm>

#include "engine/pass.h"

namespace sparcl {
namespace {

// What an input tile may fill of the first cache (48 KB where measured), and a group of tiles of the second (1 MB).
constexpr long kFirstCache = 24 * 1024, kSecondCache = 512 * 1024;
// Vectors that a list should multiply within a block of channels (of the weight gradient alone: nonzeros that it should have): with
// fewer, carrying sums from block to block (adding up lanes) costs more than the first cache gives. On the way back each load
// serves two multiply-adds, so that the first cache gives less.
constexpr long kShortForward = 224, kShortBack = 448, kShortDot = 6;
// The register tile of the weight gradient is only a loop over positions, so it may be longer.
constexpr int kDotRows = 4, kDotColumns = 8;

}  // namespace

Pass::Pass(const Kernels& unit, const PassShape& shape, const Form& form, Purpose purpose)
    : unit_(&unit), shape_(shape), channels_(form.channels) {
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
  choose_tile(form, purpose);
  choose_blocks(form, purpose);
  choose_groups();
  lay_out();
}

// The register tile: as many positions as possible, as few as possible of them beyond the grid.
void Pass::choose_tile(const Form& form, Purpose purpose) {
  const TileShape* shapes = unit_->shapes[form.block == 4 ? 2 : form.block == 2 ? 1 : 0];
  double best = 1e300;
  for (int s = 0; s < kMaxShapes && shapes[s].rows > 0; ++s) {
    const double tiles = static_cast<double>(ceil_div(grid_rows_, shapes[s].rows)) * ceil_div(grid_columns_, shapes[s].columns);
    const double cost = tiles * (shapes[s].rows * shapes[s].columns + 1.5);
    if (cost < best) best = cost, micro_ = s, tile_ = shapes[s];
  }
  if (purpose == Purpose::kWeights) {  // the loop over positions is not unrolled: any shape will do
    tile_.rows = std::min(grid_rows_, kDotRows);
    tile_.columns = std::min(grid_columns_, std::max(kDotColumns, 16 / tile_.rows));
  }
}

// Rows and columns of a phase that so many of the grid reach.
int Pass::phase_rows(int rows) const { return rows + row_span_ / shape_.row_step; }
int Pass::phase_columns(int columns) const { return columns + column_span_ / shape_.column_step; }

long Pass::channel_bytes(int rows, int columns) const {
  return 4L * unit_->lanes * row_phases_ * column_phases_ * phase_rows(rows) * phase_columns(columns);
}

// How many input channels are walked together: as many as fit the first cache, or as a list needs to be worth it.
void Pass::choose_blocks(const Form& form, Purpose purpose) {
  const long taken = std::max<long>(1, form.nonzeros / std::max(1, form.channels));
  const long cells = static_cast<long>(tile_.rows) * tile_.columns;
  const long shortest = purpose == Purpose::kWeights ? kShortDot : ceil_div(purpose == Purpose::kBack ? kShortBack : kShortForward, cells);
  const long for_length = (shortest * shape_.in_channels + taken - 1) / taken;
  long channels = std::max(kFirstCache / channel_bytes(tile_.rows, tile_.columns), for_length);
  if (form.block > 1) channels = shape_.in_channels;  // each load serves several sums: the second cache is fast enough
  // Blocks of equal size, none with a short rest, each a multiple of what an entry spans.
  const long entries = (shape_.in_channels + form.depth - 1) / form.depth;
  const long blocks = std::max(1L, shape_.in_channels / std::max(1L, channels));
  block_channels_ = static_cast<int>((entries + blocks - 1) / blocks * form.depth);
  blocks_ = ceil_div(shape_.in_channels, block_channels_);
}

// How many register tiles are packed together: as many as the second cache holds, for their halos are shared.
void Pass::choose_groups() {
  group_rows_ = group_columns_ = 1;
  const int all_rows = ceil_div(grid_rows_, tile_.rows), all_columns = ceil_div(grid_columns_, tile_.columns);
  while (group_rows_ < all_rows || group_columns_ < all_columns) {
    const bool wide = group_columns_ <= group_rows_ ? group_columns_ < all_columns : group_rows_ >= all_rows;
    const int rows = wide ? group_rows_ : group_rows_ * 2, columns = wide ? group_columns_ * 2 : group_columns_;
    if (rows > 2 * all_rows || columns > 2 * all_columns) break;
    if (channel_bytes(rows * tile_.rows, columns * tile_.columns) * shape_.in_channels > kSecondCache) break;
    group_rows_ = std::min(rows, all_rows);
    group_columns_ = std::min(columns, all_columns);
  }
  tile_rows_ = ceil_div(all_rows, group_rows_);
  tile_columns_ = ceil_div(all_columns, group_columns_);
  packed_rows_ = phase_rows(group_rows_ * tile_.rows);
  packed_columns_ = phase_columns(group_columns_ * tile_.columns);
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

Pass::Order Pass::order(const Lists& lists, const uint8_t* dotted) const {
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
  order.block = lists.block;
  order.depth = lists.depth;
  const int32_t* key = lists.key.data();
  std::vector<int32_t> at(lists.start.begin(), lists.start.end() - 1), end(at);  // what each list has left, and in this block
  order.start.push_back(0);
  order.offsets.reserve(lists.key.size() / lists.block + kOffsetsBeyond);
  order.canonical.reserve(lists.key.size() * lists.depth);
  const auto place = [&](int32_t k, int d) { return lists.canonical.empty() ? k : lists.canonical[static_cast<size_t>(k) * lists.depth + d]; };
  const auto wanted = [&](int32_t k) { return !dotted || dotted[place(k, 0)]; };
  const auto append = [&](int32_t k, int32_t first) {
    order.offsets.push_back(table[static_cast<size_t>(key[k])]);
    for (int g = 0; g < lists.block; ++g) order.canonical.push_back(place(k - at[first] + at[first + g], 0));
    for (int d = 1; d < lists.depth; ++d) order.canonical.push_back(place(k, d));
  };
  for (int b = 0; b < blocks_; ++b)
    for (const Output& output : shape_.outputs) {
      const int32_t limit = static_cast<int32_t>(std::min<long>((b + 1L) * block_channels_, shape_.in_channels) * taps);
      for (int c = output.first; c < output.first + output.count; ++c)
        end[c] = static_cast<int32_t>(std::lower_bound(key + at[c], key + lists.start[c + 1], limit) - key);
      const auto begin = static_cast<long>(order.sequence.size());
      for (int c = 0; c < output.count; c += lists.block) order.sequence.push_back(c);
      const auto length = [&](int32_t c) { return end[output.first + c] - at[output.first + c]; };
      std::stable_sort(order.sequence.begin() + begin, order.sequence.end(),
                       [&](int32_t c, int32_t d) { return length(c) < length(d); });
      for (auto c = order.sequence.begin() + begin; c != order.sequence.end(); ++c) {
        const int32_t first = output.first + *c;
        for (int32_t k = at[first]; k < end[first]; ++k)
          if (wanted(k)) append(k, first);
        order.dotted.push_back(static_cast<int32_t>(order.offsets.size()));
        for (int32_t k = at[first]; dotted && k < end[first]; ++k)
          if (!wanted(k)) append(k, first);
        order.start.push_back(static_cast<int32_t>(order.offsets.size()));
      }
      for (int c = output.first; c < output.first + output.count; ++c) at[c] = end[c];
    }
  order.offsets.insert(order.offsets.end(), kOffsetsBeyond, 0);
  return order;
}

}  // namespace sparcl
