// Replays the cases of tests/kernels/write_cases.py without Python: under sanitizers, emulators, on a device.
//   replay FILE      exit status 0 if every result is within 1e-4 of the expected one, and no bit depends on the threads
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/arena.h"
#include "engine/layers.h"
#include "engine/parallel.h"

using namespace sparcl;

namespace {

using Floats = std::vector<float>;

class Reader {
 public:
  explicit Reader(const char* path) : file_(std::fopen(path, "rb")) {
    if (!file_) throw std::runtime_error(std::string("cannot open ") + path);
  }
  ~Reader() { std::fclose(file_); }
  int number() {
    int32_t n;
    read(&n, 1);
    return n;
  }
  std::vector<int32_t> numbers(size_t count) {
    std::vector<int32_t> n(count);
    read(n.data(), count);
    return n;
  }
  Floats floats(long count) {
    Floats f(static_cast<size_t>(count));
    read(f.data(), f.size());
    return f;
  }

 private:
  void read(void* to, size_t count) {
    if (count && std::fread(to, 4, count, file_) != count) throw std::runtime_error("the file ends too early");
  }
  std::FILE* file_;
};

// `parts` is the size of what was added up: a sum that cancels is only as exact as that.
void compare(const char* what, const Floats& got, const Floats& want, float parts = 0) {
  float scale = parts, error = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    scale = std::fmax(scale, std::fabs(want[i]));
    error = std::isfinite(got[i]) ? std::fmax(error, std::fabs(got[i] - want[i])) : INFINITY;
  }
  if (got.size() != want.size() || !(error <= 1e-4f * scale))
    throw std::runtime_error(std::string(what) + ": error " + std::to_string(error) + " of " + std::to_string(scale));
}

void same_bits(const char* what, const Floats& a, const Floats& b) {
  if (!a.empty() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)))
    throw std::runtime_error(std::string(what) + ": the bits differ");
}

float sum_of_sizes(const Floats& x) {
  float s = 0;
  for (float v : x) s += std::fabs(v);
  return s;
}

std::vector<uint8_t> signs_of(const Floats& x, const Extent& e) {
  const long count = e.height * e.width * e.batch, row = sign_bytes(count);
  std::vector<uint8_t> signs(static_cast<size_t>(e.channels * row));
  for (long i = 0; i < e.count(); ++i) signs[i / count * row + i % count / 8] |= (x[i] > 0) << i % count % 8;
  return signs;
}

const float* maybe(const Floats& x) { return x.empty() ? nullptr : x.data(); }

// The weight gradient of a BatchNorm's result, written to memory or made on the way in; beside it nothing, a residual, another norm's.
void check_norm_term(ConvPlan& plan, const Extent& e, const Floats& values, const Floats& x, const Floats& gy, int threads) {
  const Floats mean(e.channels, 0.25f), var(e.channels, 2.0f), other(x.rbegin(), x.rend());
  Floats m(e.channels), rstd(e.channels), y(x.size()), scales, more, written(plan.nonzeros()), made(plan.nonzeros());
  Norm norm{e.channels, e.height * e.width * e.batch, other.data(), nullptr, nullptr, nullptr, 1e-5f, true};
  norm_forward_eval(norm, mean.data(), var.data(), m.data(), rstd.data(), y.data(), threads);
  const Term beside = norm_term(norm, m.data(), rstd.data(), more);
  norm.x = x.data();
  for (const Term& residual : {Term(), Term(other.data()), beside}) {
    norm.residual = residual;
    norm_forward_eval(norm, mean.data(), var.data(), m.data(), rstd.data(), y.data(), threads);
    plan.backward(values.data(), y.data(), gy.data(), e, nullptr, written.data(), threads);
    const Source source(norm_term(norm, m.data(), rstd.data(), scales), residual);
    plan.backward(values.data(), source, gy.data(), e, nullptr, made.data(), threads);
    same_bits("weight gradient of a norm's result", made, written);
  }
}

// The nearest half, of two the even one.
Half rounded(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

float widened(Half h) {
  const uint32_t bits = static_cast<uint32_t>(h.bits) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

Floats rounded(Floats x) {
  for (float& v : x) v = widened(rounded(v));
  return x;
}

// Where number i of a batch-last tensor lies among its halves.
long place_of(long i, const Extent& e) {
  const long V = kernels().lanes, cell = i / e.batch, lane = i % e.batch;
  return lane / V * (e.count() / e.batch) * V + cell * V + lane % V;
}

std::vector<Half> halves_of(const Floats& x, const Extent& e) {
  std::vector<Half> halves(x.size());
  for (long i = 0; i < e.count(); ++i) halves[place_of(i, e)] = rounded(x[i]);
  return halves;
}

Floats floats_of(const std::vector<Half>& halves, const Extent& e) {
  Floats x(halves.size());
  for (long i = 0; i < e.count(); ++i) x[i] = widened(halves[place_of(i, e)]);
  return x;
}

std::vector<uint8_t> signs_of_halves(const std::vector<Half>& x, const Extent& e) {
  const Extent piece{e.batch / kernels().lanes * e.channels, e.height, e.width, kernels().lanes};
  Floats in_order;
  for (Half h : x) in_order.push_back(widened(h));
  return signs_of(in_order, piece);
}

// A convolution of halves: to the bit that of the same numbers as floats, rounded as it is written. One that does not tell positions
// from samples (1x1) sums in another order.
void check_halves(ConvPlan& plan, const Extent& e, const Floats& values, const Floats& x, const Floats& gy, int threads) {
  const Extent out = plan.output_extent(e);
  if (!halves_fit(e) || out.count() == 0) return;
  const ConvShape& s = plan.shape();
  const bool flat = s.weight[2] * s.weight[3] == 1 && s.stride[0] * s.stride[1] == 1 && s.padding[0] + s.padding[1] == 0;
  const Floats rx = rounded(x), rgy = rounded(gy);
  const std::vector<Half> hx = halves_of(x, e), hgy = halves_of(gy, out);
  const std::vector<uint8_t> where = signs_of(rx, e), where_halves = signs_of_halves(hx, e);
  Floats y(gy.size()), gx(x.size()), gvalues(values.size()), alone(values.size()), half_gvalues(values.size()), half_alone(values.size());
  std::vector<Half> hy(gy.size()), hgx(x.size());
  plan.forward(values.data(), nullptr, rx.data(), e, y.data(), threads);
  plan.forward(values.data(), nullptr, Numbers(hx.data()), e, hy.data(), threads);
  plan.backward(values.data(), rx.data(), rgy.data(), e, gx.data(), gvalues.data(), threads, {rx.data(), where.data()});
  plan.backward(values.data(), Numbers(hx.data()), hgy.data(), e, hgx.data(), half_gvalues.data(), threads, {hx.data(), where_halves.data()});
  plan.backward(values.data(), rx.data(), rgy.data(), e, nullptr, alone.data(), threads);
  plan.backward(values.data(), Numbers(hx.data()), hgy.data(), e, nullptr, half_alone.data(), threads);
  const auto check = [&](const char* what, const Floats& got, const Floats& want) {
    if (!flat) return same_bits(what, got, want);
    float scale = 0;
    for (float v : want) scale = std::fmax(scale, std::fabs(v));
    for (size_t i = 0; i < want.size(); ++i)
      if (!(std::fabs(got[i] - want[i]) <= scale / 128)) throw std::runtime_error(std::string(what) + " differs");
  };
  check("forward, in halves", floats_of(hy, out), rounded(y));
  check("input gradient, in halves", floats_of(hgx, e), rounded(gx));
  check("weight gradient with it, of halves", half_gvalues, gvalues);
  check("weight gradient, of halves", half_alone, alone);
}

void replay_convolution(Reader& in) {
  Extent e;
  e.batch = in.number();
  e.channels = in.number();
  e.height = in.number();
  e.width = in.number();
  ConvShape shape;
  for (int& w : shape.weight) w = in.number();
  for (auto* pair : {&shape.stride, &shape.padding, &shape.dilation})
    for (int& v : *pair) v = in.number();
  shape.groups = in.number();
  const int block = in.number(), has_bias = in.number(), nonzeros = in.number();
  const auto index = in.numbers(static_cast<size_t>(nonzeros)), chosen_numbers = in.numbers(static_cast<size_t>(nonzeros));
  ConvPlan plan(index.data(), nonzeros, shape, block);
  const Extent out = plan.output_extent(e);
  const Floats values = in.floats(nonzeros), bias = in.floats(has_bias ? out.channels : 0), x = in.floats(e.count());
  const Floats gy = in.floats(out.count()), want_y = in.floats(out.count()), want_gx = in.floats(e.count());
  const Floats want_gvalues = in.floats(nonzeros), want_gbias = in.floats(has_bias ? out.channels : 0);

  std::vector<uint8_t> chosen(chosen_numbers.begin(), chosen_numbers.end());
  Floats want_chosen = want_gvalues, first_y, first_gx, first_gvalues, first_both_gx, first_both_gvalues;
  long long count = 0;
  for (size_t k = 0; k < chosen.size(); ++k) {
    want_chosen[k] *= chosen[k];
    count += chosen[k];
  }
  for (int threads : {1, 2, 5}) {
    Floats y(want_y.size(), NAN), gx(want_gx.size(), NAN), gvalues(want_gvalues.size(), NAN), gbias(want_gbias.size(), NAN);
    plan.set_chosen(nullptr);  // it decides on the order in which an input gradient is summed
    plan.forward(values.data(), maybe(bias), x.data(), e, y.data(), threads);
    plan.backward(values.data(), nullptr, gy.data(), e, gx.data(), nullptr, threads);
    Floats twice = gx, doubled = gx, some(gx.size()), doubled_there = gx;
    plan.backward(values.data(), nullptr, gy.data(), e, twice.data(), nullptr, threads, {twice.data()});
    const std::vector<uint8_t> where = signs_of(x, e);
    plan.backward(values.data(), nullptr, gy.data(), e, some.data(), nullptr, threads, {gx.data(), where.data()});
    for (size_t i = 0; i < gx.size(); ++i) {
      doubled[i] += gx[i];
      if (x[i] > 0) doubled_there[i] += gx[i];
    }
    same_bits("input gradient, added to itself", twice, doubled);
    same_bits("input gradient, added to itself in places", some, doubled_there);
    plan.backward(values.data(), x.data(), gy.data(), e, nullptr, gvalues.data(), threads);
    compare("forward", y, want_y);
    compare("input gradient", gx, want_gx);
    compare("weight gradient", gvalues, want_gvalues);
    check_norm_term(plan, e, values, x, gy, threads);
    check_halves(plan, e, values, x, gy, threads);
    if (has_bias) {
      bias_gradient(gy.data(), out.channels, out.height * out.width * out.batch, gbias.data(), threads);
      compare("bias gradient", gbias, want_gbias, sum_of_sizes(gy) / static_cast<float>(out.channels));
    }
    if (threads == 1) {
      first_y = y, first_gx = gx, first_gvalues = gvalues;
    }
    same_bits("forward", y, first_y);
    same_bits("input gradient", gx, first_gx);
    same_bits("weight gradient", gvalues, first_gvalues);
    Floats both_gx(gx.size(), NAN), both_gvalues(gvalues.size(), NAN);
    plan.backward(values.data(), x.data(), gy.data(), e, both_gx.data(), both_gvalues.data(), threads);
    compare("input gradient, both at once", both_gx, want_gx);
    compare("weight gradient, both at once", both_gvalues, want_gvalues);
    if (threads == 1) {
      first_both_gx = both_gx, first_both_gvalues = both_gvalues;
    }
    same_bits("input gradient, both at once", both_gx, first_both_gx);
    same_bits("weight gradient, both at once", both_gvalues, first_both_gvalues);
    plan.set_chosen(chosen.data());
    for (float* with : {static_cast<float*>(nullptr), both_gx.data()}) {
      reset_counters();
      plan.backward(values.data(), x.data(), gy.data(), e, with, gvalues.data(), threads);
      compare("weight gradient of the chosen", gvalues, want_chosen);
      if (counters().weight_gradient != count * out.height * out.width * out.batch)
        throw std::runtime_error("multiply-adds of the weight gradient: chosen x positions x batch expected");
    }
    compare("input gradient, beside the weight gradient of the chosen", both_gx, want_gx);
  }
}

// The signs that a forward pass leaves, and the way back by them: the same bits as by the result.
void check_signs(Norm n, bool training, const Extent& e, const Floats& mean, const Floats& rstd, const Floats& y, const Floats& gy,
                 int threads) {
  std::vector<uint8_t> signs(static_cast<size_t>(e.channels * sign_bytes(n.count)), 0xff);
  Floats again(y.size()), m(mean.size()), r(mean.size()), by_result(y.size()), by_signs(y.size());
  norm_backward(n, training, mean.data(), rstd.data(), y.data(), gy.data(), by_result.data(), nullptr, nullptr, nullptr, threads);
  if (!training) signs = signs_of(y, e);
  n.signs = signs.data();
  if (training) {
    norm_forward_train(n, 0.1f, nullptr, nullptr, m.data(), r.data(), again.data(), threads);
    same_bits("normalised, with signs", again, y);
  }
  norm_backward(n, training, mean.data(), rstd.data(), nullptr, gy.data(), by_signs.data(), nullptr, nullptr, nullptr, threads);
  same_bits("input gradient of the norm, by signs", by_signs, by_result);
}

void replay_norm(Reader& in) {
  Extent e;
  e.batch = in.number();
  e.channels = in.number();
  e.height = in.number();
  e.width = in.number();
  const bool training = in.number(), relu = in.number(), with_residual = in.number();
  const Floats x = in.floats(e.count()), residual = in.floats(with_residual ? e.count() : 0);
  const Floats gamma = in.floats(e.channels), beta = in.floats(e.channels), mean = in.floats(e.channels), var = in.floats(e.channels);
  const Floats gy = in.floats(e.count()), want_y = in.floats(e.count());
  const Floats want_mean = in.floats(e.channels), want_var = in.floats(e.channels), want_gx = in.floats(e.count());
  const Floats want_ggamma = in.floats(e.channels), want_gbeta = in.floats(e.channels);
  const Norm n{e.channels, e.height * e.width * e.batch, x.data(), maybe(residual), gamma.data(), beta.data(), 1e-5f, relu};
  for (int threads : {1, 3}) {
    Floats running_mean = mean, running_var = var, m(gamma.size()), rstd(gamma.size()), y(x.size()), gx(x.size());
    Floats gresidual(residual.size()), ggamma(gamma.size()), gbeta(gamma.size());
    if (training)
      norm_forward_train(n, 0.1f, running_mean.data(), running_var.data(), m.data(), rstd.data(), y.data(), threads);
    else
      norm_forward_eval(n, running_mean.data(), running_var.data(), m.data(), rstd.data(), y.data(), threads);
    if (relu) check_signs(n, training, e, m, rstd, y, gy, threads);
    norm_backward(n, training, m.data(), rstd.data(), with_residual && relu ? y.data() : nullptr, gy.data(), gx.data(),
                  with_residual ? gresidual.data() : nullptr, ggamma.data(), gbeta.data(), threads);
    const float parts = sum_of_sizes(gy) / static_cast<float>(e.channels);
    compare("normalised", y, want_y);
    compare("running mean", running_mean, want_mean);
    compare("running variance", running_var, want_var);
    compare("input gradient of the norm", gx, want_gx, 1);
    compare("gradient of gamma", ggamma, want_ggamma, parts);
    compare("gradient of beta", gbeta, want_gbeta, parts);
  }
}

void replay_pool(Reader& in, bool maximum) {
  Extent e;
  e.batch = in.number();
  e.channels = in.number();
  e.height = in.number();
  e.width = in.number();
  Window w;
  for (int* v : {&w.rows, &w.columns, &w.row_stride, &w.column_stride, &w.row_padding, &w.column_padding}) *v = in.number();
  const Extent out = pooled_extent(e, w);
  const Floats x = in.floats(e.count()), gy = in.floats(out.count()), want_y = in.floats(out.count()), want_gx = in.floats(e.count());
  // From the arena, as in training: a write beyond a block is seen there by AddressSanitizer.
  const Block y_block(static_cast<float*>(take(want_y.size() * sizeof(float)))), gx_block(static_cast<float*>(take(want_gx.size() * sizeof(float))));
  float *const y = y_block.get(), *const gx = gx_block.get();
  if (maximum) {
    max_pool(x.data(), e, w, y, 2);
    max_pool_backward(x.data(), gy.data(), e, w, gx, 2);
  } else {
    average_pool(x.data(), e, w, y, 2);
    average_pool_backward(gy.data(), e, w, gx, 2);
  }
  compare("pooled", Floats(y, y + want_y.size()), want_y);
  compare("input gradient of pooling", Floats(gx, gx + want_gx.size()), want_gx);
}

void must_refuse(const char* what, const std::function<void()>& call) {
  try {
    call();
  } catch (const std::invalid_argument&) {
    return;
  }
  throw std::runtime_error(std::string(what) + " was not refused");
}

// Planes without a row or a column, and sizes near the end of an int.
void check_pooling_edges() {
  constexpr int kMost = std::numeric_limits<int>::max();
  const float none = 0;
  for (const Extent& e : {Extent{3, 0, 4, 2}, Extent{3, 4, 0, 2}, Extent{3, 0, 0, 2}}) {
    const Window w{2, 2, 1, 1, 1, 1};
    must_refuse("an empty plane", [&] { max_pool(&none, e, w, nullptr, 1); });
    must_refuse("an empty plane, backward", [&] { max_pool_backward(&none, &none, e, w, nullptr, 1); });
  }
  for (const Window& w : {Window{2, 2, 1, 1, kMost, 0}, Window{2, 2, 1, 1, 1 << 30, 1}, Window{kMost, 1, 1, 1, 0, 0}})
    must_refuse("a window too large", [&] { pooled_extent({3, 4, 4, 2}, w); });
  const Floats x{1, 2, 3, 4};
  Floats y(4, NAN);
  max_pool(x.data(), {1, 4, 1, 1}, {kMost, 1, kMost, 1, kMost / 2, 0}, y.data(), 2);  // one window, all rows in it
  if (y[0] != 4) throw std::runtime_error("a window larger than its input: its maximum is wrong");
  const Extent empty{1, 1 << 20, 1 << 20, 0};  // 2^40 positions, none of which holds a number
  const Window all{1 << 20, 1 << 20, 1, 1, 0, 0}, each{1, 1, 1, 1, 0, 0};
  average_pool(&none, empty, all, nullptr, 1);
  max_pool(&none, empty, each, nullptr, 2);
  max_pool_backward(&none, &none, empty, each, nullptr, 2);
  average_pool_backward(&none, empty, each, nullptr, 2);
}

// What an item throws comes out where the call was made, and the threads go on working.
void check_throwing() {
  for (int threads : {1, 2, 5})
    for (long bad : {0L, 3L, 99L}) {
      bool caught = false;
      try {
        parallel_for(threads, 100, [&](long i) {
          if (i >= bad) throw std::bad_alloc();
        });
      } catch (const std::bad_alloc&) {
        caught = true;
      }
      if (!caught) throw std::runtime_error("a failed allocation in a thread was lost");
      std::vector<int> done(100);
      parallel_for(threads, 100, [&](long i) { ++done[static_cast<size_t>(i)]; });
      for (int times : done)
        if (times != 1) throw std::runtime_error("after a failed allocation the threads do not work");
    }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::fprintf(stderr, "usage: replay FILE\n");
    return 2;
  }
  int at = 0;
  try {
    check_pooling_edges();
    check_throwing();
    Reader in(arguments[1]);
    const int cases = in.number();
    for (at = 0; at < cases; ++at) {
      const int kind = in.number();
      if (kind == 0)
        replay_convolution(in);
      else if (kind == 1)
        replay_norm(in);
      else
        replay_pool(in, kind == 2);
    }
    std::printf("%d cases right on %s\n", cases, kernels().name);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "case %d: %s\n", at, error.what());
    return 1;
  }
}
