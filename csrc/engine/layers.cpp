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

uint8_t* signs_of(const Norm& n, long c) { return n.signs ? n.signs + c * sign_bytes(n.count) : nullptr; }

void write_channel(const Norm& n, long c, float mean, float rstd, float* y) {
  const long at = c * n.count;
  const Scale s = scale_of(n, c, mean, rstd);
  kernels().norm_forward({n.x + at, n.residual.from(c, n.count, 0), y + at, signs_of(n, c), n.count, s.scale, s.shift, n.relu});
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

void norm_forward_train(const Norm& n, float momentum, float* running_mean, float* running_var, float* mean, float* rstd, float* y,
                        int threads) {
  const Kernels& unit = kernels();
  parallel_for(threads, n.channels, [&](long c) {
    const long at = c * n.count;
    double m, squares;
    unit.moments(n.x + at, n.count, &m, &squares);
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

void norm_forward_eval(const Norm& n, const float* running_mean, const float* running_var, float* mean, float* rstd, float* y,
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

void norm_backward(const Norm& n, bool training, const float* mean, const float* rstd, const float* y, const float* gy, float* gx,
                   float* gresidual, float* ggamma, float* gbeta, int threads) {
  const Kernels& unit = kernels();
  parallel_for(threads, n.channels, [&](long c) {
    const long at = c * n.count;
    const Scale s = scale_of(n, c, mean[c], rstd[c]);
    NormBackward b;
    b.x = n.x + at;
    b.y = y ? y + at : nullptr;
    b.signs = signs_of(n, c);
    b.gradient = gy + at;
    b.count = n.count;
    b.scale = s.scale;
    b.shift = s.shift;
    b.mean = mean[c];
    b.relu = n.relu;
    b.gx = gx ? gx + at : nullptr;
    b.gresidual = gresidual ? gresidual + at : nullptr;
    double sum, product;
    unit.norm_sums(b, &sum, &product);
    if (ggamma) ggamma[c] = static_cast<float>(product * rstd[c]);
    if (gbeta) gbeta[c] = static_cast<float>(sum);
    const double count = static_cast<double>(n.count);
    b.a = s.scale;
    b.b = training ? static_cast<float>(-s.scale * sum / count) : 0.0f;
    b.c = training ? static_cast<float>(-s.scale * product * rstd[c] * rstd[c] / count) : 0.0f;
    if (b.gx || b.gresidual) unit.norm_backward(b);
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

void average_pool(const float* x, const Extent& in, const Window& w, float* y, int threads) {
  const Kernels& unit = kernels();
  const Extent out = pooled_extent(in, w);
  if (in.batch == 0) return;  // there may be any number of positions
  const float share = 1.0f / (static_cast<float>(w.rows) * static_cast<float>(w.columns));
  parallel_for(threads, in.channels, [&](long c) {
    for (long oy = 0; oy < out.height; ++oy)
      for (long ox = 0; ox < out.width; ++ox) {
        float* to = y + ((c * out.height + oy) * out.width + ox) * in.batch;
        std::fill(to, to + in.batch, 0.0f);
        for (long r = oy * w.row_stride; r < oy * w.row_stride + w.rows; ++r)
          for (long q = ox * w.column_stride; q < ox * w.column_stride + w.columns; ++q)
            unit.add_scaled(x + ((c * in.height + r) * in.width + q) * in.batch, to, in.batch, share);
      }
  });
}

void average_pool_backward(const float* gy, const Extent& in, const Window& w, float* gx, int threads) {
  const Kernels& unit = kernels();
  const Extent out = pooled_extent(in, w);
  if (in.batch == 0) return;  // there may be any number of positions
  const float share = 1.0f / (static_cast<float>(w.rows) * static_cast<float>(w.columns));
  parallel_for(threads, in.channels, [&](long c) {
    const long plane = in.height * in.width * in.batch;
    std::fill(gx + c * plane, gx + (c + 1) * plane, 0.0f);
    for (long oy = 0; oy < out.height; ++oy)
      for (long ox = 0; ox < out.width; ++ox) {
        const float* from = gy + ((c * out.height + oy) * out.width + ox) * in.batch;
        for (long r = oy * w.row_stride; r < oy * w.row_stride + w.rows; ++r)
          for (long q = ox * w.column_stride; q < ox * w.column_stride + w.columns; ++q)
            unit.add_scaled(from, gx + ((c * in.height + r) * in.width + q) * in.batch, in.batch, share);
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
