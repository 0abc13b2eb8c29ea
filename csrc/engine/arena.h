// Memory for activations and their gradients: taken and given back many times a step, in the same few sizes.
#pragma once
#include <cstddef>
#include <memory>

namespace sparcl {

// 64-byte aligned memory, uninitialised. Throws std::bad_alloc.
void* take(size_t bytes);
void give(void* block);
// Gives the pages of all gaps back to the system: each is faulted in anew when it is used again.
void trim();

// Such memory, given back by whoever holds it last.
struct Give {
  void operator()(float* block) const { give(block); }
};
using Block = std::unique_ptr<float, Give>;

struct ArenaUse {
  size_t used, peak;  // bytes handed out now, and the highest address ever used
};
ArenaUse arena_use();

}  // namespace sparcl
