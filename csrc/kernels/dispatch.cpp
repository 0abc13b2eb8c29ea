// Picks the unit: the best that the processor has, or the one that SPARCL_ISA names.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels/kernels.h"

namespace sparcl {
namespace {

struct Unit {
  const Kernels& (*table)();
  bool present;
};

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma");
}
#endif

// Best first. The table of a unit is asked for its name only where the processor has the unit.
const Kernels* find(const char* name, std::string* names) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const Unit units[] = {{kernels_avx512, has_avx512()},
                        {kernels_avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
                        {kernels_plain, true}};
#elif defined(__aarch64__)
  const Unit units[] = {{kernels_neon, true}, {kernels_plain, true}};
#else
  const Unit units[] = {{kernels_plain, true}};
#endif
  const Kernels* found = nullptr;
  for (const Unit& unit : units) {
    if (!unit.present) continue;
    const Kernels& table = unit.table();
    if (names) *names += (names->empty() ? "" : ", ") + std::string(table.name);
    if (!found && (!name || std::strcmp(name, table.name) == 0)) found = &table;
  }
  return found;
}

std::atomic<const Kernels*> chosen{nullptr};

const Kernels* checked(const char* name) {
  if (name && !*name) name = nullptr;
  std::string names;
  const Kernels* found = find(name, &names);
  if (!found)
    throw std::invalid_argument("SPARCL_ISA=" + std::string(name) + " is not available; this processor has: " + names);
  return found;
}

}  // namespace

const char* available_units() {
  static const std::string names = [] {
    std::string all;
    find(nullptr, &all);
    return all;
  }();
  return names.c_str();
}

void select_unit(const char* name) { chosen.store(checked(name ? name : std::getenv("SPARCL_ISA"))); }

const Kernels& kernels() {
  const Kernels* table = chosen.load(std::memory_order_acquire);
  if (!table) {
    select_unit(nullptr);
    table = chosen.load(std::memory_order_acquire);
  }
  return *table;
}

}  // namespace sparcl
