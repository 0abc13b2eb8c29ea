// sparcl-bench: what sparsity gains in a training step on this device, without Python: ResNet-18, sparse, against the same
// code with every weight active. `sparcl-bench --help` names the options. Exit status 1: a wrong result, 2: a wrong option.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "device/check.h"
#include "device/resnet.h"

using namespace sparcl;

namespace {

constexpr int kClasses = 10, kImage = 32, kBlock = 4, kStepsATurn = 3;
constexpr float kRate = 0.01f;
constexpr unsigned kSeed = 1;

struct Options {
  int width = 64, batch = 32, steps = 12, threads = 1;
  double sparsity = 0.9;
  std::string pattern = "unstructured";
  bool check = false, help = false;

  Mask mask() const { return {sparsity, pattern == "block" ? kBlock : 1, kSeed}; }
  Extent input() const { return {3, kImage, kImage, batch}; }
};

const char kHelp[] =
    "sparcl-bench: a training step of ResNet-18 (32x32 images, 10 classes), sparse and dense, by the same code\n"
    "  --width N       channels of the first stage, a multiple of 4 (64)\n"
    "  --batch N       samples of a step, 2 or more (32)\n"
    "  --sparsity S    share of the weights of the sixteen 3x3 convolutions that is zero, 0 to 0.99 (0.9)\n"
    "  --pattern P     unstructured or block: blocks of 4 output channels (unstructured)\n"
    "  --threads N     (all processors)\n"
    "  --steps N       timed steps of each side (12)\n"
    "  --check         no timing: are loss and gradients right? Exit status 1 if not\n"
    "SPARCL_ISA=NAME in the environment chooses the instruction set; the best there is otherwise.\n";

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

double number(const std::string& option, const char* text, double lowest, double highest) {
  char* end = nullptr;
  const double value = text ? std::strtod(text, &end) : 0;
  if (!text || end == text || *end || !(value >= lowest && value <= highest)) {
    char allowed[64];
    std::snprintf(allowed, sizeof allowed, "use a number from %g to %g", lowest, highest);
    refuse(option + " " + (text ? text : "without a value") + " is not allowed; " + allowed);
  }
  return value;
}

int whole(const std::string& option, const char* text, int lowest, int highest, int multiple = 1) {
  const double value = number(option, text, lowest, highest);
  if (value != static_cast<int>(value) || static_cast<int>(value) % multiple)
    refuse(option + " " + text + " is not allowed; use a " +
           (multiple == 1 ? "whole number" : "multiple of " + std::to_string(multiple)));
  return static_cast<int>(value);
}

Options parse(int count, char** arguments) {
  Options o;
  o.threads = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 1024u));
  for (int i = 1; i < count; ++i) {
    const std::string option = arguments[i];
    const char* next = i + 1 < count ? arguments[i + 1] : nullptr;
    if (option == "--check") {
      o.check = true;
      continue;
    }
    if (option == "--help") {
      o.help = true;
      continue;
    }
    ++i;
    if (option == "--width")
      o.width = whole(option, next, 4, 512, kBlock);
    else if (option == "--batch")
      o.batch = whole(option, next, 2, 4096);
    else if (option == "--threads")
      o.threads = whole(option, next, 1, 1024);
    else if (option == "--steps")
      o.steps = whole(option, next, 1, 1000000);
    else if (option == "--sparsity")
      o.sparsity = number(option, next, 0, 0.99);
    else if (option == "--pattern" && next && (!std::strcmp(next, "unstructured") || !std::strcmp(next, "block")))
      o.pattern = next;
    else if (option == "--pattern")
      refuse("--pattern " + std::string(next ? next : "without a value") + " is not allowed; use unstructured or block");
    else
      refuse("unknown option " + option + "; allowed: --width --batch --sparsity --pattern --threads --steps --check --help");
  }
  return o;
}

struct Batch {
  std::vector<float> x;
  std::vector<long> labels;

  explicit Batch(const Extent& e) : x(static_cast<size_t>(e.count())), labels(static_cast<size_t>(e.batch)) {
    std::mt19937 random(kSeed);
    std::normal_distribution<float> normal;
    for (float& v : x) v = normal(random);
    for (long& label : labels) label = static_cast<long>(random() % kClasses);
  }
};

// One way to make the step, and what was measured of it.
class Side {
 public:
  Side(const Options& o, const Mask& mask)
      : batch_(o.input()), network_(resnet18(o.width, kClasses, kImage, mask), o.threads) {}

  double step() { return network_.step(batch_.x.data(), batch_.labels, kRate); }

  // The first step of a turn is not timed: in a training loop the caches hold what the same loop's last step left.
  void turn(int steps) {
    reset_counters();
    last_loss_ = step();
    const Counters done = counters();
    multiply_adds = static_cast<double>(done.forward + done.input_gradient + done.weight_gradient);
    if (times_.empty()) first_loss_ = last_loss_;
    for (int i = 0; i < steps; ++i) {
      const auto start = std::chrono::steady_clock::now();
      last_loss_ = step();
      times_.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    }
  }

  double milliseconds() {
    std::sort(times_.begin(), times_.end());
    const size_t n = times_.size();
    return (times_[(n - 1) / 2] + times_[n / 2]) / 2;
  }

  void check_loss(const char* name) const {
    std::printf("%-8sloss on one batch %.3f -> %.3f\n", name, first_loss_, last_loss_);
    if (!(last_loss_ < first_loss_)) throw std::runtime_error(std::string(name) + ": the loss does not fall");
  }

  double multiply_adds = 0;  // of the convolutions in one step

 private:
  Batch batch_;
  Trainer network_;
  std::vector<double> times_;
  double first_loss_ = 0, last_loss_ = 0;
};

// Peak resident memory of two steps in a process of their own, MB.
double peak_megabytes(const Options& o, const Mask& mask) {
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("no process for measuring memory");
  if (child == 0) {
    int status = 1;
    try {
      Side side(o, mask);
      side.step();
      side.step();
      status = 0;
    } catch (const std::exception& error) {
      std::fprintf(stderr, "sparcl-bench: %s\n", error.what());
    }
    _exit(status);
  }
  int status = 0;
  rusage used{};
  if (wait4(child, &status, 0, &used) != child || status != 0) throw std::runtime_error("a step failed, perhaps for want of memory");
  return static_cast<double>(used.ru_maxrss) * 1024 / 1e6;
}

void bench(const Options& o) {
  const Mask all{0.0, 1, kSeed};
  const double dense_peak = peak_megabytes(o, all), sparse_peak = peak_megabytes(o, o.mask());
  Side dense(o, all), sparse(o, o.mask());
  for (int done = 0; done < o.steps; done += kStepsATurn)
    for (Side* side : {&dense, &sparse}) side->turn(std::min(kStepsATurn, o.steps - done));
  std::printf("a training step of ResNet-18, width %d, batch %d, %dx%d, %d thread(s), %s\n", o.width, o.batch, kImage, kImage,
              o.threads, kernels().name);
  dense.check_loss("dense");
  sparse.check_loss("sparse");
  const double speedup = dense.milliseconds() / sparse.milliseconds(), theory = dense.multiply_adds / sparse.multiply_adds;
  std::printf("\n%-14s%9s%11s%11s%10s%16s%10s%11s\n", "pattern", "sparsity", "dense ms", "sparse ms", "speedup", "of theory",
              "dense MB", "sparse MB");
  char share[32];
  std::snprintf(share, sizeof share, "%.0f%% of %.1fx", 100 * speedup / theory, theory);
  std::printf("%-14s%9g%11.1f%11.1f%9.2fx%16s%10.0f%11.0f\n", o.pattern.c_str(), o.sparsity, dense.milliseconds(),
              sparse.milliseconds(), speedup, share, dense_peak, sparse_peak);
}

}  // namespace

int main(int count, char** arguments) {
  try {
    const Options o = parse(count, arguments);
    const char* unit = kernels().name;  // refuses an unknown SPARCL_ISA
    if (o.help)
      std::fputs(kHelp, stdout);
    else if (o.check)
      std::printf("right on %s: %s\n", unit, check_training(o.threads).c_str());
    else
      bench(o);
    return 0;
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "sparcl-bench: %s\n", error.what());
    return 2;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "sparcl-bench: not enough memory\n");
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "sparcl-bench: %s\n", error.what());
    return 1;
  }
}
