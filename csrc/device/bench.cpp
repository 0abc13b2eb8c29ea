#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <random>
#include <stdexcept>

#include "device/commands.h"
#include "device/learn.h"

namespace sparcl {
namespace {

constexpr long kWarm = 2, kMostValues = 1L << 30;

struct Figures {
  double milliseconds = 0;  // median
  long batch = 0, peak_bytes = 0;
};

Json& settings_of(ModelFile& model) { return model.state.at("settings", "the state"); }

// Noise of the model's kind: enough for every step to be of one epoch.
Samples noise(const ModelFile& model, const Extent& input, long count) {
  if (count > kMostValues / input.count()) throw std::invalid_argument("the batch or the number of steps is too large for this network: use a smaller one");
  Samples samples;
  samples.extent = input;
  const Tensor* remembered = model.file.find("learner/method/buffer/inputs");
  samples.bytes = !remembered || remembered->dtype == "U8";
  for (const Json& name : model.classes.list("classes", 1, 1 << 20)) samples.classes.push_back(name.string("a class"));
  std::mt19937 random(1);
  samples.raw.assign(static_cast<size_t>(count) * samples.stride(), 0);
  if (samples.bytes)
    for (uint8_t& value : samples.raw) value = static_cast<uint8_t>(random());
  for (long i = 0; i < count; ++i) {
    samples.labels.push_back(i % static_cast<long>(samples.classes.size()));
    samples.names.push_back(std::to_string(i));
  }
  return samples;
}

double now() { return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

template <class Step>
double median_of(long steps, Step step) {
  std::vector<double> times;
  for (long i = 0; i < kWarm + steps; ++i) {
    const double start = now();
    step();
    if (i >= kWarm) times.push_back(now() - start);
  }
  std::sort(times.begin(), times.end());
  return (times[times.size() / 2] + times[(times.size() - 1) / 2]) / 2;
}

// The file's method, its replay included, as `learn` steps; nothing is written.
Figures train(const std::string& place, const BenchOptions& o) {
  ModelFile model = read_model(place);
  Json& settings = settings_of(model);
  Json &batch = settings.at("batch_size", "settings"), &replay = settings.at("replay_batch_size", "settings");
  if (o.batch && batch.text == replay.text) replay = Json::of(o.batch);
  if (o.batch) batch = Json::of(o.batch);
  Figures figures;
  figures.batch = batch.whole("batch_size", 1, 1 << 20);
  const Samples samples = noise(model, Graph(model, o.threads).input(), figures.batch * (kWarm + o.steps + 1));
  Budget budget;  // so long that no mask moves in the steps that are timed
  budget.steps = 100 * (kWarm + o.steps);
  Learning learning(model, samples, o.threads, true, budget);
  figures.milliseconds = median_of(o.steps, [&] { learning.step(); });
  return figures;
}

Figures infer(const std::string& place, const BenchOptions& o) {
  ModelFile model = read_model(place);
  Figures figures;
  figures.batch = o.batch ? o.batch : settings_of(model).at("batch_size", "settings").whole("batch_size", 1, 1 << 20);
  Graph graph(model, o.threads);
  const Samples samples = noise(model, graph.input(), figures.batch);
  const Transform transform = transform_of(model.transform, graph.input());
  std::vector<float> x(static_cast<size_t>(graph.input().count() * figures.batch));
  figures.milliseconds = median_of(o.steps, [&] {
    for (long n = 0; n < figures.batch; ++n)
      put_sample(transform, samples.extent, samples.bytes, samples.raw.data() + static_cast<size_t>(n) * samples.stride(), {0, 0, false}, x.data(), n, figures.batch);
    graph.forward(x.data(), figures.batch, false);
  });
  return figures;
}

int apart(const std::function<Figures()>& job, Figures& figures, const std::function<int(const std::function<void()>&)>& guarded) {
  int ends[2];
  if (pipe(ends) != 0) throw std::runtime_error("no pipe for measuring");
  std::fflush(stdout);
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("no process for measuring");
  if (child == 0) {
    _exit(guarded([&] {
      const Figures measured = job();
      if (write(ends[1], &measured, sizeof measured) != sizeof measured) throw std::runtime_error("a pipe failed");
    }));
  }
  close(ends[1]);
  const bool whole = read(ends[0], &figures, sizeof figures) == sizeof figures;
  close(ends[0]);
  int status = 0;
  rusage used{};
  while (wait4(child, &status, 0, &used) < 0)
    if (errno != EINTR) throw std::runtime_error("a measuring process is lost");
  if (WIFEXITED(status) && WEXITSTATUS(status) != 0) return WEXITSTATUS(status);  // it has said why
  if (!WIFEXITED(status) || !whole) throw std::runtime_error("a measuring process was killed, perhaps for want of memory");
  figures.peak_bytes = used.ru_maxrss * 1024;
  return 0;
}

double per_second(const Figures& f) { return 1e3 * static_cast<double>(f.batch) / std::max(f.milliseconds, 1e-9); }

void tell(const char* name, const Figures& f) {
  std::printf("%-14s %10.3f ms %12.1f samples/s   peak memory %.1f MB\n", name, f.milliseconds, per_second(f), static_cast<double>(f.peak_bytes) / 1e6);
}

void tell_json(const char* name, const Figures& f, const char* behind) {
  std::printf("\"%s\": {\"ms\": %.4f, \"samples_per_second\": %.2f, \"peak_bytes\": %ld}%s", name, f.milliseconds, per_second(f), f.peak_bytes, behind);
}

}  // namespace

int bench(const std::string& place, const BenchOptions& o, const std::function<int(const std::function<void()>&)>& guarded) {
  Figures training, inference;
  if (const int status = apart([&] { return train(place, o); }, training, guarded)) return status;
  if (const int status = apart([&] { return infer(place, o); }, inference, guarded)) return status;
  if (o.json) {
    std::printf("{\"isa\": \"%s\", \"threads\": %d, \"batch\": %ld, \"steps\": %ld, ", kernels().name, o.threads, training.batch, o.steps);
    tell_json("training", training, ", ");
    tell_json("inference", inference, "}\n");
    return 0;
  }
  std::printf("batch %ld, %d thread(s), %s, median of %ld\n", training.batch, o.threads, kernels().name, o.steps);
  tell("training step", training);
  tell("inference", inference);
  return 0;
}

}  // namespace sparcl
