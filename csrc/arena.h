// Memory for activations and their gradients: taken and given back many times a step, in the same few sizes.
#pragma once
#include <cstddef>

namespace sparcl {

// 64-byte aligned memory, uninitialised. Throws std::bad_alloc.
void* take(size_t bytes);
void give(void* block);

struct ArenaUse {
  size_t used, peak;  // bytes handed out now, and the highest address ever used
};
ArenaUse arena_use();

}  // namespace sparcl
