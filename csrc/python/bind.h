// What the files that make up the module sparcl.kernels._native share.
#pragma once
#include <nanobind/nanobind.h>

#include <vector>

#include "engine/layers.h"
#include "python/tensor.h"

namespace sparcl {

void check_threads(int threads);  // refuses what is no sensible number of them

// Of a batch-last tensor of this extent.
Norm norm_of(const Extent& e, const Numbers& x, const Term& residual, const float* gamma, const float* beta, float eps, bool relu);

// The input of a convolution, for its weight gradient: x itself or, with `stats`, what a BatchNorm made of x. `scales`: see
// norm_term.
Source source_of(const Extent& in, nanobind::handle x, nanobind::handle gamma, nanobind::handle beta, nanobind::handle stats,
                 bool relu, std::vector<float>& scales);

void bind_chain(nanobind::module_& m);
void bind_modules(nanobind::module_& m);

}  // namespace sparcl
