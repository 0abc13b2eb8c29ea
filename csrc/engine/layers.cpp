#include "engine/layers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "engine/parallel.h"

namespace sparcl {
namespace {

constexpr float kLowest = -INFINITY;

struct Scale {
  float scale, shift;
};

Scale scale_of(const Norm& n, long c, float mean, float rstd) {
  const float scale = (n.gamma ? n.gamma[c] : 1.0f) * rstd;
  return {scale, (n.beta ? n.beta[c] : 0.0f) - mean * scale};
}

void write_channel(const Norm& n, long c, float mean, float rstd, const Room& y) {
  const Scale s = scale_of(n, c, mean, rstd);
  for (long p = 0; p < n.pieces; ++p) {
    const long at = n.at(p, c);
    kernels().norm_forward({n.x + at, n.residual.from(c, 0, at), y + at, n.signs_at(p, c), n.piece(), s.scale, s.shift, n.relu});
  }
}

// Mean and squared deviations of a channel, piece joined to piece as the kernel joins chunks.
void moments(const Norm& n, long c, double* mean, double* squares) {
  const Kernels& unit = kernels();
  unit.moments(n.x + n.at(0, c), n.piece(), mean, squares);
  for (long p = 1; p < n.pieces; ++p) {
    double m, q;
    unit.moments(n.x + n.at(p, c), n.piece(), &m, &q);
    const double delta = m - *mean, share = 1.0 / static_cast<double>(p + 1);
    *mean += delta * share;
    *squares += q + delta * delta * static_cast<double>(p * n.piece()) * share;
  }
}

// Rows (or columns) of the input that window position o covers.
struct Span {
  long first, last;
};
Span covered(long o, int stride, int padding, int size, long limit) {
  const long first = o * stride - padding;
  return {std::max(0L, first), std::min(limit, first + size)};
}

}  // namespace

void norm_forward_train(const Norm& n, float momentum, float* running_mean, float* running_var, float* mean, float* rstd,
                        const Room& y, int threads) {
  parallel_for(threads, n.channels, [&](long c) {
    double m, squares;
    moments(n, c, &m, &squares);
    mean[c] = static_cast<float>(m);
    rstd[c] = static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(n.count) + n.eps));
    if (running_mean) {
      const double unbiased = squares / static_cast<double>(std::max(1L, n.count - 1));
      running_mean[c] += momentum * (static_cast<float>(m) - running_mean[c]);
      running_var[c] += momentum * (static_cast<float>(unbiased) - running_var[c]);
    }
    if (y) write_channel(n, c, mean[c], rstd[c], y);
  });
}

void norm_forward_eval(const Norm& n, const float* running_mean, const float* running_var, float* mean, float* rstd, const Room& y,
                       int threads) {
  parallel_for(threads, n.channels, [&](long c) {
    mean[c] = running_mean[c];
    rstd[c] = 1.0f / std::sqrt(running_var[c] + n.eps);
    if (y) write_channel(n, c, mean[c], rstd[c], y);
  });
}

Term norm_term(const Norm& n, const float* mean, const float* rstd, std::vector<float>& scales) {
  scales.resize(static_cast<size_t>(2 * n.channels));
  float *scale = scales.data(), *shift = scale + n.channels;
  for (long c = 0; c < n.channels; ++c) {
    const Scale s = scale_of(n, c, mean[c], rstd[c]);
    scale[c] = s.scale;
    shift[c] = s.shift;
  }
  return {n.x, scale, shift, n.relu};
}

void norm_backward(const Norm& n, bool training, const float* mean, const float* rstd, const Numbers& y, const Numbers& gy,
                   const Room& gx, const Room& gresidual, float* ggamma, float* gbeta, int threads) {
  const Kernels& unit = kernels();
  parallel_for(threads, n.channels, [&](long c) {
    const Scale s = scale_of(n, c, mean[c], rstd[c]);
    NormBackward b;
    b.count = n.piece();
    b.scale = s.scale;
    b.shift = s.shift;
    b.mean = mean[c];
    b.relu = n.relu;
    const auto look_at = [&](long p) {
      const long at = n.at(p, c);
      b.x = n.x + at;
      b.y = y ? y + at : y;
      b.signs = n.signs_at(p, c);
      b.gradient = gy + at;
      b.gx = gx ? gx + at : gx;
      b.gresidual = gresidual ? gresidual + at : gresidual;
    };
    double sum = 0, product = 0;
    for (long p = 0; p < n.pieces; ++p) {
      double more, another;
      look_at(p);
      unit.norm_sums(b, &more, &another);
      sum += more;
      product += another;
    }
    if (ggamma) ggamma[c] = static_cast<float>(product * rstd[c]);
    if (gbeta) gbeta[c] = static_cast<float>(sum);
    const double count = static_cast<double>(n.count);
    b.a = s.scale;
    b.b = training ? static_cast<float>(-s.scale * sum / count) : 0.0f;
    b.c = training ? static_cast<float>(-s.scale * product * rstd[c] * rstd[c] / count) : 0.0f;
    for (long p = 0; (gx || gresidual) && p < n.pieces; ++p) {
      look_at(p);
      unit.norm_backward(b);
    }
  });
}

void bias_gradient(const float* gy, long channels, long count, float* gbias, int threads) {
  const Kernels& unit = kernels();
  parallel_for(threads, channels, [&](long c) { gbias[c] = static_cast<float>(unit.sum(gy + c * count, count)); });
}

Extent pooled_extent(const Extent& in, const Window& w) {
  if (w.rows < 1 || w.columns < 1 || w.row_stride < 1 || w.column_stride < 1)
    throw std::invalid_argument("a pooling window and its stride must be at least 1");
  if (w.row_padding < 0 || w.column_padding < 0 || w.row_padding > w.rows / 2 || w.column_padding > w.columns / 2)
    throw std::invalid_argument("pooling: padding must lie between 0 and half of the window");
  if (in.height < 1 || in.width < 1)  // a window without a cell has no maximum, and no place for its gradient
    throw std::invalid_argument("pooling needs an input of at least one row and one column");
  const long rows = in.height + 2L * w.row_padding - w.rows, columns = in.width + 2L * w.column_padding - w.columns;
  if (rows < 0 || columns < 0) throw std::invalid_argument("pooling: the window is larger than the padded input");
  return {in.channels, rows / w.row_stride + 1, columns / w.column_stride + 1, in.batch};
}

void average_pool(const Numbers& x, const Extent& in, const Window& w, float* y, int threads) {
  const Kernels& unit = kernels();
  const Extent out = pooled_extent(in, w);
  if (in.batch == 0) return;  // there may be any number of positions
  const float share = 1.0f / (static_cast<float>(w.rows) * static_cast<float>(w.columns));
  const long pieces = pieces_of(x, in), batch = in.batch / pieces;
  parallel_for(threads, in.channels, [&](long c) {
    for (long oy = 0; oy < out.height; ++oy)
      for (long ox = 0; ox < out.width; ++ox) {
        float* to = y + ((c * out.height + oy) * out.width + ox) * in.batch;
        std::fill(to, to + in.batch, 0.0f);
        for (long p = 0; p < pieces; ++p)
          for (long r = oy * w.row_stride; r < oy * w.row_stride + w.rows; ++r)
            for (long q = ox * w.column_stride; q < ox * w.column_stride + w.columns; ++q)
              unit.add_scaled(x + (((p * in.channels + c) * in.height + r) * in.width + q) * batch, to + p * batch, batch, share);
      }
  });
}

void average_pool_backward(const float* gy, const Extent& in, const Window& w, const Room& gx, int threads) {
  const Kernels& unit = kernels();
  const Extent out = pooled_extent(in, w);
  if (in.batch == 0) return;  // there may be any number of positions
  const float share = 1.0f / (static_cast<float>(w.rows) * static_cast<float>(w.columns));
  const long pieces = pieces_of(gx, in), batch = in.batch / pieces, plane = in.height * in.width * batch;
  parallel_for(threads, in.channels, [&](long c) {
    for (long p = 0; p < pieces; ++p) clear(gx + (p * in.channels + c) * plane, plane);
    for (long oy = 0; oy < out.height; ++oy)
      for (long ox = 0; ox < out.width; ++ox) {
        const float* from = gy + ((c * out.height + oy) * out.width + ox) * in.batch;
        for (long p = 0; p < pieces; ++p)
          for (long r = oy * w.row_stride; r < oy * w.row_stride + w.rows; ++r)
            for (long q = ox * w.column_stride; q < ox * w.column_stride + w.columns; ++q)
              unit.add_scaled(from + p * batch, gx + (((p * in.channels + c) * in.height + r) * in.width + q) * batch, batch, share);
      }
  });
}

void max_pool(const float* x, const Extent& in, const Window& w, float* y, int threads) {
  const Kernels& unit = kernels();
  const Extent out = pooled_extent(in, w);
  if (in.batch == 0) return;
  parallel_for(threads, in.channels, [&](long c) {
    for (long oy = 0; oy < out.height; ++oy)
      for (long ox = 0; ox < out.width; ++ox) {
        float* to = y + ((c * out.height + oy) * out.width + ox) * in.batch;
        std::fill(to, to + in.batch, kLowest);
        const Span rows = covered(oy, w.row_stride, w.row_padding, w.rows, in.height);
        const Span columns = covered(ox, w.column_stride, w.column_padding, w.columns, in.width);
        for (long r = rows.first; r < rows.last; ++r)
          for (long q = columns.first; q < columns.last; ++q)
            unit.maximum(x + ((c * in.height + r) * in.width + q) * in.batch, to, in.batch);
      }
  });
}

// The gradient goes to the first maximum of a window, found again rather than remembered.
void max_pool_backward(const float* x, const float* gy, const Extent& in, const Window& w, float* gx, int threads) {
  const Extent out = pooled_extent(in, w);
  if (in.batch == 0) return;
  parallel_for(threads, in.channels, [&](long c) {
    const long plane = in.height * in.width * in.batch;
    const float* from = x + c * plane;
    float* to = gx + c * plane;
    std::fill(to, to + plane, 0.0f);
    for (long oy = 0; oy < out.height; ++oy)
      for (long ox = 0; ox < out.width; ++ox) {
        const float* g = gy + ((c * out.height + oy) * out.width + ox) * in.batch;
        const Span rows = covered(oy, w.row_stride, w.row_padding, w.rows, in.height);
        const Span columns = covered(ox, w.column_stride, w.column_padding, w.columns, in.width);
        for (long n = 0; n < in.batch; ++n) {
          long best = (rows.first * in.width + columns.first) * in.batch + n;
          for (long r = rows.first; r < rows.last; ++r)
            for (long q = columns.first; q < columns.last; ++q) {
              const long at = (r * in.width + q) * in.batch + n;
              if (from[at] > from[best] || std::isnan(from[at])) best = at;
            }
          to[best] += g[n];
        }
      }
  });
}

void transpose(const float* x, long rows, long columns, float* y, int threads) {
  const Kernels& unit = kernels();
  constexpr long kSpan = 1024;
  parallel_for(threads, (columns + kSpan - 1) / kSpan, [&](long span) {
    const long first = span * kSpan, count = std::min(kSpan, columns - first);
    unit.transpose(x + first, rows, count, columns, y + first * rows, rows);
  });
}

}  // namespace sparcl
