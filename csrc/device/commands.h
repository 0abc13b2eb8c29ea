// Commands of sparcl-device that fill a file of their own. Both throw as the rest does, see sparcl_device.cpp.
#pragma once
#include <functional>
#include <string>

#include "device/model_file.h"

namespace sparcl {

// What is in the file, and what this build can read.
void info(const ModelFile& model, int threads);

struct BenchOptions {
  int threads = 1;
  long batch = 0, steps = 12;  // batch 0: the file's
  bool json = false;
};
// A training step and an inference of the model in this file, on this machine: each in a process of its own, for its peak of memory.
// `guarded` runs what it is given, tells of what goes wrong, and returns the exit status, which this returns in turn.
int bench(const std::string& place, const BenchOptions& options, const std::function<int(const std::function<void()>&)>& guarded);

}  // namespace sparcl
