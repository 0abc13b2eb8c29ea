#include "python/tensor.h"

#include <nanobind/ndarray.h>

#include <cstdlib>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

namespace nb = nanobind;

namespace sparcl {
namespace {

using nb::dlpack::dltensor;

// The parts of DLPack 1.x that nanobind does not declare, in DLPack's memory layout (dmlc.github.io/dlpack).
struct Version {
  uint32_t major, minor;
};
struct Managed {
  Version version;
  void* context;
  void (*deleter)(Managed*);
  uint64_t flags;
  dltensor tensor;
};
struct Exchange {
  Version version;
  Exchange* older;
  void* allocate;
  void* export_owned;
  int (*import_owned)(Managed*, void** object);
  int (*look)(void* object, dltensor*);
  void* current_stream;
};
constexpr int32_t kCpu = 1;
constexpr long kMost = 1L << 40;  // elements of one tensor

const Exchange* torch = nullptr;
PyObject* is_negated = nullptr;  // torch.Tensor.is_neg

bool empty(const dltensor& t) {
  for (int i = 0; i < t.ndim; ++i)
    if (t.shape[i] == 0) return true;
  return false;
}

bool look_at(nb::handle tensor, dltensor& out) {
  if (torch->look(tensor.ptr(), &out) == 0) return out.data || empty(out);  // without memory: PyTorch's zero tensors
  PyErr_Clear();
  return false;
}

// PyTorch negates some tensors in name only: a bit says that every number in memory stands for its opposite. DLPack does not tell.
bool negated(nb::handle tensor) { return nb::cast<bool>(nb::handle(is_negated)(tensor)); }

dltensor look(nb::handle tensor, const char* name) {
  dltensor t;
  if (!look_at(tensor, t)) refuse(std::string(name) + " must be a torch.Tensor in the memory of the processor");
  if (negated(tensor)) refuse(std::string(name) + " has PyTorch's negative bit; give x.resolve_neg()");
  return t;
}

std::string text(const int64_t* shape, int axes) {
  std::string s = "[";
  for (int i = 0; i < axes; ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + "]";
}

template <class T>
T* data_of(const dltensor& t) {
  return reinterpret_cast<T*>(static_cast<char*>(t.data) + t.byte_offset);
}

template <class T>
void check_type(const dltensor& t, const char* name, const char* type) {
  if (t.device.device_type != kCpu) refuse(std::string(name) + " must be a torch.Tensor in the memory of the processor");
  if (t.dtype != nb::dtype<T>()) refuse(std::string(name) + " must be " + type);
}

// Strides of axes of size 1 say nothing, nor do those of a tensor without elements.
bool contiguous(const dltensor& t) {
  int64_t expected = 1;
  for (int i = t.ndim; i-- > 0; expected *= t.shape[i])
    if (t.shape[i] != 1 && t.strides[i] != expected) return empty(t);
  return true;
}

bool batch_last(const dltensor& t) {
  int64_t expected = t.shape[0];
  if (expected != 1 && t.strides[0] != 1) return empty(t);
  for (int i = t.ndim; i-- > 1; expected *= t.shape[i])
    if (t.shape[i] != 1 && t.strides[i] != expected) return empty(t);
  return true;
}

Activation unchecked(const dltensor& t) {
  const int64_t height = t.ndim == 4 ? t.shape[2] : 1, width = t.ndim > 2 ? t.shape[t.ndim - 1] : 1;
  return {data_of<float>(t), {t.shape[1], height, width, t.shape[0]}, t.ndim};
}

dltensor checked_activation(nb::handle tensor, const char* name) {
  const dltensor t = look(tensor, name);
  if (t.ndim < 2 || t.ndim > 4) refuse(std::string(name) + " must have two to four axes, [N, F], [N, C, L] or [N, C, H, W]");
  check_type<float>(t, name, "float32");
  return t;
}

template <class T>
Vector<T> vector_of(nb::handle tensor, const char* name, const char* type) {
  const dltensor t = look(tensor, name);
  if (t.ndim != 1) refuse(std::string(name) + " must have one axis");
  check_type<T>(t, name, type);
  if (!contiguous(t)) refuse(std::string(name) + " must be contiguous");
  return {data_of<T>(t), static_cast<long>(t.shape[0])};
}

// A tensor as PyTorch takes it over: it calls `deleter` when nobody needs the memory any more.
constexpr int kMostAxes = 8;
struct Owned {
  Managed managed;
  int64_t shape[kMostAxes], strides[kMostAxes];
};

nb::object tensor_of(Block block, int axes, const int64_t* shape, const int64_t* strides) {
  if (axes > kMostAxes) refuse("a tensor may have at most 8 axes");
  auto owned = std::make_unique<Owned>();
  owned->managed = {{1, 0}, owned.get(), nullptr, 0, {}};
  owned->managed.deleter = [](Managed* managed) {
    give(managed->tensor.data);
    delete static_cast<Owned*>(managed->context);
  };
  for (int i = 0; i < axes; ++i) owned->shape[i] = shape[i], owned->strides[i] = strides[i];
  owned->managed.tensor = {block.get(), {kCpu, 0}, axes, nb::dtype<float>(), owned->shape, owned->strides, 0};
  void* object = nullptr;
  if (torch->import_owned(&owned->managed, &object) != 0) throw nb::python_error();
  block.release();
  owned.release();
  return nb::steal(static_cast<PyObject*>(object));
}

}  // namespace

void refuse(const std::string& what) { throw std::invalid_argument(what); }

void connect_to_torch() {
  const nb::object capsule = nb::getattr(nb::module_::import_("torch").attr("Tensor"), "__dlpack_c_exchange_api__", nb::none());
  if (!capsule.is_none()) torch = static_cast<const Exchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (torch && torch->version.major > 1) torch = torch->older;
  if (!torch || !torch->look || !torch->import_owned) throw nb::import_error("it needs PyTorch 2.11 or newer");
  is_negated = nb::object(nb::module_::import_("torch").attr("Tensor").attr("is_neg")).release().ptr();
}

bool is_activation(nb::handle tensor) {
  dltensor t;
  return look_at(tensor, t) && t.ndim >= 2 && t.ndim <= 4 && t.device.device_type == kCpu && t.dtype == nb::dtype<float>() &&
         batch_last(t) && !negated(tensor);
}

Activation activation(nb::handle tensor, const char* name) {
  const dltensor t = checked_activation(tensor, name);
  if (!batch_last(t)) refuse(std::string(name) + " must lie batch-last in memory");
  return unchecked(t);
}

float* activation_like(nb::handle tensor, const Extent& extent, const char* name) {
  if (tensor.is_none()) return nullptr;
  const Activation a = activation(tensor, name);
  const Extent& e = a.extent;
  if (e.channels != extent.channels || e.height != extent.height || e.width != extent.width || e.batch != extent.batch) {
    const int64_t have[4] = {e.batch, e.channels, e.height, e.width};
    const int64_t want[4] = {extent.batch, extent.channels, extent.height, extent.width};
    refuse(std::string(name) + " must have shape " + text(want, 4) + ", not " + text(have, 4));
  }
  return a.data;
}

float* floats(nb::handle tensor, std::initializer_list<long> shape, const char* name) {
  if (tensor.is_none()) return nullptr;
  const dltensor t = look(tensor, name);
  bool same = static_cast<size_t>(t.ndim) == shape.size();
  for (size_t i = 0; same && i < shape.size(); ++i) same = t.shape[i] == shape.begin()[i];
  if (!same) {
    const std::vector<int64_t> want(shape.begin(), shape.end());
    refuse(std::string(name) + " must have shape " + text(want.data(), static_cast<int>(want.size())) + ", not " +
           text(t.shape, t.ndim));
  }
  check_type<float>(t, name, "float32");
  if (!contiguous(t)) refuse(std::string(name) + " must be contiguous");
  return data_of<float>(t);
}

Values values_of(nb::handle tensor, long count, const char* name) {
  const dltensor t = look(tensor, name);
  int64_t have = 1;
  for (int i = 0; i < t.ndim; ++i) have *= t.shape[i];
  if (have != count) refuse(std::string(name) + " must have " + std::to_string(count) + " elements, not " + std::to_string(have));
  check_type<float>(t, name, "float32");
  if (!contiguous(t)) refuse(std::string(name) + " must be contiguous");
  return {data_of<float>(t), {t.shape, t.shape + t.ndim}};
}

int64_t* int64_scalar(nb::handle tensor, const char* name) {
  if (tensor.is_none()) return nullptr;
  const dltensor t = look(tensor, name);
  if (t.ndim != 0) refuse(std::string(name) + " must have no axis");
  check_type<int64_t>(t, name, "int64");
  return data_of<int64_t>(t);
}

Vector<int32_t> int32_vector(nb::handle tensor, const char* name) { return vector_of<int32_t>(tensor, name, "int32"); }
Vector<uint8_t> uint8_vector(nb::handle tensor, const char* name) { return vector_of<uint8_t>(tensor, name, "uint8"); }

Activation samples_first(nb::handle tensor, const char* name) {
  const dltensor t = checked_activation(tensor, name);
  if (!contiguous(t)) refuse(std::string(name) + " must be contiguous");
  return unchecked(t);
}

Block activation_block(const Extent& e, bool half) {
  long count = 1;
  for (long axis : {e.channels, e.height, e.width, e.batch}) {
    if (axis < 0 || (axis > 0 && count > kMost / axis)) refuse("a result would have an axis that is negative or too large");
    count *= axis;
  }
  return Block(static_cast<float*>(take(static_cast<size_t>(count) * (half ? sizeof(Half) : sizeof(float)))));
}

Block vector_block(long length) {
  const size_t bytes = (static_cast<size_t>(length) * sizeof(float) + 63) / 64 * 64;
  void* block = std::aligned_alloc(64, bytes ? bytes : 64);
  if (!block) throw std::bad_alloc();
  return Block(static_cast<float*>(block));
}

nb::object activation_tensor(Block block, const Extent& e, int axes) {
  const int64_t area = e.width * e.batch;
  if (axes == 3) {  // a row of an image, without the axis of its one row
    const int64_t shape[3] = {e.batch, e.channels, e.width}, strides[3] = {1, area, e.batch};
    return tensor_of(std::move(block), axes, shape, strides);
  }
  const int64_t shape[4] = {e.batch, e.channels, e.height, e.width}, strides[4] = {1, e.height * area, area, e.batch};
  return tensor_of(std::move(block), axes, shape, strides);
}

nb::object vector_tensor(Block block, long length) { return contiguous_tensor(std::move(block), {length}); }

nb::object contiguous_tensor(Block block, const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0; stride *= shape[i]) strides[i] = stride;
  return tensor_of(std::move(block), static_cast<int>(shape.size()), shape.data(), strides.data());
}

}  // namespace sparcl
