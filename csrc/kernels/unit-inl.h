// The body of one instruction set. A unit_*.cpp sets SPARCL_LANES and SPARCL_UNIT and includes this file, once.
// Everything lies in an unnamed namespace and nothing of the C++ library is used, so that no symbol is shared between
// units: a linker that merged them could hand AVX-512 code to a processor that has none.
#if defined(__AVX__)
#include <immintrin.h>
#endif
#if defined(SPARCL_NEON)
#include <arm_neon.h>
#endif
#include <string.h>

#include <utility>

#include "kernels/kernels.h"

#ifndef SPARCL_AHEAD
#define SPARCL_AHEAD 2
#endif
#define SPARCL_INLINE inline __attribute__((always_inline))
#if defined(__AVX512F__)
#define SPARCL_KEEP(v) asm("" : "+v"(v))  // in a register
#elif defined(__ARM_NEON)
#define SPARCL_KEEP(v) asm("" : "+w"(v))
#elif defined(__aarch64__)
#define SPARCL_KEEP(v) (void)0  // built without SIMD, to be counted: no register holds it
#else
#define SPARCL_KEEP(v) asm("" : "+x"(v))
#endif
#define SPARCL_UNROLL _Pragma("GCC unroll 32")
#if defined(SPARCL_NEON)
#define SPARCL_UNROLL_VECTORS _Pragma("GCC unroll 4")
#else
#define SPARCL_UNROLL_VECTORS
#endif

namespace sparcl {
namespace {

constexpr int V = SPARCL_LANES;
typedef float vec __attribute__((vector_size(4 * SPARCL_LANES), aligned(4), may_alias));
typedef uint32_t bits __attribute__((vector_size(4 * SPARCL_LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * SPARCL_LANES), aligned(2), may_alias));
typedef int32_t mask __attribute__((vector_size(4 * SPARCL_LANES)));

SPARCL_INLINE vec load(const float* p) { return *reinterpret_cast<const vec*>(p); }
SPARCL_INLINE void store(float* p, vec v) { *reinterpret_cast<vec*>(p) = v; }
SPARCL_INLINE vec widened(halves h) { return reinterpret_cast<vec>(__builtin_convertvector(h, bits) << 16); }
// The nearest, of two the even one; NaN stays one.
SPARCL_INLINE halves rounded(vec v) {
  const bits x = reinterpret_cast<bits>(v);
  const bits near = x + (0x7fff + (x >> 16 & 1));
  return __builtin_convertvector((v == v ? near : x | 0x400000) >> 16, halves);
}
SPARCL_INLINE vec load(const Half* p) { return widened(*reinterpret_cast<const halves*>(p)); }
SPARCL_INLINE void store(Half* p, vec v) { *reinterpret_cast<halves*>(p) = rounded(v); }
// Past the caches, to an address aligned to a whole vector: no line is read only to be overwritten, and what is too large to
// stay pushes nothing out. Only where a vector is a whole line. `streamed` makes such stores visible to other threads.
#if defined(__AVX512F__)
constexpr bool kStreams = true;
SPARCL_INLINE void stream(float* p, vec v) { _mm512_stream_ps(p, reinterpret_cast<__m512>(v)); }
template <int... I>
SPARCL_INLINE void stream(Half* p, vec v, vec w, std::integer_sequence<int, I...>) {
  typedef uint16_t line __attribute__((vector_size(64)));
  const line both = __builtin_shufflevector(rounded(v), rounded(w), I...);
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(both));
}
SPARCL_INLINE void stream(Half* p, vec v, vec w) { stream(p, v, w, std::make_integer_sequence<int, 2 * V>()); }
SPARCL_INLINE void streamed() { __builtin_ia32_sfence(); }
#else
constexpr bool kStreams = false;
SPARCL_INLINE void stream(float* p, vec v) { store(p, v); }
SPARCL_INLINE void stream(Half* p, vec v, vec w) {
  store(p, v);
  store(p + V, w);
}
SPARCL_INLINE void streamed() {}
#endif
SPARCL_INLINE vec fill(float x) { return x - vec{}; }
// Four vectors that follow each other, by one instruction where there is one that does it.
#if defined(SPARCL_NEON)
constexpr bool kNeon = true;
using Four = float32x4x4_t;
SPARCL_INLINE Four load_four(const float* p) { return vld1q_f32_x4(p); }
// The same, and p moves on. GCC knows no such step but of 64 bytes.
SPARCL_INLINE Four load_four(const float*& p, long step) {
#if defined(__clang__)
  const Four four = vld1q_f32_x4(p);
  p += step;
#else
  Four four;
  asm("ld1 {%S0.4s - %V0.4s}, [%1], %2"
      : "=w"(four), "+r"(p)
      : "r"(step * static_cast<long>(sizeof(float))), "m"(*reinterpret_cast<const float(*)[16]>(p)));
#endif
  return four;
}
SPARCL_INLINE vec part(const Four& four, int i) { return reinterpret_cast<vec>(four.val[i]); }
SPARCL_INLINE float32x4_t four_halves(const Half* p) { return reinterpret_cast<float32x4_t>(load(p)); }
SPARCL_INLINE Four load_four(const Half* p) {
  return {{four_halves(p), four_halves(p + V), four_halves(p + 2 * V), four_halves(p + 3 * V)}};
}
#else
constexpr bool kNeon = false;
struct Four {
  vec val[4];
};
template <class T>
SPARCL_INLINE Four load_four(const T* p) {
  return {{load(p), load(p + V), load(p + 2 * V), load(p + 3 * V)}};
}
SPARCL_INLINE Four load_four(const float*& p, long step) {
  const Four four = load_four(p);
  p += step;
  return four;
}
SPARCL_INLINE vec part(const Four& four, int i) { return four.val[i]; }
#endif

// The first `lanes` of a vector, the others zero and left alone: one masked instruction where there is one. A batch of 8 on 16
// lanes took twice as long as a batch of 16 without it.
#if defined(__AVX512F__)
SPARCL_INLINE __mmask16 first(int lanes) { return static_cast<__mmask16>((1u << lanes) - 1); }
SPARCL_INLINE vec load_some(const float* p, int lanes) { return reinterpret_cast<vec>(_mm512_maskz_loadu_ps(first(lanes), p)); }
SPARCL_INLINE void store_some(float* p, vec v, int lanes) { _mm512_mask_storeu_ps(p, first(lanes), reinterpret_cast<__m512>(v)); }
#elif defined(__AVX__)
SPARCL_INLINE __m256i first(int lanes) { return reinterpret_cast<__m256i>(mask{0, 1, 2, 3, 4, 5, 6, 7} < lanes); }
SPARCL_INLINE vec load_some(const float* p, int lanes) { return reinterpret_cast<vec>(_mm256_maskload_ps(p, first(lanes))); }
SPARCL_INLINE void store_some(float* p, vec v, int lanes) { _mm256_maskstore_ps(p, first(lanes), reinterpret_cast<__m256>(v)); }
#endif
template <class T>
SPARCL_INLINE vec load_some(const T* p, int lanes) {
  T t[V] = {};
  for (int l = 0; l < lanes; ++l) t[l] = p[l];
  return load(t);
}
template <class T>
SPARCL_INLINE void store_some(T* p, vec v, int lanes) {
  T t[V];
  store(t, v);
  for (int l = 0; l < lanes; ++l) p[l] = t[l];
}
template <class T>
SPARCL_INLINE vec get(const T* p, int lanes) {
  return lanes == V ? load(p) : load_some(p, lanes);
}
template <class T>
SPARCL_INLINE void put(T* p, vec v, int lanes) {
  if (lanes == V)
    store(p, v);
  else
    store_some(p, v, lanes);
}

// A bit for each lane that is positive (NaN is not), and the lanes whose bit is set.
#if defined(__AVX512F__)
SPARCL_INLINE uint32_t signs_of(vec v) { return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(v), _mm512_setzero_ps(), _CMP_GT_OQ); }
SPARCL_INLINE vec keep(vec v, uint32_t signs) {
  return reinterpret_cast<vec>(_mm512_maskz_mov_ps(static_cast<__mmask16>(signs), reinterpret_cast<__m512>(v)));
}
#elif defined(SPARCL_NEON)
constexpr mask kBits = {1, 2, 4, 8};
SPARCL_INLINE uint32_t signs_of(vec v) { return static_cast<uint32_t>(vaddvq_s32(reinterpret_cast<int32x4_t>((v > 0.0f) & kBits))); }
SPARCL_INLINE vec keep(vec v, uint32_t signs) {
  const uint32x4_t kept = vtstq_s32(vdupq_n_s32(static_cast<int32_t>(signs)), reinterpret_cast<int32x4_t>(kBits));
  return reinterpret_cast<vec>(vandq_u32(kept, reinterpret_cast<uint32x4_t>(v)));
}
#else
SPARCL_INLINE uint32_t signs_of(vec v) {
#if defined(__AVX__)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(v > 0.0f)));
#else
  uint32_t signs = 0;
  for (int l = 0; l < V; ++l) signs |= static_cast<uint32_t>(v[l] > 0.0f) << l;
  return signs;
#endif
}
SPARCL_INLINE vec keep(vec v, uint32_t signs) {
  mask bit;
  SPARCL_UNROLL
  for (int l = 0; l < V; ++l) bit[l] = 1 << l;
  return ((static_cast<int32_t>(signs) - mask{}) & bit) != 0 ? v : vec{};
}
#endif
// Those of the V floats from the i-th on; only multiples of V are written, in ascending order.
SPARCL_INLINE uint32_t signs_at(const uint8_t* signs, long i) {
  uint32_t some;
  memcpy(&some, signs + (i >> 3), sizeof some);
  return some >> (i & 7);
}
SPARCL_INLINE void put_signs(uint8_t* signs, long i, uint32_t bits) {
  signs += i >> 3;
  if (i & 7)
    *signs = static_cast<uint8_t>(*signs | bits << 4);  // four lanes
  else if (V == 16)
    memcpy(signs, &bits, 2);
  else
    *signs = static_cast<uint8_t>(bits);
}

SPARCL_INLINE int smaller(int a, int b) { return a < b ? a : b; }
SPARCL_INLINE long smaller(long a, long b) { return a < b ? a : b; }

}  // namespace
}  // namespace sparcl

#include "kernels/convolve-inl.h"
#include "kernels/norm-inl.h"
#include "kernels/weight_gradient-inl.h"

#include "kernels/backward-inl.h"

namespace sparcl {

const Kernels& SPARCL_UNIT() {
  static const Kernels table = {SPARCL_NAME,
                                V,
                                kStreams,
                                {SPARCL_SHAPES_1, SPARCL_SHAPES_2, SPARCL_SHAPES_4},
                                pack,
                                convolve,
                                weight_gradient,
                                backward,
                                sum,
                                moments,
                                norm_forward,
                                norm_sums,
                                norm_backward,
                                add_scaled,
                                maximum,
                                transpose};
  return table;
}

}  // namespace sparcl
