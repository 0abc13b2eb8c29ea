// The one file that a device goes on from, docs/device.md: a safetensors file whose metadata says the rest. It may come from anyone:
// everything is checked before it is used, and nothing in it is code.
#pragma once
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "device/json.h"

namespace sparcl {

struct Tensor {
  std::string dtype;  // F32, I32, I64, U8, ...: safetensors' names
  std::vector<long> shape;
  std::vector<uint8_t> bytes;

  long count() const;
  // The elements, where they are of this type and number (any, below 0). Throw std::invalid_argument naming `what`.
  const float* floats(const std::string& what, long count = -1) const;
  const int32_t* int32s(const std::string& what, long count = -1) const;
  const int64_t* int64s(const std::string& what, long count = -1) const;
  std::vector<uint8_t> bools(const std::string& what, long count = -1) const;  // each 0 or 1

 private:
  const void* of(const char* type, const std::string& what, long count) const;
};

struct SafeTensors {
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;

  const Tensor& at(const std::string& name) const;  // throws std::invalid_argument
  const Tensor* find(const std::string& name) const;
};

// Throws std::invalid_argument, one line, for what is missing, no regular file, truncated, hostile or of another version.
SafeTensors read_safetensors(const std::string& path);
// The old file or the new one, whole and synced, whenever the power fails; a link stays a link, and a file keeps its mode and, by
// root's hand, its owner. Throws std::runtime_error.
void write_safetensors(const std::string& path, const SafeTensors& file);

struct ModelFile {
  SafeTensors file;  // its tensors by their paths in the state
  Json classes, device, graph, input_shape, state, transform;
};
ModelFile read_model(const std::string& path);

template <class Item>
Tensor tensor_of(const char* dtype, std::vector<long> shape, const std::vector<Item>& from) {
  Tensor tensor{dtype, std::move(shape), std::vector<uint8_t>(from.size() * sizeof(Item))};
  if (!from.empty()) std::memcpy(tensor.bytes.data(), from.data(), tensor.bytes.size());
  return tensor;
}
// Puts a tensor of the state into the file; returns what the state says in its place.
Json put_tensor(ModelFile& model, const std::string& path, Tensor tensor);
// The shape in which what belongs to a parameter of so many values is kept: that of its dense weight, or of its active values.
std::vector<long> shape_of(const ModelFile& model, const std::string& parameter, size_t count);
// Forgets all tensors of the state below a path, "a/b/".
void drop_tensors(ModelFile& model, const std::string& below);
void write_model(const std::string& path, ModelFile& model);

}  // namespace sparcl
