// Packing of a tile, and the sparse convolution of a packed tile. Included by unit-inl.h.

namespace sparcl {
namespace {

// One row of one phase: columns q of the source columns first + q * step, zero where there is none.
SPARCL_INLINE void pack_row(const Pack& p, const float* source, int first, float* to) {
  const int step = p.column_step;
  int begin = first < 0 ? (-first + step - 1) / step : 0;
  int end = first >= p.width ? 0 : (p.width - first + step - 1) / step;
  if (begin > p.columns) begin = p.columns;
  if (end > p.columns) end = p.columns;
  if (end < begin) end = begin;
  for (int q = 0; q < begin; ++q) store(to + q * V, vec{});
  for (int q = end; q < p.columns; ++q) store(to + q * V, vec{});
  const float* from = source + static_cast<long>(first) * p.column_stride;
  const long stride = step * p.column_stride;
  if (p.lanes == V && p.tail_column < 0) {
    for (int q = begin; q < end; ++q) store(to + q * V, load(from + q * stride));
    return;
  }
  for (int q = begin; q < end; ++q) {
    const int lanes = first + q * step == p.tail_column ? p.tail_lanes : p.lanes;
    store(to + q * V, load_some(from + q * stride, lanes));
  }
}

void pack(const Pack& p) {
  float* to = p.packed;
  const long row_floats = static_cast<long>(p.columns) * V;
  for (int c = 0; c < p.channels; ++c)
    for (int py = 0; py < p.row_phases; ++py)
      for (int px = 0; px < p.column_phases; ++px)
        for (int r = 0; r < p.rows; ++r, to += row_floats) {
          const int y = p.row + py + r * p.row_step;
          if (y < 0 || y >= p.height)
            memset(to, 0, sizeof(float) * static_cast<unsigned long>(row_floats));
          else
            pack_row(p, p.source + c * p.channel_stride + y * p.row_stride, p.column + px, to);
        }
}

// The inner loop: one nonzero multiplies every position of the tile. U nonzeros are in flight where the tile alone
// would leave the multipliers waiting for each other.
template <int R, int C, int G, int U>
SPARCL_INLINE void accumulate(const float* x, long row, const uint32_t* offsets, const float* const (&values)[G], int n,
                              vec (&sums)[G][R * C]) {
  vec more[U][G][R * C];
  SPARCL_UNROLL
  for (int u = 1; u < U; ++u)
    SPARCL_UNROLL
    for (int g = 0; g < G; ++g)
      SPARCL_UNROLL
      for (int t = 0; t < R * C; ++t) more[u][g][t] = vec{};
  int k = 0;
  if (U > 1)
    for (; k + U <= n; k += U) {
      SPARCL_UNROLL
      for (int u = 0; u < U; ++u) {
        const float* p = x + offsets[k + u];
        SPARCL_UNROLL
        for (int t = 0; t < R * C; ++t) {
          const vec v = load(p + (t / C) * row + (t % C) * V);
          SPARCL_UNROLL
          for (int g = 0; g < G; ++g) (u ? more[u][g][t] : sums[g][t]) += values[g][k + u] * v;
        }
      }
    }
  for (; k < n; ++k) {
    const float* p = x + offsets[k];
    SPARCL_UNROLL
    for (int t = 0; t < R * C; ++t) {
      const vec v = load(p + (t / C) * row + (t % C) * V);
      SPARCL_UNROLL
      for (int g = 0; g < G; ++g) sums[g][t] += values[g][k] * v;
    }
  }
  SPARCL_UNROLL
  for (int u = 1; u < U; ++u)
    SPARCL_UNROLL
    for (int g = 0; g < G; ++g)
      SPARCL_UNROLL
      for (int t = 0; t < R * C; ++t) sums[g][t] += more[u][g][t];
}

template <int R, int C>
SPARCL_INLINE void write_tile(const Convolve& a, float* out, const vec (&sums)[R * C]) {
  if (a.rows == R && a.columns == C && a.lanes == V && a.tail_column < 0) {
    SPARCL_UNROLL
    for (int t = 0; t < R * C; ++t) store(out + (t / C) * a.out_row + (t % C) * a.out_column, sums[t]);
    return;
  }
  float tile[R * C * V];
  SPARCL_UNROLL
  for (int t = 0; t < R * C; ++t) store(tile + t * V, sums[t]);
  for (int r = 0; r < a.rows; ++r)
    for (int c = 0; c < a.columns; ++c) {
      const int lanes = c == a.tail_column ? a.tail_lanes : a.lanes;
      for (int l = 0; l < lanes; ++l) out[r * a.out_row + c * a.out_column + l] = tile[(r * C + c) * V + l];
    }
}

template <int R, int C, int G>
long convolve_tile(const Convolve& a) {
  constexpr int T = R * C;
  constexpr int U = G * T >= 8 ? 1 : 8 / (G * T);
  long visited = 0;
  for (int c = a.first; c + G <= a.last; c += G) {
    const float* values[G];
    SPARCL_UNROLL
    for (int g = 0; g < G; ++g) values[g] = a.values + a.bounds[(c + g) * a.bounds_stride];
    const int begin = a.bounds[c * a.bounds_stride];
    const int n = a.bounds[c * a.bounds_stride + 1] - begin;
    if (n == 0 && a.load_partial && a.store_partial) continue;
    float* partial = a.partial + static_cast<long>(c) * T * V;
    vec sums[G][T];
    SPARCL_UNROLL
    for (int g = 0; g < G; ++g)
      SPARCL_UNROLL
      for (int t = 0; t < T; ++t)
        sums[g][t] = a.load_partial ? load(partial + (g * T + t) * V) : fill(a.bias ? a.bias[c + g] : 0.0f);
    accumulate<R, C, G, U>(a.packed, a.packed_row, a.offsets + begin, values, n, sums);
    if (a.store_partial) {
      SPARCL_UNROLL
      for (int g = 0; g < G; ++g)
        SPARCL_UNROLL
        for (int t = 0; t < T; ++t) store(partial + (g * T + t) * V, sums[g][t]);
    } else {
      SPARCL_UNROLL
      for (int g = 0; g < G; ++g) write_tile<R, C>(a, a.out + (c + g) * a.out_channel, sums[g]);
    }
    visited += static_cast<long>(n) * G;
  }
  return visited;
}

constexpr TileShape kShapes[3][kMaxShapes] = {SPARCL_SHAPES_1, SPARCL_SHAPES_2, SPARCL_SHAPES_4};

// Walks the table of shapes at compile time, so that each has its kernel.
template <int B, int S>
long convolve_shape(int shape, const Convolve& a) {
  if constexpr (S == kMaxShapes || kShapes[B][S].rows == 0) {
    return 0;
  } else {
    if (shape == S) return convolve_tile<kShapes[B][S].rows, kShapes[B][S].columns, 1 << B>(a);
    return convolve_shape<B, S + 1>(shape, a);
  }
}

long convolve(int block, int shape, const Convolve& a) {
  if (block == 4) return convolve_shape<2, 0>(shape, a);
  if (block == 2) return convolve_shape<1, 0>(shape, a);
  return convolve_shape<0, 0>(shape, a);
}

}  // namespace
}  // namespace sparcl
