// Commands of sparcl-device that fill a file of their own. All throw as the rest does, see sparcl_device.cpp.
#pragma once
#include <functional>
#include <string>

#include "device/model_file.h"

namespace sparcl {

constexpr char kUnwritten[] = "the output cannot be written";
bool flushed();  // whether all that was printed has arrived

// What is in the file, and what this build can read.
void info(const ModelFile& model);

struct AnswerOptions {
  int threads = 1;
  bool resize = false, logits = false;
};
// `samples`: their file or folder. All three print what they find, predict() as it finds it; gradients() writes a safetensors file, too.
void predict(const ModelFile& model, const std::string& samples, const AnswerOptions& options);
void evaluate(const ModelFile& model, const std::string& samples, const AnswerOptions& options);
void gradients(const ModelFile& model, const std::string& samples, const std::string& out, const AnswerOptions& options);

struct BenchOptions {
  int threads = 1;
  long batch = 0, steps = 12;  // batch 0: the file's
  bool json = false;
};
// A training step and an inference of the model in this file, on this machine: each in a process of its own, for its peak of memory.
// `guarded` runs what it is given, tells of what goes wrong, and returns the exit status, which this returns in turn.
int bench(const std::string& place, const BenchOptions& options, const std::function<int(const std::function<void()>&)>& guarded);

}  // namespace sparcl
