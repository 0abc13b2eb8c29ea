// Weight gradient at the nonzeros of a list: dot products of a strip of the output gradient with strips of the packed input,
// B nonzeros of G output channels in registers at a time. Included by unit-inl.h.

namespace sparcl {
namespace {

// Adds up the lanes of B vectors (B a power of two): to[b] += sum of x[b]. A tree, so the order is fixed.
template <int B>
SPARCL_INLINE void add_lanes(const vec (&x)[B], float* to, long stride) {
  for (int b = 0; b < B; ++b) {
    float t[V];
    store(t, x[b]);
    SPARCL_UNROLL
    for (int w = V / 2; w >= 1; w /= 2)
      SPARCL_UNROLL
      for (int l = 0; l < w; ++l) t[l] += t[l + w];
    to[b * stride] += t[0];
  }
}

template <int B, int G>
SPARCL_INLINE void dot(const WeightGradient& a, const float* gradient, const uint32_t* offsets, float* const (&to)[G]) {
  const long plane = static_cast<long>(a.rows) * a.columns * V;
  vec sums[G][B];
  SPARCL_UNROLL
  for (int g = 0; g < G; ++g)
    SPARCL_UNROLL
    for (int b = 0; b < B; ++b) sums[g][b] = vec{};
  const float* x[B];
  SPARCL_UNROLL
  for (int b = 0; b < B; ++b) x[b] = a.packed + offsets[b];
  for (int r = 0; r < a.rows; ++r) {
    const long at = r * a.packed_row;
    for (int c = 0; c < a.columns; ++c, gradient += V) {
      vec v[G];
      SPARCL_UNROLL
      for (int g = 0; g < G; ++g) v[g] = load(gradient + g * plane);
      SPARCL_UNROLL
      for (int b = 0; b < B; ++b) {
        const vec xb = load(x[b] + at + c * V);
        SPARCL_UNROLL
        for (int g = 0; g < G; ++g) sums[g][b] += v[g] * xb;
      }
    }
  }
  SPARCL_UNROLL
  for (int g = 0; g < G; ++g) add_lanes<B>(sums[g], to[g], 1);
}

template <int G>
long weight_gradient_lists(const WeightGradient& a) {
  constexpr int B = G == 1 ? 8 : 4;
  const long plane = static_cast<long>(a.rows) * a.columns * V;
  long visited = 0;
  for (int c = a.first; c + G <= a.last; c += G) {
    const int begin = a.bounds[c * a.bounds_stride];
    const int n = a.bounds[c * a.bounds_stride + 1] - begin;
    const float* gradient = a.gradient + (c - a.first) * plane;
    const uint32_t* offsets = a.offsets + begin;
    float* to[G];
    SPARCL_UNROLL
    for (int g = 0; g < G; ++g) to[g] = a.sums + a.bounds[(c + g) * a.bounds_stride];
    auto advance = [&](int by) {
      offsets += by;
      for (int g = 0; g < G; ++g) to[g] += by;
    };
    int k = 0;
    for (; k + B <= n; k += B, advance(B)) dot<B, G>(a, gradient, offsets, to);
    if (B > 4 && n - k >= 4) dot<4, G>(a, gradient, offsets, to), advance(4), k += 4;
    if (n - k >= 2) dot<2, G>(a, gradient, offsets, to), advance(2), k += 2;
    if (n - k >= 1) dot<1, G>(a, gradient, offsets, to);
    visited += static_cast<long>(n) * G;
  }
  return visited;
}

long weight_gradient(int block, const WeightGradient& a) {
  if (block == 4) return weight_gradient_lists<4>(a);
  if (block == 2) return weight_gradient_lists<2>(a);
  return weight_gradient_lists<1>(a);
}

}  // namespace
}  // namespace sparcl
