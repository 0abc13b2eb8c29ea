// The other layers of a batch-last network: BatchNorm with ReLU and residual sum, pooling, sums, change of layout.
#pragma once
#include <vector>

#include "engine/plan.h"

namespace sparcl {

// y = relu(gamma * (x - mean) / sqrt(var + eps) + beta + residual), per channel of `count` floats.
struct Norm {
  long channels, count;
  Numbers x;
  Term residual;                       // its data null or like x
  const float *gamma, *beta;           // [channels], or null: 1 and 0
  float eps;
  bool relu;
  uint8_t* signs = nullptr;            // [channels][sign_bytes(count)]: those of y, written with it, read on the way back; or null
  long pieces = 1;                     // tensors and signs lie in so many pieces, [piece][channels][count / pieces], see pieces_of
  long piece() const { return count / pieces; }
  long at(long p, long c) const { return (p * channels + c) * piece(); }
  uint8_t* signs_at(long p, long c) const { return signs ? signs + (p * channels + c) * sign_bytes(piece()) : nullptr; }
};
// Training: mean and 1 / sqrt(var + eps) of the batch are written to mean, rstd; running_* (or null) are moved by `momentum`.
// y: null where nothing but the statistics is wanted. It may be the memory of x or of the residual.
void norm_forward_train(const Norm&, float momentum, float* running_mean, float* running_var, float* mean, float* rstd,
                        const Room& y, int threads);
void norm_forward_eval(const Norm&, const float* running_mean, const float* running_var, float* mean, float* rstd, const Room& y,
                       int threads);
// The result without its residual, for whoever reads it, from what norm_forward_* left in mean and rstd: the same bits, never written
// to memory. `scales` is filled, and must outlive the use.
Term norm_term(const Norm&, const float* mean, const float* rstd, std::vector<float>& scales);
// y: the forward result, needed only with relu and residual and without signs (else null: its sign is computed again).
// gx, gresidual, ggamma, gbeta may each be null; gx may be the memory of gy or of x.
void norm_backward(const Norm&, bool training, const float* mean, const float* rstd, const Numbers& y, const Numbers& gy,
                   const Room& gx, const Room& gresidual, float* ggamma, float* gbeta, int threads);

void bias_gradient(const float* gy, long channels, long count, float* gbias, int threads);

struct Window {
  int rows, columns, row_stride, column_stride, row_padding, column_padding;
};
Extent pooled_extent(const Extent& input, const Window&);  // throws std::invalid_argument
void average_pool(const Numbers& x, const Extent& input, const Window&, float* y, int threads);  // no padding
void average_pool_backward(const float* gy, const Extent& input, const Window&, const Room& gx, int threads);
void max_pool(const float* x, const Extent& input, const Window&, float* y, int threads);
void max_pool_backward(const float* x, const float* gy, const Extent& input, const Window&, float* gx, int threads);

// y[column][row] = x[row][column]: [N][CHW] to batch-last and back.
void transpose(const float* x, long rows, long columns, float* y, int threads);

}  // namespace sparcl
