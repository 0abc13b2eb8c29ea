#include "engine/parallel.h"

#if defined(__linux__) && !defined(SPARCL_STANDALONE)
#include <dlfcn.h>
#include <link.h>
#endif
#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <utility>

namespace sparcl {
namespace {

#if defined(__x86_64__) || defined(__i386__)
inline void pause() { __builtin_ia32_pause(); }
#elif defined(__aarch64__)
inline void pause() { asm volatile("yield"); }
#else
inline void pause() {}
#endif

// Between two kernels of a training step lie some 10-50 microseconds of Python: worth spinning for, sleeping costs more.
constexpr int kSpins = 2000;

// The items of one call, handed to whichever thread asks. An exception must not leave a thread that is not the caller's.
struct Items {
  std::atomic<long> next{0};
  long count = 0;
  Item body = nullptr;
  void* context = nullptr;
  std::mutex mutex;
  std::exception_ptr thrown;

  void begin(long items, Item item, void* of) {
    count = items;
    body = item;
    context = of;
    thrown = nullptr;
    next.store(0, std::memory_order_relaxed);
  }

  void work() noexcept {
    try {
      for (long i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(context, i);
    } catch (...) {
      next.store(count, std::memory_order_relaxed);
      std::lock_guard<std::mutex> lock(mutex);
      if (!thrown) thrown = std::current_exception();
    }
  }

  // Once no thread works any more.
  void end() {
    if (thrown) std::rethrow_exception(std::exchange(thrown, nullptr));
  }
};

struct Pool {
  std::mutex caller;  // one parallel region at a time; a second caller works alone
  std::mutex mutex;
  std::condition_variable wake;
  int workers = 0;  // threads that were started, and never end
  std::atomic<uint64_t> generation{0};
  std::atomic<int> busy{0};
  int wanted = 0;
  Items items;

  void loop(int id, uint64_t seen) {
    for (;;) {
      uint64_t now = seen;
      for (int spin = 0; spin < kSpins && now == seen; ++spin) {
        now = generation.load(std::memory_order_acquire);
        pause();
      }
      if (now == seen) {
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, [&] { return generation.load(std::memory_order_acquire) != seen; });
        now = generation.load(std::memory_order_acquire);
      }
      seen = now;
      if (id < wanted) items.work();
      busy.fetch_sub(1, std::memory_order_release);
    }
  }

  void run(int threads, long count, Item item, void* item_context) {
    while (workers < threads - 1) {
      const int id = workers;
      const uint64_t seen = generation.load(std::memory_order_relaxed);
      try {
        std::thread worker([this, id, seen] { loop(id, seen); });
        worker.detach();
      } catch (const std::system_error&) {
        break;  // the system has no more threads: those that are there do the work
      }
      ++workers;
    }
    items.begin(count, item, item_context);
    wanted = threads - 1;
    busy.store(workers, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex);
      generation.fetch_add(1, std::memory_order_release);
    }
    wake.notify_all();
    items.work();
    while (busy.load(std::memory_order_acquire) > 0) pause();
    items.end();
  }
};

Pool* pool = nullptr;
std::once_flag once;
bool forked = false;  // whether this process is the child of one that had the engine loaded

// PyTorch's own OpenMP runtime, where it is GNU's and loaded: one pool for both. Two pools spin against each other, for a
// worker that has nothing to do keeps its core for some milliseconds (measured: a training step of 263 ms against 192).
using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
GompParallel gomp = nullptr;

#if defined(__linux__) && !defined(SPARCL_STANDALONE)
int find_gomp(dl_phdr_info* info, size_t, void* found) {
  if (!std::strstr(info->dlpi_name, "libgomp") || !std::strstr(info->dlpi_name, "torch")) return 0;
  *static_cast<const char**>(found) = info->dlpi_name;
  return 1;
}

void borrow_gomp() {
  const char* path = nullptr;
  dl_iterate_phdr(find_gomp, &path);
  void* library = path ? dlopen(path, RTLD_LAZY | RTLD_NOLOAD) : nullptr;
  if (library) gomp = reinterpret_cast<GompParallel>(dlsym(library, "GOMP_parallel"));
}
#else
void borrow_gomp() {}
#endif

void work_in_team(void* items) { static_cast<Items*>(items)->work(); }

// Threads do not survive fork(): a child gets a pool of its own, the parent's is left where it lies. It never borrows PyTorch's, also
// where the engine has not worked yet: that waits in vain for threads which PyTorch may have started before the fork.
void renew() {
  forked = true;
  gomp = nullptr;
  pool = new Pool;
}
const int watched = pthread_atfork(nullptr, nullptr, renew);  // from when it is loaded

void alone(long items, Item body, void* context) {
  for (long i = 0; i < items; ++i) body(context, i);
}

struct Scratch {
  float* memory = nullptr;
  long floats = 0;
  ~Scratch() { std::free(memory); }
};

}  // namespace

void run_items(int threads, long items, Item body, void* context) {
  if (threads > items) threads = static_cast<int>(items);
  if (threads <= 1) return alone(items, body, context);
  std::call_once(once, [] {
    if (!pool) pool = new Pool;
    if (!forked && watched == 0) borrow_gomp();
  });
  if (gomp) {
    Items team;
    team.begin(items, body, context);
    gomp(work_in_team, &team, static_cast<unsigned>(threads), 0);
    return team.end();
  }
  std::unique_lock<std::mutex> lock(pool->caller, std::try_to_lock);
  if (!lock.owns_lock()) return alone(items, body, context);
  pool->run(threads, items, body, context);
}

float* scratch(int slot, long floats) {
  thread_local Scratch slots[5];
  Scratch& s = slots[slot];
  if (s.floats < floats) {
    std::free(s.memory);
    s.memory = nullptr;
    s.floats = 0;
    const long rounded = (floats + 1023) / 1024 * 1024;
    s.memory = static_cast<float*>(std::aligned_alloc(64, sizeof(float) * static_cast<size_t>(rounded)));
    if (!s.memory) throw std::bad_alloc();
    s.floats = rounded;
  }
  return s.memory;
}

}  // namespace sparcl
