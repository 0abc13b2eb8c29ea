// Weight gradient at the nonzeros of a list: dot products of a strip of the output gradient with strips of the packed input,
// B nonzeros of G output channels in registers at a time. Included by unit-inl.h.

namespace sparcl {
namespace {

// One level of the tree that adds up the lanes of many vectors at once. Each vector holds groups of W lanes, one group for
// each sum under way; the result holds the groups of a, then those of b, of W / 2 lanes each.
template <int W, int... I>
SPARCL_INLINE vec join(vec a, vec b, std::integer_sequence<int, I...>) {
  constexpr int H = V / 2, L = W / 2;
  return __builtin_shufflevector(a, b, (I / H * V + I % H / L * W + I % L)...) +
         __builtin_shufflevector(a, b, (I / H * V + I % H / L * W + I % L + L)...);
}

// What the tree of lane_sums makes of eight vectors of eight lanes, bit for bit, with half as many shuffles that cross the halves
// of a vector, which are slow on AVX2.
template <class Vec>
SPARCL_INLINE Vec lane_sums_of_eight(const Vec* x) {
  const auto halves = [](Vec a, Vec b) SPARCL_INLINED {
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  };
  const auto pairs = [](Vec a, Vec b) SPARCL_INLINED {
    return __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
  };
  const Vec a = pairs(halves(x[0], x[1]), halves(x[2], x[3])), b = pairs(halves(x[4], x[5]), halves(x[6], x[7]));
  const Vec all = __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14) + __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
  return __builtin_shufflevector(all, all, 0, 4, 1, 5, 2, 6, 3, 7);
}

// The sums of the lanes of x[0] .. x[N - 1], N <= V a power of two, in the first N lanes. The order is that of the tree.
template <int W, int N>
SPARCL_INLINE vec lane_sums(const vec (&x)[N]) {
  if constexpr (W == 1) {
    return x[0];
  } else if constexpr (V == 8 && W == V && N == V) {
    return lane_sums_of_eight(x);
  } else {
    constexpr int M = N > 1 ? N / 2 : 1;
    vec y[M];
    SPARCL_UNROLL
    for (int i = 0; i < M; ++i) y[i] = join<W>(x[N > 1 ? 2 * i : 0], x[N > 1 ? 2 * i + 1 : 0], std::make_integer_sequence<int, V>());
    return lane_sums<W / 2>(y);
  }
}

// to[b] += the sum of the lanes of x[b] for b < count <= B.
template <int B>
SPARCL_INLINE void add_lanes(const vec (&x)[B], float* to, int count) {
  float t[V];
  store(t, lane_sums<V>(x));
  SPARCL_UNROLL
  for (int b = 0; b < B; ++b)
    if (b < count) to[b] += t[b];
}

// B nonzeros of G channels over all positions of the tile, C of a row unrolled. Where B * G sums alone would leave the
// multipliers waiting for each other, U positions have sums of their own.
template <int B, int G, int C>
SPARCL_INLINE void dot(const WeightGradient& a, const float* gradient, const uint32_t* offsets, float* to) {
  constexpr int U = C == 1 || B * G >= 6 ? 1 : B * G >= 3 ? 2 : 4;
  const long plane = static_cast<long>(a.rows) * a.columns * V;
  vec sums[U][G][B] = {};
  const float* x[B];
  SPARCL_UNROLL
  for (int b = 0; b < B; ++b) x[b] = a.packed + offsets[b];
  for (int r = 0; r < a.rows; ++r) {
    long at = r * a.packed_row;
    for (int q = 0; q < a.columns; q += C, at += C * V, gradient += C * V) {
      SPARCL_UNROLL
      for (int c = 0; c < C; ++c) {
        vec v[G];
        SPARCL_UNROLL
        for (int g = 0; g < G; ++g) v[g] = load(gradient + g * plane + c * V);
        SPARCL_UNROLL
        for (int b = 0; b < B; ++b) {
          const vec xb = load(x[b] + at + c * V);
          SPARCL_UNROLL
          for (int g = 0; g < G; ++g) sums[c % U][g][b] += v[g] * xb;
        }
      }
    }
  }
  constexpr int S = B * G, P = S <= 1 ? 1 : S <= 2 ? 2 : S <= 4 || V == 4 ? 4 : S <= 8 || V == 8 ? 8 : 16;  // summed together
  SPARCL_UNROLL
  for (int s = 0; s < S; s += P) {
    vec part[P];
    SPARCL_UNROLL
    for (int i = 0; i < P; ++i) {
      const int b = (s + i) / G, g = (s + i) % G;
      part[i] = vec{};
      if (s + i < S) {
        part[i] = sums[0][g][b];
        SPARCL_UNROLL
        for (int u = 1; u < U; ++u) part[i] += sums[u][g][b];
      }
    }
    add_lanes(part, to + s, smaller(P, S - s));
  }
}

template <int B, int G, int C>
SPARCL_INLINE void dot_some(const WeightGradient& a, const float* gradient, const uint32_t* offsets, float* to, int count) {
  if constexpr (B > 0) {
    if (count == B) return dot<B, G, C>(a, gradient, offsets, to);
    dot_some<B - 1, G, C>(a, gradient, offsets, to, count);
  }
}

template <int G, int C>
long weight_gradient_lists(const WeightGradient& a) {
  constexpr int B = G == 1 ? 8 : 4;
  const long plane = static_cast<long>(a.rows) * a.columns * V;
  long visited = 0;
  for (int i = 0; i < a.lists.count; ++i) {
    const int c = a.lists.sequence[i];
    if (c < a.first || c >= a.last) continue;
    const long begin = a.lists.start[i];
    const int n = static_cast<int>(a.lists.start[i + 1] - begin);
    const float* gradient = a.gradient + (c - a.first) * plane;
    const uint32_t* offsets = a.lists.offsets + begin;
    float* to = a.sums + begin * G;
    int left = n;
    for (; left >= 2 * B; left -= B, offsets += B, to += B * G) dot<B, G, C>(a, gradient, offsets, to);
    if (left > B) {  // two halves rather than a full group and a rest too short to keep the multipliers busy
      const int half = (left + 1) / 2;
      dot_some<B, G, C>(a, gradient, offsets, to, half);
      offsets += half;
      to += half * G;
      left -= half;
    }
    dot_some<B, G, C>(a, gradient, offsets, to, left);
    visited += static_cast<long>(n) * G;
  }
  return visited;
}

template <int G>
long weight_gradient_block(const WeightGradient& a) {
  return a.columns % 4 == 0 ? weight_gradient_lists<G, 4>(a) : weight_gradient_lists<G, 1>(a);
}

long weight_gradient(int block, const WeightGradient& a) {
  if (block == 4) return weight_gradient_block<4>(a);
  if (block == 2) return weight_gradient_block<2>(a);
  return weight_gradient_block<1>(a);
}

}  // namespace
}  // namespace sparcl
