// Passes over one contiguous channel: BatchNorm forward and backward, sums, pooling's elementwise steps, transposition.
// Included by unit-inl.h.

namespace sparcl {
namespace {

// Calls f(i, lanes) for every vector of [0, count); only the last may have fewer than V lanes.
template <class F>
SPARCL_INLINE void each_vector(long count, F&& f) {
  long i = 0;
  SPARCL_UNROLL_VECTORS
  for (; i + V <= count; i += V) f(i, V);
  if (i < count) f(i, static_cast<int>(count - i));
}

SPARCL_INLINE double lane_sum(vec v) {
  float t[V];
  store(t, v);
  double s = 0;
  for (int l = 0; l < V; ++l) s += t[l];
  return s;
}

constexpr long kChunk = 4096;  // floats: 16 KB, which stay in the first cache between two passes

template <class T>
SPARCL_INLINE float chunk_sum(const T* x, long n) {
  vec s[4] = {};
  long i = 0;
  for (; i + 4 * V <= n; i += 4 * V) {
    const Four four = load_four(x + i);
    SPARCL_UNROLL
    for (int u = 0; u < 4; ++u) s[u] += part(four, u);
  }
  each_vector(n - i, [&](long j, int lanes) SPARCL_INLINED { s[0] += get(x + i + j, lanes); });
  return static_cast<float>(lane_sum((s[0] + s[1]) + (s[2] + s[3])));
}

// In double throughout: a bias's gradient may cancel to a small part of what is added up.
double sum(const float* x, long count) {
  double s[8] = {};
  long i = 0;
  for (; i + 8 <= count; i += 8) {
    SPARCL_UNROLL
    for (int l = 0; l < 8; ++l) s[l] += x[i + l];
  }
  for (int l = 0; i < count; ++i, ++l) s[l] += x[i];
  return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
}

// Mean and squared deviations chunk by chunk, joined as in Chan, Golub and LeVeque (1979): one pass over memory, and no
// cancellation where the mean is large.
template <class T>
SPARCL_INLINE void moments_of(const T* x, long count, double* mean, double* squares) {
  double m = 0, q = 0;
  for (long i = 0; i < count; i += kChunk) {
    const long n = smaller(kChunk, count - i);
    const double chunk_mean = chunk_sum(x + i, n) / static_cast<double>(n);
    const float centre = static_cast<float>(chunk_mean);
    vec s[4] = {};
    long j = 0;
    for (; j + 4 * V <= n; j += 4 * V) {
      const Four four = load_four(x + i + j);
      SPARCL_UNROLL
      for (int u = 0; u < 4; ++u) {
        const vec d = part(four, u) - centre;
        s[u] += d * d;
      }
    }
    for (; j < n; ++j) {
      const float d = load_some(x + i + j, 1)[0] - centre;
      s[0][0] += d * d;
    }
    const double off = chunk_mean - centre;
    const double chunk_squares = lane_sum((s[0] + s[1]) + (s[2] + s[3])) - off * off * static_cast<double>(n);
    const double delta = chunk_mean - m, before = static_cast<double>(i), all = static_cast<double>(i + n);
    m += delta * static_cast<double>(n) / all;
    q += chunk_squares + delta * delta * before * static_cast<double>(n) / all;
  }
  *mean = m;
  *squares = q > 0 ? q : (q == q ? 0 : q);
}

void moments(const Numbers& x, long count, double* mean, double* squares) {
  if (kHalves && x.half)
    moments_of(x.as<Half>(), count, mean, squares);
  else
    moments_of(x.as<float>(), count, mean, squares);
}

// make(x, lanes): y of the vector at x.
template <class T, class Make>
SPARCL_INLINE void norm_forward_as(const NormForward& a, Make make) {
  const T* x = a.x.as<T>();  // for the compiler each store may change a field
  T* y = a.y.as<T>();
  uint8_t* signs = a.signs;
  const long count = a.count;
  const auto write = [=](long i, int lanes) SPARCL_INLINED {
    const vec v = make(x + i, lanes);
    put(y + i, v, lanes);
    return v;
  };
  if (!signs) return each_vector(count, write);
  long i = 0;
#if defined(SPARCL_NEON)
  for (; i + 4 * V <= count; i += 4 * V) {  // the signs of four vectors at a time
    mask all = {};
    SPARCL_UNROLL
    for (int u = 0; u < 4; ++u) all |= (write(i + u * V, V) > 0.0f) & kBits << 4 * u;
    const auto bits = static_cast<uint16_t>(vaddvq_s32(reinterpret_cast<int32x4_t>(all)));
    memcpy(signs + (i >> 3), &bits, sizeof bits);
  }
#endif
  each_vector(count - i, [=](long j, int lanes) SPARCL_INLINED { put_signs(signs, i + j, signs_of(write(i + j, lanes))); });
}

template <class T>
SPARCL_INLINE void norm_forward_of(const NormForward& a) {
  const Scaled s{a.x, &a.scale, &a.shift, a.relu ? 0.0f : -__builtin_inff()}, &r = a.residual;
  if (r.x && r.scale) return norm_forward_as<T>(a, Sum<Normalised>(s, r, 0));
  if (r.x) return norm_forward_as<T>(a, Sum<AsItIs>(s, r, 0));
  norm_forward_as<T>(a, Normalised(s, 0));
}

void norm_forward(const NormForward& a) {
  if (kHalves && a.x.half)
    norm_forward_of<Half>(a);
  else
    norm_forward_of<float>(a);
}

// Where the sign of the forward result comes from: there is no ReLU, it is computed again with the same operations, or the result
// or its signs are at hand. A template argument, as a test for each vector costs as much as the memory it waits for.
enum class Relu { kNone, kAgain, kResult, kSigns };

template <class T, Relu R>
SPARCL_INLINE vec behind_relu(const NormBackward& a, long i, int lanes, vec x, vec g) {
  if constexpr (R == Relu::kNone) return g;
  if constexpr (R == Relu::kSigns) return keep(g, signs_at(a.signs, i));
  const vec y = R == Relu::kResult ? get(a.y.as<T>() + i, lanes) : x * a.scale + a.shift;
  return y > 0.0f ? g : vec{};
}

template <class T, Relu R>
void norm_sums_as(const NormBackward& given, double* gradient, double* product) {
  const NormBackward a = given;  // for the compiler each store may change a field
  const T *from_x = a.x.as<T>(), *from_g = a.gradient.as<T>();
  double s = 0, p = 0;
  for (long from = 0; from < a.count; from += kChunk) {
    const long n = smaller(kChunk, a.count - from);
    vec sums[4] = {}, products[4] = {};
    const auto add = [&](long i, int lanes, int u, vec x, vec gradient) SPARCL_INLINED {
      const vec g = behind_relu<T, R>(a, from + i, lanes, x, gradient);
      sums[u] += g;
      products[u] += g * (x - a.mean);  // lanes that do not exist have g = 0
    };
    long i = 0;
    for (; i + 4 * V <= n; i += 4 * V) {
      const Four x = load_four(from_x + from + i), g = load_four(from_g + from + i);
      SPARCL_UNROLL
      for (int u = 0; u < 4; ++u) add(i + u * V, V, u, part(x, u), part(g, u));
    }
    each_vector(n - i, [&](long j, int lanes) SPARCL_INLINED {
      add(i + j, lanes, 0, get(from_x + from + i + j, lanes), get(from_g + from + i + j, lanes));
    });
    s += lane_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
    p += lane_sum((products[0] + products[1]) + (products[2] + products[3]));
  }
  *gradient = s;
  *product = p;
}

template <class T, Relu R, bool Input, bool Residual>
void norm_backward_as(const NormBackward& given) {
  const NormBackward a = given;  // for the compiler each store may change a field
  const T *from_x = a.x.as<T>(), *from_g = a.gradient.as<T>();
  T *gx = a.gx.as<T>(), *gresidual = a.gresidual.as<T>();
  const float slope = a.a, level = a.b, tilt = a.c, mean = a.mean;
  const auto write = [&](long i, int lanes, vec x, vec gradient) SPARCL_INLINED {
    const vec g = behind_relu<T, R>(a, i, lanes, x, gradient);
    if constexpr (Residual) put(gresidual + i, g, lanes);
    if constexpr (Input) put(gx + i, (g * slope + level) + (x - mean) * tilt, lanes);
  };
  long i = 0;
  for (; kNeon && i + 4 * V <= a.count; i += 4 * V) {
    const Four x = load_four(from_x + i), g = load_four(from_g + i);
    SPARCL_UNROLL
    for (int u = 0; u < 4; ++u) write(i + u * V, V, part(x, u), part(g, u));
  }
  each_vector(a.count - i, [&](long j, int lanes) SPARCL_INLINED {
    write(i + j, lanes, get(from_x + i + j, lanes), get(from_g + i + j, lanes));
  });
}

template <class T, Relu R>
void norm_backward_to(const NormBackward& a) {
  if (a.gx && a.gresidual) return norm_backward_as<T, R, true, true>(a);
  if (a.gx) return norm_backward_as<T, R, true, false>(a);
  norm_backward_as<T, R, false, true>(a);
}

template <class T>
void norm_sums_of(const NormBackward& a, double* gradient, double* product) {
  if (!a.relu) return norm_sums_as<T, Relu::kNone>(a, gradient, product);
  if (a.y) return norm_sums_as<T, Relu::kResult>(a, gradient, product);
  if (a.signs) return norm_sums_as<T, Relu::kSigns>(a, gradient, product);
  norm_sums_as<T, Relu::kAgain>(a, gradient, product);
}

template <class T>
void norm_backward_of(const NormBackward& a) {
  if (!a.relu) return norm_backward_to<T, Relu::kNone>(a);
  if (a.y) return norm_backward_to<T, Relu::kResult>(a);
  if (a.signs) return norm_backward_to<T, Relu::kSigns>(a);
  norm_backward_to<T, Relu::kAgain>(a);
}

void norm_sums(const NormBackward& a, double* gradient, double* product) {
  if (kHalves && a.x.half)
    norm_sums_of<Half>(a, gradient, product);
  else
    norm_sums_of<float>(a, gradient, product);
}

void norm_backward(const NormBackward& a) {
  if (kHalves && a.x.half)
    norm_backward_of<Half>(a);
  else
    norm_backward_of<float>(a);
}

template <class From, class To>
SPARCL_INLINE void add_scaled_to(const From* x, To* y, long count, float scale) {
  each_vector(count, [&](long i, int lanes) SPARCL_INLINED { put(y + i, get(y + i, lanes) + get(x + i, lanes) * scale, lanes); });
}

void add_scaled(const Numbers& x, const Room& y, long count, float scale) {
  if (!kHalves)
    add_scaled_to(x.as<float>(), y.as<float>(), count, scale);
  else if (x.half && y.half)
    add_scaled_to(x.as<Half>(), y.as<Half>(), count, scale);
  else if (x.half)
    add_scaled_to(x.as<Half>(), y.as<float>(), count, scale);
  else if (y.half)
    add_scaled_to(x.as<float>(), y.as<Half>(), count, scale);
  else
    add_scaled_to(x.as<float>(), y.as<float>(), count, scale);
}

void maximum(const float* x, float* y, long count) {
  each_vector(count, [&](long i, int lanes) SPARCL_INLINED {
    const vec a = get(x + i, lanes), b = get(y + i, lanes);
    put(y + i, ((a > b) | (a != a)) ? a : b, lanes);
  });
}

void transpose(const float* x, long rows, long columns, long x_row, float* y, long y_row) {
  constexpr long kSide = 16;
  for (long r0 = 0; r0 < rows; r0 += kSide)
    for (long c0 = 0; c0 < columns; c0 += kSide) {
      const long r1 = smaller(rows, r0 + kSide), c1 = smaller(columns, c0 + kSide);
      for (long c = c0; c < c1; ++c)
        for (long r = r0; r < r1; ++r) y[c * y_row + r] = x[r * x_row + c];
    }
}

}  // namespace
}  // namespace sparcl
