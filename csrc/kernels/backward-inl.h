// Both gradients of a sparse convolution at once: of the input, and of the weights whose gradients are wanted. Each vector of the
// output gradient is loaded once for the two multiply-adds that it takes part in. Included by unit-inl.h.

namespace sparcl {
namespace {

// The dot products of consecutive nonzeros on their way to `sums`: V of them wait for each other, so that one tree adds up all
// their lanes.
struct Dots {
  float waiting[V * V] __attribute__((aligned(64)));
  float* to = nullptr;  // where the first of them belongs
  int count = 0;

  SPARCL_INLINE void give_out() {
    vec x[V];
    SPARCL_UNROLL
    for (int i = 0; i < V; ++i) x[i] = load(waiting + i * V);
    const vec all = lane_sums<V>(x);
    if (count == V)
      store(to, load(to) + all);
    else
      store_some(to, load_some(to, count) + all, count);
    count = 0;
  }
  SPARCL_INLINE void finish() {
    if (count > 0) give_out();
  }
  // How many of the dot products that belong at `at` and behind may be left in next().
  SPARCL_INLINE int room(float* at) {
    if (count == V || (count > 0 && at != to + count)) give_out();
    if (count == 0) to = at;
    return V - count;
  }
  SPARCL_INLINE float* next() { return waiting + count * V; }
};

// D nonzeros of neighbouring channels at the same tap, for the input gradient only.
template <int R, int C, int D>
SPARCL_INLINE void spread(const float* g, long row, long channel, const float* values, vec (&sums)[1][R * C]) {
  SPARCL_UNROLL
  for (int d = 0; d < D; ++d) multiply<R, C, 1>(g + d * channel, row, values + d, sums);
}

// `spread_and_dot` of one nonzero by fours: of R rows of C columns, a multiple of four.
template <int R, int C, int H>
SPARCL_INLINE void spread_and_dot_fours(const float* g, long row, float value, const vec (&held)[H], const float* x,
                                        vec (&sums)[1][R * C], float* dot) {
  constexpr int T = R * C;
  const vec w = fill(value);
  vec even, odd;
  x += H * V;
  SPARCL_UNROLL
  for (int t = 0; t < T; t += 4) {
    const Four four = load_four(g, (t + 4) % C ? 4 * V : row - (C - 4) * V), beside = t < H ? four : load_four(x, 4 * V);
    SPARCL_UNROLL
    for (int i = 0; i < 4; ++i) {
      const vec v = part(four, i), xt = t < H ? held[t < H ? t + i : 0] : part(beside, i);
      vec& own = i % 2 ? odd : even;
      own = t + i < 2 ? xt * v : own + xt * v;
      sums[0][t + i] += w * v;
    }
  }
  store(dot, even + odd);
}

// The same for both gradients: sums[t] += w[d] * g[d][t], dots[d] += x[t] * g[d][t]. H of the x are held in registers.
template <int R, int C, int D, int H>
SPARCL_INLINE void spread_and_dot(const float* g, long row, long channel, const float* values, const vec (&held)[H], const float* x,
                                  vec (&sums)[1][R * C], float* dots) {
  if constexpr (kNeon && D == 1 && C % 4 == 0 && H % 4 == 0) return spread_and_dot_fours<R, C>(g, row, *values, held, x, sums, dots);
  constexpr int U = D == 1 && R * C > 1 ? 2 : 1;
  vec w[D], dot[D][U] = {};
  SPARCL_UNROLL
  for (int d = 0; d < D; ++d) w[d] = fill(values[d]);
  asm("" : "+r"(x));  // stays in memory: left alone, GCC takes all of it to registers, and the sums to memory
  SPARCL_UNROLL
  for (int r = 0; r < R; ++r) {
    asm("" : "+r"(g));  // one pointer a row, see `multiply`
    SPARCL_UNROLL
    for (int c = 0; c < C; ++c) {
      const int t = r * C + c;
      const vec xt = t < H ? held[t] : load(x + t * V);
      SPARCL_UNROLL
      for (int d = 0; d < D; ++d) {
        vec v = load(g + d * channel + c * V);
        SPARCL_KEEP(v);  // GCC would load it twice
        sums[0][t] += w[d] * v;
        dot[d][t % U] += xt * v;
      }
    }
    g += row;
  }
  SPARCL_UNROLL
  for (int d = 0; d < D; ++d) {
    vec all = dot[d][0];
    SPARCL_UNROLL
    for (int u = 1; u < U; ++u) all += dot[d][u];
    store(dots + d * V, all);
  }
}

template <int R, int C, int D>
Visited backward_tile(const Backward& b) {
  constexpr int T = R * C, E = D < SPARCL_TOGETHER ? D : SPARCL_TOGETHER;  // of an entry's nonzeros, in registers at a time
  constexpr int U = T >= 8 ? 1 : 8 / T;
  constexpr int H = D > 1 ? 1 : T < SPARCL_HELD ? T : SPARCL_HELD;  // with D > 1 a load already serves D multiply-adds
  const Convolve& a = b.to;
  const float *packed = a.packed, *values = a.values;  // for the compiler each store may change a field
  const uint32_t* offsets = a.lists.offsets;
  const long row = a.packed_row, channel = b.packed_channel;
  Visited visited{0, 0};
  Dots dots;
  long walked = a.lists.start[0];  // up to here
  Next<kNextBackward> next(packed, offsets + walked);
  for (int i = 0; i < a.lists.count; ++i) {
    const int c = a.lists.sequence[i];
    if (c < b.first || c >= b.last) continue;
    const long begin = a.lists.start[i], end = a.lists.start[i + 1], dotted = b.sums ? b.dotted[i] : begin;
    if (begin == end && a.load_partial && a.store_partial) continue;
    if (begin == end && a.add.at == a.out.at && !a.load_partial && !a.store_partial) continue;
    if (a.add && !a.store_partial && i + 1 < a.lists.count) fetch_tile<1>(a, a.lists.sequence[i + 1]);
    float* partial = a.partial + static_cast<long>(c) * T * V;
    vec sums[1][T];
    SPARCL_UNROLL
    for (int t = 0; t < T; ++t) sums[0][t] = a.load_partial ? load(partial + t * V) : vec{};
    const float* x = dotted > begin ? b.x + static_cast<long>(c - b.first) * T * V : nullptr;
    vec held[H] = {};
    if (x) {
      SPARCL_UNROLL
      for (int t = 0; t < H; ++t) held[t] = load(x + t * V);
    }
    if (begin != walked) next = Next<kNextBackward>(packed, offsets + begin);
    walked = end;
    long k = begin;
    while (k < dotted) {
      const long stop = smaller(dotted, k + dots.room(b.sums + k * D) / D);
      float* waiting = dots.next();
      dots.count += static_cast<int>(stop - k) * D;
      for (; k < stop; ++k, waiting += D * V) {
        const float* g = next.take(packed, offsets + k);
        SPARCL_UNROLL
        for (int d = 0; d < D; d += E)
          spread_and_dot<R, C, E, H>(g + d * channel, row, channel, values + k * D + d, held, x, sums, waiting + d * V);
      }
    }
    if constexpr (D == 1)
      accumulate<R, C, 1, U>(packed, row, offsets + k, values + k, static_cast<int>(end - k), next, sums);
    else
      for (; k < end; ++k) spread<R, C, D>(next.take(packed, offsets + k), row, channel, values + k * D, sums);
    if (a.store_partial) {
      SPARCL_UNROLL
      for (int t = 0; t < T; ++t) store(partial + t * V, sums[0][t]);
    } else {
      write_tile<R, C>(a, c, sums[0]);
    }
    visited.all += (end - begin) * D;
    visited.dotted += (dotted - begin) * D;
  }
  dots.finish();
  if (a.streaming) streamed();
  return visited;
}

template <int D, int S>
Visited backward_shape(int shape, const Backward& b) {
  if constexpr (S == kMaxShapes || kShapes[0][S].rows == 0) {
    return {0, 0};
  } else {
    if (shape == S) return backward_tile<kShapes[0][S].rows, kShapes[0][S].columns, D>(b);
    return backward_shape<D, S + 1>(shape, b);
  }
}

Visited backward(int depth, int shape, const Backward& b) {
  if (depth == 4) return backward_shape<4, 0>(shape, b);
  if (depth == 2) return backward_shape<2, 0>(shape, b);
  return backward_shape<1, 0>(shape, b);
}

}  // namespace
}  // namespace sparcl
