// What a model answers to samples, and the gradients of one batch.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>

#include "device/average.h"
#include "device/commands.h"
#include "device/graph.h"
#include "device/losses.h"
#include "device/samples.h"

namespace sparcl {
namespace {

constexpr size_t kBatch = 16;  // as many as fill the widest registers: more are hardly faster
const char* const kMoreThanNetworks[] = {"icarl", "packnet", "lps"};

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

// As sparcl.run.device_file.answering.
void check_method(const ModelFile& model) {
  const std::string& name = model.device.at("method", "device").at("name", "the method").string("the method");
  for (const char* more : kMoreThanNetworks)
    if (name == more) refuse("method " + name + " answers with more than its network, which a device's file does not hold apart: use Learner.load");
}

// Calls use(first sample, logits [classes][N], N) for one batch after the other: the first ones are small, so that whoever waits for
// answers has some at once.
template <class Use>
void each_batch(Graph& graph, const Transform& transform, SampleReader& reader, Use use) {
  std::vector<float> x;
  const Samples& samples = reader.listed();
  for (size_t first = 0; first < samples.size();) {
    const size_t count = reader.read(first, std::min({kBatch, first + 1, samples.size() - first}));
    const long N = static_cast<long>(count);
    x.resize(static_cast<size_t>(samples.extent.count() * N));
    for (size_t n = 0; n < count; ++n)
      put_sample(transform, samples.extent, samples.bytes, reader.values() + n * samples.stride(), {0, 0, false}, x.data(), static_cast<long>(n), N);
    use(first, graph.forward(x.data(), N, false), N);
    first += count;
  }
}

// The class of sample n of a batch. Throws std::invalid_argument where no probability would be a number.
long best_of(const float* logits, long classes, long n, long N, const std::string& sample) {
  long best = 0;
  bool number = true;
  for (long c = 0; c < classes; ++c) {
    number = number && !std::isnan(logits[c * N + n]);
    if (logits[c * N + n] > logits[best * N + n]) best = c;
  }
  if (!number || std::isinf(logits[best * N + n])) refuse("the network's answer to " + sample + " is no number");
  return best;
}

// Of each class of the samples, the column of the logits.
std::vector<long> columns_of(const ModelFile& model, const Samples& samples) {
  std::vector<long> columns;
  const auto& names = model.classes.items;
  for (const std::string& name : samples.classes) {
    const auto found = std::find_if(names.begin(), names.end(), [&](const Json& had) { return had.text == name; });
    if (found == names.end())
      refuse("class " + to_text(Json::of(name)) + " has no column: it was never learned; known are: " + to_text(model.classes).substr(0, 80));
    columns.push_back(found - names.begin());
  }
  return columns;
}

void put(SafeTensors& file, const std::string& name, const std::vector<float>& values) {
  if (!values.empty()) file.tensors[name] = tensor_of("F32", {static_cast<long>(values.size())}, values);
}

}  // namespace

void predict(const ModelFile& model, const std::string& place, const AnswerOptions& o) {
  check_method(model);
  Graph graph(model, o.threads);
  Average(model, graph).answer(graph);
  SampleReader reader(place, wanted_by(model, graph.input(), o.resize, false));
  const Samples& samples = reader.listed();
  each_batch(graph, transform_of(model.transform, graph.input()), reader, [&](size_t first, const float* logits, long N) {
    for (long n = 0; n < N; ++n) {
      const std::string& name = samples.names[first + static_cast<size_t>(n)];
      const long best = best_of(logits, graph.classes(), n, N, name);
      std::string told = to_text(Json::of(name));
      char number[32];
      for (long c = 0; o.logits && c < graph.classes(); ++c) {
        std::snprintf(number, sizeof number, " %.9g", static_cast<double>(logits[c * N + n]));
        told += number;
      }
      if (!o.logits) told += " " + to_text(model.classes.items[static_cast<size_t>(best)]);
      told += "\n";
      std::fwrite(told.data(), 1, told.size(), stdout);
    }
    if (!flushed()) throw std::runtime_error(kUnwritten);
  });
  say_passed_over(samples);
}

void evaluate(const ModelFile& model, const std::string& place, const AnswerOptions& o) {
  check_method(model);
  Graph graph(model, o.threads);
  Average(model, graph).answer(graph);
  SampleReader reader(place, wanted_by(model, graph.input(), o.resize, true));
  const Samples& samples = reader.listed();
  const std::vector<long> columns = columns_of(model, samples);
  std::vector<long> right(samples.classes.size()), seen(right.size());
  each_batch(graph, transform_of(model.transform, graph.input()), reader, [&](size_t first, const float* logits, long N) {
    for (long n = 0; n < N; ++n) {
      const size_t sample = first + static_cast<size_t>(n), of = static_cast<size_t>(samples.labels[sample]);
      ++seen[of];
      right[of] += best_of(logits, graph.classes(), n, N, samples.names[sample]) == columns[of];
    }
  });
  say_passed_over(samples);
  long total = 0;
  for (size_t c = 0; c < seen.size(); ++c) {
    total += right[c];
    std::printf("%s %.2f\n", to_text(Json::of(samples.classes[c])).c_str(), 100.0 * static_cast<double>(right[c]) / static_cast<double>(seen[c]));
  }
  std::printf("accuracy %.4f (%ld of %zu)\n", 100.0 * static_cast<double>(total) / static_cast<double>(samples.size()), total, samples.size());
}

void gradients(const ModelFile& model, const std::string& place, const std::string& out, const AnswerOptions& o) {
  Graph graph(model, o.threads);
  graph.compute_frozen(true);
  const Samples samples = read_samples(place, wanted_by(model, graph.input(), o.resize, true));
  const Transform transform = transform_of(model.transform, graph.input());
  const std::vector<long> columns = columns_of(model, samples);
  const long N = static_cast<long>(samples.size());
  std::vector<float> x(static_cast<size_t>(samples.extent.count() * N));
  std::vector<long> labels;
  for (long n = 0; n < N; ++n) {
    put_sample(transform, samples.extent, samples.bytes, samples.raw.data() + static_cast<size_t>(n) * samples.stride(), {0, 0, false}, x.data(), n, N);
    labels.push_back(columns[static_cast<size_t>(samples.labels[static_cast<size_t>(n)])]);
  }
  std::vector<float> gradient(static_cast<size_t>(graph.classes() * N));
  const double loss = cross_entropy(graph.forward(x.data(), N, true), labels, graph.classes(), 1.0, {}, 0, gradient.data());
  graph.backward(gradient.data());
  SafeTensors file;
  put(file, "loss", {static_cast<float>(loss)});
  for (size_t at = 0; at < graph.nodes().size(); ++at) {
    const Graph::State& state = graph.states()[at];
    const std::string& name = graph.nodes()[at].name;
    if (!state.weight.value.empty()) put(file, name + ".weight", state.weight.gradient);
    if (!state.bias.value.empty()) put(file, name + ".bias", state.bias.gradient);
    put(file, name + ".running_mean", state.running_mean);
    put(file, name + ".running_var", state.running_var);
  }
  write_safetensors(out, file);
  say_passed_over(samples);
  std::printf("loss %.9g\n", loss);
}

}  // namespace sparcl
