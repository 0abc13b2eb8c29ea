// A small pool of threads. Items are handed out in order, one at a time; what an item computes never depends on who runs it.
#pragma once
#include <type_traits>

namespace sparcl {

using Item = void (*)(void* context, long item);

// Runs body(context, i) for i in [0, items) on `threads` threads, the caller among them; on fewer where the system has no more.
// What an item throws (std::bad_alloc), the call throws: the first of them, once every thread has stopped. Items not begun are left.
void run_items(int threads, long items, Item body, void* context);

template <class Body>
void parallel_for(int threads, long items, Body&& body) {
  using Plain = typename std::remove_reference<Body>::type;
  run_items(threads, items, [](void* context, long item) { (*static_cast<Plain*>(context))(item); }, &body);
}

// Memory of the calling thread that survives the call, aligned to 64 bytes; slot in [0, 5). Throws std::bad_alloc.
float* scratch(int slot, long floats);

}  // namespace sparcl
