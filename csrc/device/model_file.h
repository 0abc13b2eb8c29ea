// The one file that a device goes on from, docs/device.md: a safetensors file whose metadata says the rest. It may come from anyone:
// everything is checked before it is used, and nothing in it is code.
#pragma once
#include <cstdint>
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
// The old file or the new one, whole and synced, whenever the power fails. Throws std::runtime_error.
void write_safetensors(const std::string& path, const SafeTensors& file);

struct ModelFile {
  SafeTensors file;  // its tensors by their paths in the state
  Json classes, device, graph, input_shape, state, transform;
};
ModelFile read_model(const std::string& path);
void write_model(const std::string& path, ModelFile& model);

}  // namespace sparcl
