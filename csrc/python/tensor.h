// PyTorch's tensors, looked at and made through DLPack's C exchange interface: without PyTorch's headers, and without the
// detached and permuted views and the capsules of an ordinary DLPack exchange (2 us a tensor and more; this is 0.05).
// Activations are batch-last: logical axes [N, C, H, W], [N, C, L] or [N, F], memory [C][H][W][N], [C][L][N] or [F][N].
#pragma once
#include <nanobind/nanobind.h>

#include <initializer_list>
#include <string>
#include <vector>

#include "engine/arena.h"
#include "engine/plan.h"

namespace sparcl {

[[noreturn]] void refuse(const std::string& what);  // throws std::invalid_argument: one line, ValueError in Python

// Finds the exchange interface of torch.Tensor; once, before all else. Throws where PyTorch is too old to have it.
void connect_to_torch();

// A batch-last tensor, valid while its Python object lives.
struct Activation {
  float* data;
  Extent extent;
  int axes;  // 4; or 3: [N, C, L] is an image of one row; or 2: [N, F] is one of one position
};
Activation activation(nanobind::handle tensor, const char* name);  // refuses what is not float32, on the CPU and batch-last
bool is_activation(nanobind::handle tensor);
// As activation(), which must have the extent of another; null for None, as in floats().
float* activation_like(nanobind::handle tensor, const Extent& extent, const char* name);

// The memory of a contiguous float32 tensor of exactly this shape, on the CPU; null for None.
float* floats(nanobind::handle tensor, std::initializer_list<long> shape, const char* name);
// A contiguous float32 tensor of any shape with so many elements.
struct Values {
  float* data;
  std::vector<int64_t> shape;
};
Values values_of(nanobind::handle tensor, long count, const char* name);
// One int64 without an axis; null for None.
int64_t* int64_scalar(nanobind::handle tensor, const char* name);
// A contiguous tensor with one axis of any length.
template <class T>
struct Vector {
  T* data;
  long length;
};
Vector<int32_t> int32_vector(nanobind::handle tensor, const char* name);
Vector<uint8_t> uint8_vector(nanobind::handle tensor, const char* name);

// As activation(), of a contiguous tensor: [N][C][H][W], [N][C][L] or [N][F] in memory.
Activation samples_first(nanobind::handle tensor, const char* name);

// Memory for a new tensor, and the tensor that takes it over. Activations come from the arena. What outlives a step's
// activations (gradients of weights) does not, as it would keep the arena from closing its gaps.
Block activation_block(const Extent& extent, bool half = false);
Block vector_block(long length);
nanobind::object activation_tensor(Block block, const Extent& extent, int axes);
nanobind::object vector_tensor(Block block, long length);
nanobind::object contiguous_tensor(Block block, const std::vector<int64_t>& shape);

}  // namespace sparcl
