#include "engine/arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <unordered_map>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace sparcl {
namespace {

// Why not malloc: glibc hands blocks of this size back to the system, and each step faults every page in anew (8,000 faults,
// 26 ms, in a step of ResNet-18 at batch 32); told to keep them, it cannot give an aligned block the place of one just freed,
// and the heap grows by the size of all activations (measured: 285 MB free, and none of it used again).
// So: one reserved range of addresses, the lowest gap that is large enough, gaps that touch are joined. Pages are resident
// once touched; in huge pages where the system grants them.
constexpr size_t kAlign = 4096;
constexpr size_t kOpened = size_t{4} << 20;  // at a time

// AddressSanitizer sees one mapping: it is told what is nobody's. Each block then ends in a page that no one may touch.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kGuard = kAlign;
void forbid(const char* first, size_t bytes) { __asan_poison_memory_region(first, bytes); }
void allow(const char* first, size_t bytes) { __asan_unpoison_memory_region(first, bytes); }
#else
constexpr size_t kGuard = 0;
void forbid(const char*, size_t) {}
void allow(const char*, size_t) {}
#endif

struct Arena {
  std::mutex mutex;
  char* base = nullptr;
  size_t reserved = 0, peak = 0, used = 0;
  size_t open = 0;                              // bytes from the base that may be touched; the rest counts for no limit
  std::map<size_t, size_t> gaps;                // offset -> bytes
  std::unordered_map<size_t, size_t> taken;     // offset -> bytes

  Arena() {
    const size_t memory = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* range = mmap(nullptr, memory, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) return;  // every block comes from malloc then
#if defined(MADV_HUGEPAGE)
    madvise(range, memory, MADV_HUGEPAGE);
#endif
    base = static_cast<char*>(range);
    reserved = memory;
    gaps[0] = memory;
  }

  // Whether the first `bytes` may be touched now: a limit on writable memory (ulimit -d) may forbid more.
  bool reach(size_t bytes) {
    if (bytes <= open) return true;
    const size_t wanted = std::min((bytes + kOpened - 1) / kOpened * kOpened, reserved);
    if (mprotect(base + open, wanted - open, PROT_READ | PROT_WRITE) != 0) return false;
    open = wanted;
    return true;
  }
};

Arena& arena() {
  static Arena* one = new Arena;  // never destroyed: tensors may outlive the interpreter's modules
  return *one;
}

}  // namespace

void* take(size_t bytes) {
  Arena& a = arena();
  const size_t wanted = bytes;
  bytes = (std::max<size_t>(bytes, 1) + kAlign - 1) / kAlign * kAlign + kGuard;
  {
    std::lock_guard<std::mutex> lock(a.mutex);
    for (auto gap = a.gaps.begin(); gap != a.gaps.end(); ++gap) {
      if (gap->second < bytes) continue;
      const size_t offset = gap->first, rest = gap->second - bytes;
      if (!a.reach(offset + bytes)) break;
      a.gaps.erase(gap);
      if (rest) a.gaps[offset + bytes] = rest;
      a.taken[offset] = bytes;
      a.used += bytes - kGuard;
      a.peak = std::max(a.peak, offset + bytes);
      forbid(a.base + offset, bytes);
      allow(a.base + offset, wanted);
      return a.base + offset;
    }
  }
  void* block = std::aligned_alloc(kAlign, bytes);
  if (!block) throw std::bad_alloc();
  return block;
}

void give(void* block) {
  Arena& a = arena();
  const uintptr_t offset = reinterpret_cast<uintptr_t>(block) - reinterpret_cast<uintptr_t>(a.base);
  if (!a.base || offset >= a.reserved) return std::free(block);
  std::lock_guard<std::mutex> lock(a.mutex);
  const auto found = a.taken.find(offset);
  size_t start = offset, bytes = found->second;
  a.used -= bytes - kGuard;
  forbid(a.base + offset, bytes);
  a.taken.erase(found);
  auto next = a.gaps.lower_bound(start);
  if (next != a.gaps.end() && start + bytes == next->first) {
    bytes += next->second;
    next = a.gaps.erase(next);
  }
  if (next != a.gaps.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == start) {
      before->second += bytes;
      return;
    }
  }
  a.gaps[start] = bytes;
}

void trim() {
  Arena& a = arena();
  std::lock_guard<std::mutex> lock(a.mutex);
  for (const auto& [offset, bytes] : a.gaps)
    if (offset < a.open) madvise(a.base + offset, std::min(bytes, a.open - offset), MADV_DONTNEED);
  if (a.gaps.empty() || a.gaps.rbegin()->first + a.gaps.rbegin()->second != a.reserved) return;
  const size_t end = a.gaps.rbegin()->first;  // of all that is taken
  const size_t kept = (end + kOpened - 1) / kOpened * kOpened;
  if (kept < a.open && mprotect(a.base + kept, a.open - kept, PROT_NONE) == 0) a.open = kept;
}

ArenaUse arena_use() {
  Arena& a = arena();
  std::lock_guard<std::mutex> lock(a.mutex);
  return {a.used, a.peak};
}

}  // namespace sparcl
