// Packing of a tile, and the sparse convolution of a packed tile. Included by unit-inl.h.

namespace sparcl {
namespace {

// Columns [begin, end) of a packed row exist in the source, the others are padding.
struct Existing {
  int begin, end;
};

SPARCL_INLINE Existing existing(int first, int step, int width, int columns) {
  Existing e;
  e.begin = first < 0 ? (-first + step - 1) / step : 0;
  e.end = first >= width ? 0 : (width - first + step - 1) / step;
  e.begin = smaller(e.begin, columns);
  e.end = smaller(e.end, columns);
  if (e.end < e.begin) e.end = e.begin;
  return e;
}

// Rows are fetched this many channels ahead: they lie far apart, which no prefetcher of a processor foresees.
constexpr int kAhead = SPARCL_AHEAD;

// NaN passes through.
#if defined(SPARCL_NEON)
SPARCL_INLINE vec at_least(float floor, vec v) {
  return reinterpret_cast<vec>(vmaxq_f32(reinterpret_cast<float32x4_t>(v), vdupq_n_f32(floor)));
}
#else
SPARCL_INLINE vec at_least(float floor, vec v) { return v < floor ? fill(floor) : v; }
#endif

// What goes into the tile for the vector at x, of floats or halves.
struct AsItIs {
  SPARCL_INLINE AsItIs(const Scaled&, int) {}
  template <class T>
  SPARCL_INLINE vec operator()(const T* x, int lanes) const {
    return get(x, lanes);
  }
  template <class T>
  SPARCL_INLINE void fetch(const T* x) const {
    __builtin_prefetch(x);
  }
};
struct Normalised {
  float scale, shift, floor;
  SPARCL_INLINE Normalised(const Scaled& s, int channel) : scale(s.scale[channel]), shift(s.shift[channel]), floor(s.floor) {}
  template <class T>
  SPARCL_INLINE vec operator()(const T* x, int lanes) const {
    return at_least(floor, get(x, lanes) * scale + shift);
  }
  template <class T>
  SPARCL_INLINE void fetch(const T* x) const {
    __builtin_prefetch(x);
  }
};
template <class Residual>
struct Sum {
  const void *from, *beside;
  float scale, shift, floor;
  Residual residual;
  SPARCL_INLINE Sum(const Scaled& s, const Scaled& r, int channel)
      : from(s.x.at), beside(r.x.at), scale(s.scale[channel]), shift(s.shift[channel]), floor(s.floor), residual(r, channel) {}
  template <class T>
  SPARCL_INLINE const T* other(const T* x) const {
    return static_cast<const T*>(beside) + (x - static_cast<const T*>(from));
  }
  template <class T>
  SPARCL_INLINE vec operator()(const T* x, int lanes) const {
    vec v = get(x, lanes) * scale + shift;
    v += residual(other(x), lanes);
    return at_least(floor, v);
  }
  template <class T>
  SPARCL_INLINE void fetch(const T* x) const {
    __builtin_prefetch(x);
    residual.fetch(other(x));
  }
};

// One row of one phase: columns q of the source columns first + q * step, zero where there is none.
template <class T, class Make>
SPARCL_INLINE void pack_row(const Pack& p, const T* source, int first, Existing e, bool ahead, Make make, float* to) {
  for (int q = 0; q < e.begin; ++q) store(to + q * V, vec{});
  for (int q = e.end; q < p.columns; ++q) store(to + q * V, vec{});
  const long stride = p.column_step * p.column_stride;
  const T* from = source + first * p.column_stride;
  if (p.lanes == V && p.tail_column < 0) {
    if (ahead)
      for (int q = e.begin; q < e.end; ++q) make.fetch(from + q * stride + kAhead * p.channel_stride);
    for (int q = e.begin; q < e.end; ++q) store(to + q * V, make(from + q * stride, V));
    return;
  }
  for (int q = e.begin; q < e.end; ++q) {
    const int lanes = first + q * p.column_step == p.tail_column ? p.tail_lanes : p.lanes;
    store(to + q * V, keep(make(from + q * stride, lanes), (1u << lanes) - 1));  // lanes that do not exist are zero
  }
}

// `count` vectors of zeros.
SPARCL_INLINE void nothing(float* to, int count) {
  for (float* end = to + count * V; to < end; to += V) store(to, vec{});
}

// All rows of a phase where every lane exists. `rows` of them, and columns `e` of each, exist in the source; from: the first of
// those. Rows are short: what is done for each row and not for each vector counts.
template <class T, class Make>
SPARCL_INLINE void pack_whole(const Pack& p, const T* from, Existing rows, Existing e, bool ahead, const Make& make, float* to) {
  const long stride = p.column_step * p.column_stride, next = p.row_step * p.row_stride;
  const int inside = e.end - e.begin;
  for (int r = 0; r < rows.begin; ++r, to += p.packed_row) nothing(to, p.columns);
  for (int r = rows.begin; r < rows.end; ++r, to += p.packed_row, from += next) {
    if (ahead)
      for (int q = 0; q < inside; ++q) make.fetch(from + q * stride + kAhead * p.channel_stride);
    nothing(to, e.begin);
    const T* x = from;
    float* at = to + e.begin * V;
    int q = inside;
    for (; q >= 4; q -= 4, x += 4 * stride, at += 4 * V) {
      vec v[4];
      SPARCL_UNROLL
      for (int u = 0; u < 4; ++u) v[u] = make(x + u * stride, V);
      SPARCL_UNROLL
      for (int u = 0; u < 4; ++u) store(at + u * V, v[u]);
    }
    for (; q > 0; --q, x += stride, at += V) store(at, make(x, V));
    nothing(at, p.columns - e.end);
  }
  for (int r = rows.end; r < p.rows; ++r, to += p.packed_row) nothing(to, p.columns);
}

// `pack_as` where every lane exists. A function of its own, as its loops need all registers.
template <class T, class Make>
__attribute__((noinline)) void pack_phases(const Pack& given, Make make) {
  const Pack p = given;
  for (int py = 0; py < p.row_phases; ++py)
    for (int px = 0; px < p.column_phases; ++px) {
      const Existing rows = existing(p.row + py, p.row_step, p.height, p.rows);
      const Existing e = existing(p.column + px, p.column_step, p.width, p.columns);
      const long y = p.row + py + rows.begin * p.row_step, x = p.column + px + e.begin * p.column_step;
      const T* from = p.source.x.as<T>() + y * p.row_stride + x * p.column_stride;
      float* to = p.packed + (py * p.column_phases + px) * p.packed_phase;
      // A line of memory serves several chunks of samples: the first of them fetches it.
      const bool fetches = reinterpret_cast<uintptr_t>(from) % 64 < sizeof(vec);
      for (int c = 0; c < p.channels; ++c, from += p.channel_stride, to += p.row_phases * p.column_phases * p.packed_phase)
        pack_whole(p, from, rows, e, fetches && c + kAhead < p.channels, make(c), to);
    }
}

// make(c): what is made of channel c.
template <class T, class Make>
SPARCL_INLINE void pack_as(const Pack& given, Make make) {
  if (kNeon && given.lanes == V && given.tail_column < 0) return pack_phases<T>(given, make);
  const Pack p = given;  // for the compiler each store may change a field
  constexpr int kPhases = 8;  // the usual strides have their edges worked out once
  Existing edges[kPhases];
  for (int px = 0; px < smaller(p.column_phases, kPhases); ++px)
    edges[px] = existing(p.column + px, p.column_step, p.width, p.columns);
  const T* source = p.source.x.as<T>();
  float* phase = p.packed;
  for (int c = 0; c < p.channels; ++c) {
    const auto channel = make(c);
    for (int py = 0; py < p.row_phases; ++py)
      for (int px = 0; px < p.column_phases; ++px, phase += p.packed_phase) {
        const Existing e = px < kPhases ? edges[px] : existing(p.column + px, p.column_step, p.width, p.columns);
        for (int r = 0; r < p.rows; ++r) {
          const int y = p.row + py + r * p.row_step;
          float* to = phase + r * p.packed_row;
          if (y < 0 || y >= p.height)
            for (int q = 0; q < p.columns; ++q) store(to + q * V, vec{});
          else
            pack_row(p, source + c * p.channel_stride + y * p.row_stride, p.column + px, e, c + kAhead < p.channels, channel, to);
        }
      }
  }
}

template <class T>
SPARCL_INLINE void pack_of(const Pack& p) {
  const Scaled &s = p.source, &r = p.residual;
  if (r.x && r.scale) return pack_as<T>(p, [&](int c) SPARCL_INLINED { return Sum<Normalised>(s, r, c); });
  if (r.x) return pack_as<T>(p, [&](int c) SPARCL_INLINED { return Sum<AsItIs>(s, r, c); });
  if (s.scale) return pack_as<T>(p, [&](int c) SPARCL_INLINED { return Normalised(s, c); });
  pack_as<T>(p, [&](int c) SPARCL_INLINED { return AsItIs(s, c); });
}

void pack(const Pack& p) {
  if (kHalves && p.source.x.half)
    pack_of<Half>(p);
  else
    pack_of<float>(p);
}

// The F-th four vectors of a tile of C columns. The next four are loaded meanwhile.
template <int R, int C, int G, int F>
SPARCL_INLINE void multiply_four(const float* x, const Four& four, long row, const vec (&w)[G], vec (&sums)[G][R * C]) {
  constexpr bool kLast = F + 1 == R * C / 4;
  Four next = four;
  if constexpr (!kLast) next = (F + 2) * 4 % C ? load_four(x, 4 * V) : load_four(x, row - (C - 4) * V);
  SPARCL_UNROLL
  for (int i = 0; i < 4; ++i)
    SPARCL_UNROLL
    for (int g = 0; g < G; ++g) sums[g][F * 4 + i] += w[g] * part(four, i);
  if constexpr (!kLast) multiply_four<R, C, G, F + 1>(x, next, row, w, sums);
}

// `multiply`, by fours: of R rows of C columns, a multiple of four.
template <int R, int C, int G>
SPARCL_INLINE void multiply_fours(const float* x, long row, const float* values, vec (&sums)[G][R * C]) {
  vec w[G];
  if constexpr (G == 4) {
    const vec all = load(values);
    SPARCL_UNROLL
    for (int g = 0; g < G; ++g) w[g] = fill(all[g]);
  } else {
    SPARCL_UNROLL
    for (int g = 0; g < G; ++g) w[g] = fill(values[g]);
  }
  const Four first = C > 4 ? load_four(x, 4 * V) : load_four(x, row);
  multiply_four<R, C, G, 0>(x, first, row, w, sums);
}

// One nonzero of G channels multiplies every position of the tile.
template <int R, int C, int G>
SPARCL_INLINE void multiply(const float* x, long row, const float* values, vec (&sums)[G][R * C]) {
  if constexpr (kNeon && C % 4 == 0) return multiply_fours<R, C, G>(x, row, values, sums);
  vec w[G];
  SPARCL_UNROLL
  for (int g = 0; g < G; ++g) w[g] = fill(values[g]);
  SPARCL_UNROLL
  for (int r = 0; r < R; ++r) {
    asm("" : "+r"(x));  // one pointer a row: left alone, GCC keeps sixteen addresses and moves them through vector registers
    SPARCL_UNROLL
    for (int c = 0; c < C; ++c) {
      const vec v = load(x + c * V);
      SPARCL_UNROLL
      for (int g = 0; g < G; ++g) sums[g][r * C + c] += w[g] * v;
    }
    x += row;
  }
}

// Where the inputs of the next N nonzeros lie, worked out long before they are needed: vectors that wait for their address hold up
// those that could be loaded meanwhile (3.7 ns a nonzero of 4x4 positions, 2.6 with it). Lists that follow each other in memory are
// one to it; it reads beyond the end of the last.
template <int N>
struct Next {
  static_assert(N <= kOffsetsBeyond);
  const float* at[N];
  SPARCL_INLINE Next(const float* x, const uint32_t* offsets) {
    SPARCL_UNROLL
    for (int a = 0; a < N; ++a) at[a] = x + offsets[a];
  }
  // The first of them. offsets: from the nonzero that it belongs to.
  SPARCL_INLINE const float* take(const float* x, const uint32_t* offsets) {
    const float* first = at[0];
    SPARCL_UNROLL
    for (int a = 0; a + 1 < N; ++a) at[a] = at[a + 1];
    at[N - 1] = x + offsets[N];
    if constexpr (N > 1) asm("" : "+r"(at[N - 1]));  // now, and not when it is needed
    return first;
  }
};
#ifndef SPARCL_NEXT_FORWARD
#define SPARCL_NEXT_FORWARD 6
#define SPARCL_NEXT_BACKWARD 4
#endif
constexpr int kNextForward = SPARCL_NEXT_FORWARD, kNextBackward = SPARCL_NEXT_BACKWARD;  // as many as leave a register for the rest

// The inner loop, over the nonzeros of a list. U of them are in flight where the tile alone would leave the multipliers
// waiting for each other.
template <int R, int C, int G, int U, int N>
SPARCL_INLINE void accumulate(const float* x, long row, const uint32_t* offsets, const float* values, int n, Next<N>& next,
                              vec (&sums)[G][R * C]) {
  int k = 0;
  if constexpr (U > 1) {
    vec more[U - 1][G][R * C] = {};
    for (; k + U <= n; k += U) {
      multiply<R, C, G>(next.take(x, offsets + k), row, values + k * G, sums);
      SPARCL_UNROLL
      for (int u = 1; u < U; ++u) multiply<R, C, G>(next.take(x, offsets + k + u), row, values + (k + u) * G, more[u - 1]);
    }
    SPARCL_UNROLL
    for (int u = 0; u < U - 1; ++u)
      SPARCL_UNROLL
      for (int g = 0; g < G; ++g)
        SPARCL_UNROLL
        for (int t = 0; t < R * C; ++t) sums[g][t] += more[u][g][t];
  }
  for (; k < n; ++k) multiply<R, C, G>(next.take(x, offsets + k), row, values + k * G, sums);
}

// Every result of a tile past the caches: of halves, two positions are a line.
template <int T, int C, class Cell>
SPARCL_INLINE void stream_all(float* out, Cell cell, const vec (&sums)[T]) {
  SPARCL_UNROLL
  for (int t = 0; t < T; ++t) stream(out + cell(t), sums[t]);
}
template <int T, int C, class Cell>
SPARCL_INLINE void stream_all(Half* out, Cell cell, const vec (&sums)[T]) {
  SPARCL_UNROLL
  for (int t = 0; t < T; t += 2) {
    if constexpr (C % 2 == 0)
      stream(out + cell(t), sums[t], sums[t + 1]);
    else
      store(out + cell(t), sums[t]);
  }
}

// All positions of a tile, `lanes` samples of each: a constant where it is V.
template <int R, int C, class T>
SPARCL_INLINE void write_all(const Convolve& a, int lanes, T* out, const T* add, const uint8_t* where, vec (&sums)[R * C]) {
  const auto cell = [&](int t) SPARCL_INLINED { return (t / C) * a.out_row + (t % C) * a.out_column; };
  if (add && where)
    SPARCL_UNROLL
    for (int t = 0; t < R * C; ++t) sums[t] += keep(get(add + cell(t), lanes), signs_at(where, a.where_at + cell(t)));
  else if (add)
    SPARCL_UNROLL
    for (int t = 0; t < R * C; ++t) sums[t] += get(add + cell(t), lanes);
  if (lanes == V && a.streaming)
    stream_all<R * C, C>(out, cell, sums);
  else
    SPARCL_UNROLL
    for (int t = 0; t < R * C; ++t) put(out + cell(t), sums[t], lanes);
}

template <int R, int C, class T>
SPARCL_INLINE void write_as(const Convolve& a, int channel, vec (&sums)[R * C]) {
  const long at = channel * a.out_channel;
  T* out = a.out.as<T>() + at;
  const T* add = a.add ? a.add.as<T>() + at : nullptr;
  const uint8_t* where = a.where ? a.where + channel * a.where_channel : nullptr;
  if (a.rows == R && a.columns == C && a.tail_column < 0) {
    if (a.lanes == V) return write_all<R, C>(a, V, out, add, where, sums);
    return write_all<R, C>(a, a.lanes, out, add, where, sums);
  }
  float tile[R * C * V];
  SPARCL_UNROLL
  for (int t = 0; t < R * C; ++t) store(tile + t * V, sums[t]);
  for (int r = 0; r < a.rows; ++r)
    for (int c = 0; c < a.columns; ++c) {
      const int lanes = c == a.tail_column ? a.tail_lanes : a.lanes;
      const long cell = r * a.out_row + c * a.out_column;
      vec sum = load(tile + (r * C + c) * V);
      if (add) {
        const vec plus = load_some(add + cell, lanes);
        if (where)
          sum += keep(plus, signs_at(where, a.where_at + cell));
        else
          sum += plus;
      }
      store_some(out + cell, sum, lanes);
    }
}

template <int R, int C>
SPARCL_INLINE void write_tile(const Convolve& a, int channel, vec (&sums)[R * C]) {
  if (kHalves && a.out.half)
    write_as<R, C, Half>(a, channel, sums);
  else
    write_as<R, C, float>(a, channel, sums);
}

// Fetches what the sums of a list will be added to, so that it is there once the list has been walked.
template <int G>
SPARCL_INLINE void fetch_tile(const Convolve& a, int channel) {
  for (int g = 0; g < G; ++g)
    for (int r = 0; r < a.rows; ++r)
      for (int c = 0; c < a.columns; ++c) {
        const long cell = (channel + g) * a.out_channel + r * a.out_row + c * a.out_column;
        __builtin_prefetch((a.add + cell).at);
      }
}

template <int R, int C, int G>
long convolve_tile(const Convolve& a) {
  constexpr int T = R * C;
  constexpr int U = G * T >= 8 ? 1 : 8 / (G * T);
  long visited = 0;
  Next<kNextForward> next(a.packed, a.lists.offsets + a.lists.start[0]);
  for (int i = 0; i < a.lists.count; ++i) {
    const int c = a.lists.sequence[i];
    const long begin = a.lists.start[i];
    const int n = static_cast<int>(a.lists.start[i + 1] - begin);
    if (n == 0 && a.load_partial && a.store_partial) continue;
    if (n == 0 && a.add.at == a.out.at && !a.load_partial && !a.store_partial && !a.bias) continue;
    if (a.add && !a.store_partial && i + 1 < a.lists.count) fetch_tile<G>(a, a.lists.sequence[i + 1]);
    float* partial = a.partial + static_cast<long>(c) * T * V;
    vec sums[G][T];
    SPARCL_UNROLL
    for (int g = 0; g < G; ++g)
      SPARCL_UNROLL
      for (int t = 0; t < T; ++t)
        sums[g][t] = a.load_partial ? load(partial + (g * T + t) * V) : fill(a.bias ? a.bias[c + g] : 0.0f);
    accumulate<R, C, G, U>(a.packed, a.packed_row, a.lists.offsets + begin, a.values + begin * G, n, next, sums);
    if (a.store_partial) {
      SPARCL_UNROLL
      for (int g = 0; g < G; ++g)
        SPARCL_UNROLL
        for (int t = 0; t < T; ++t) store(partial + (g * T + t) * V, sums[g][t]);
    } else {
      SPARCL_UNROLL
      for (int g = 0; g < G; ++g) write_tile<R, C>(a, c + g, sums[g]);
    }
    visited += static_cast<long>(n) * G;
  }
  if (a.streaming) streamed();
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
