// sparcl-device: goes on learning where Python stopped, without Python and PyTorch. `sparcl-device --help` names the commands.
// Exit status 0: done, 1: memory, disk or training failed, 2: a wrong argument or file, 128 + N: stopped by signal N, all saved.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "device/commands.h"
#include "device/images.h"
#include "device/learn.h"
#include "device/lock.h"
#include "device/place.h"

using namespace sparcl;

namespace {

constexpr double kSaveSeconds = 30;
constexpr long kMostBenchSteps = 1L << 20;
constexpr double kMostSteps = 2147483647;  // of a budget, as in Python
constexpr char kFrom[] = "begun_from";      // of device: the checksum of the file that a task under way was begun from, where it is another

const char kHelp[] =
    "sparcl-device: goes on learning where Python stopped\n"
    "  sparcl-device info MODEL                  what is in the file\n"
    "  sparcl-device predict MODEL SAMPLES       the class of each sample; --logits: all logits\n"
    "  sparcl-device evaluate MODEL SAMPLES      the share that is right\n"
    "  sparcl-device learn MODEL SAMPLES         learns the samples as a new task; classes that the model lacks are appended\n"
    "      --epochs N | --steps N | --max-seconds S   (the file's budget)\n"
    "      --save-every S   seconds between saves (30); --out FILE   instead of MODEL itself\n"
    "      --new-task       leave a task that was stopped where it is, and begin a new one\n"
    "  sparcl-device bench MODEL                 time and memory of a training step and an inference; nothing is written\n"
    "      --batch N   (the file's); --steps N   timed ones (12); --json\n"
    "  sparcl-device gradients MODEL SAMPLES FILE   loss and gradients of all samples as one training batch, to compare\n"
    "  --threads N   (all processors)\n"
    "  --resize      images of another size than the network's are resized, as Python does; otherwise they are refused\n"
    "MODEL: a file of `sparcl export --format device`. SAMPLES: a file of `sparcl pack`, or a folder <class>/* of images;\n"
    "for predict also one image, or a folder of them. Images: ";
const char kHelpEnd[] =
    ".\n"
    "SPARCL_ISA=NAME in the environment chooses the instruction set; the best there is otherwise.\n";

volatile std::sig_atomic_t stopped_by = 0;

void handle(int signal, void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  sigaction(signal, &action, nullptr);
}

// The first asks to stop behind the step, the second ends the process; but a closed terminal sends SIGHUP twice.
void stop(int signal) {
  stopped_by = signal;
  handle(SIGINT, SIG_DFL);
  handle(SIGTERM, SIG_DFL);
  handle(SIGHUP, SIG_IGN);
}

void listen() {
  struct sigaction before {};
  sigaction(SIGHUP, nullptr, &before);
  for (int signal : {SIGINT, SIGTERM, SIGHUP})
    if (signal != SIGHUP || before.sa_handler != SIG_IGN) handle(signal, stop);  // nohup lets it be ignored, and so it stays
  handle(SIGPIPE, SIG_IGN);                                                      // whoever reads the progress may go: see tell()
}

// Progress, at once; output that nobody reads any more asks to stop.
void tell() {
  if (std::fflush(stdout) != 0 && errno == EPIPE && !stopped_by) stopped_by = SIGPIPE;
}

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

struct Options {
  std::string command, out;
  std::vector<std::string> places, given;  // given: the names of the options
  int threads = 1;
  bool logits = false, new_task = false, help = false, resize = false, json = false;
  long batch = 0;
  Budget budget;
  double save_every = kSaveSeconds;
};

double number(const std::string& option, const char* text, double least, double most, bool whole) {
  char* end = nullptr;
  const double value = text ? std::strtod(text, &end) : 0;
  if (!text || end == text || *end || !(value >= least && value <= most) || (whole && value != std::floor(value))) {
    char allowed[96];
    std::snprintf(allowed, sizeof allowed, whole ? "use a whole number from %.0f to %.0f" : "use a number from %g to %g", least, most);
    refuse(option + " " + (text ? text : "without a value") + " is not allowed; " + allowed);
  }
  return value;
}

Options parse(int count, char** arguments) {
  Options o;
  o.threads = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 1024u));
  int budgets = 0;
  for (int i = 1; i < count; ++i) {
    const std::string option = arguments[i];
    const char* next = i + 1 < count ? arguments[i + 1] : nullptr;
    if (option.compare(0, 2, "--") != 0) {
      o.command.empty() ? void(o.command = option) : o.places.push_back(option);
      continue;
    }
    if (std::find(o.given.begin(), o.given.end(), option) != o.given.end()) refuse(option + " is given twice: leave one of them out");
    o.given.push_back(option);
    if (option == "--help")
      o.help = true;
    else if (option == "--logits")
      o.logits = true;
    else if (option == "--new-task")
      o.new_task = true;
    else if (option == "--resize")
      o.resize = true;
    else if (option == "--json")
      o.json = true;
    else if (++i, option == "--threads")
      o.threads = static_cast<int>(number(option, next, 1, 1024, true));
    else if (option == "--batch")
      o.batch = static_cast<long>(number(option, next, 1, 1 << 16, true));
    else if (option == "--epochs")
      o.budget.epochs = static_cast<long>(number(option, next, 1, kMostSteps, true)), ++budgets;
    else if (option == "--steps")
      o.budget.steps = static_cast<long>(number(option, next, 1, kMostSteps, true)), ++budgets;
    else if (option == "--max-seconds")
      o.budget.seconds = number(option, next, 1e-3, kMostSeconds, false), ++budgets;
    else if (option == "--save-every")
      o.save_every = number(option, next, 0, 1e12, false);
    else if (option == "--out" && next && *next)
      o.out = next;
    else if (option == "--out")
      refuse("--out without a value is not allowed; name a file");
    else
      refuse("unknown option " + option + "; allowed: --threads --logits --resize --batch --json --epochs --steps --max-seconds --save-every --out --new-task --help");
  }
  if (budgets > 1) refuse("give one of --epochs, --steps and --max-seconds");
  return o;
}

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// What training has executed since the file was exported, and where the sparsifier has come to.
void say_cost(const Learning& learning) {
  const Ledger& ledger = learning.ledger();
  std::printf("sparsifier %s: %.4f of the prunable weights are active, %ld samples were removed\n", learning.sparsifier().name().c_str(), learning.density(),
              learning.sparsifier().removed());
  std::printf("executed %ld multiply-adds since the export: %ld forward, %ld backward, %ld for ranking\n", ledger.executed() / 2, ledger.forward() / 2, ledger.backward() / 2,
              ledger.ranking() / 2);
}

// What was learned here, for the desk.
void note_task(ModelFile& model, const Samples& samples, long steps) {
  Json task, classes;
  task.kind = Json::kObject;
  classes.kind = Json::kList;
  for (const std::string& name : samples.classes) classes.items.push_back(Json::of(name));
  task.members = {{"classes", classes}, {"samples", Json::of(static_cast<long>(samples.size()))}, {"steps", Json::of(steps)}};
  Json* tasks = nullptr;
  for (auto& member : model.device.members)
    if (member.first == "tasks") tasks = &member.second;
  if (!tasks) tasks = &model.device.members.emplace_back("tasks", Json()).second;
  tasks->kind = Json::kList;
  tasks->items.push_back(task);
  model.device.set("samples", Json::of(std::string(samples.bytes ? "uint8" : "float32")));
  auto& said = model.device.members;
  said.erase(std::remove_if(said.begin(), said.end(), [](const auto& member) { return member.first == kFrom; }), said.end());
}

// What `learn` goes on from: --out's file where that stands inside a task that was begun from MODEL, else MODEL.
ModelFile source_of(const Options& o, const std::string& out) {
  ModelFile model = read_model(o.places[0]);
  if (same_file(out, o.places[0])) return model;
  const std::string from = model.file.metadata["sha256"];
  struct stat about {};
  if (stat(out.c_str(), &about) == 0 && about.st_size > 0) {
    ModelFile begun;
    try {
      begun = read_model(out);
    } catch (const std::invalid_argument& error) {
      refuse("--out is there, and would be lost: " + std::string(error.what()) + "; name another file");
    }
    if (stands_inside(begun)) {
      if (const Json* known = begun.device.find(kFrom); known && known->text == from) return begun;
      refuse(out + " stands inside a task that was not begun from " + o.places[0] + ": learn " + out + " itself goes on with it; or name another --out");
    }
  }
  model.device.set(kFrom, Json::of(from));
  return model;
}

void say_stopped(long steps, bool new_task) {
  const char* const goes_on = new_task ? "the same command without --new-task goes on" : "the same command goes on";
  if (stopped_by == SIGPIPE)
    std::fprintf(stderr, "sparcl-device: the output was closed by its reader; everything is saved, %s\n", goes_on);
  else
    std::printf("stopped after step %ld; everything is saved, %s\n", steps, goes_on);
}

// Until the task is over or somebody asks to stop.
void make_steps(Learning& learning, const Options& o, const std::string& out) {
  double saved = now(), told = 0;
  while (!learning.over() && !stopped_by) {
    const long epoch = learning.position.epoch + 1;  // of the step: its last one moves the position on
    learning.step();
    if (now() - told >= 1) {
      std::printf("epoch %ld, step %ld (%ld an epoch), loss %.4f, %.1f s\n", epoch, learning.position.done, learning.position.planned_steps,
                  learning.loss, learning.position.seconds);
      tell();
      told = now();
    }
    if (now() - saved >= o.save_every) learning.save(out), saved = now();
  }
}

// What the file goes on from, and what of its settings does not take part.
void say_begun(const Learning& learning) {
  if (learning.grown()) std::printf("%ld new class(es): the head has grown\n", learning.grown());
  if (learning.removal_is_off()) std::printf("no samples are removed: DDR is for budgets of epochs\n");
  if (learning.position.done) std::printf("going on in epoch %ld, after step %ld\n", learning.position.epoch + 1, learning.position.done);
}

int learn(const Options& o) {
  const std::string out = o.out.empty() ? o.places[0] : o.out;
  const FileLock lock(out);  // before the file is read: it is then what the last one left
  if (same_file(out, o.places[1])) refuse(out + " holds the samples, and would be lost: name another --out");
  ModelFile model = source_of(o, out);
  if (o.new_task && !stands_inside(model)) refuse("--new-task has no effect: the file stands inside no task");
  const Extent input = Graph(model, o.threads).input();  // checks the file as it is, before its head grows; it is not kept
  const Samples samples = read_samples(o.places[1], wanted_by(model, input, o.resize, true));
  Learning learning(model, samples, o.threads, o.new_task, o.budget);
  say_passed_over(samples);
  say_begun(learning);
  listen();
  make_steps(learning, o, out);
  const long steps = learning.position.done;
  const double seconds = learning.position.seconds;
  const bool over = learning.over();
  if (over) {
    learning.end_task();
    note_task(model, samples, steps);
  }
  learning.save(out);
  if (!over) {
    say_stopped(steps, o.new_task);
  } else {
    std::printf("learned %zu samples of %zu class(es) by %s: %ld steps, %.1f s, last loss %.4f\n", samples.size(), samples.classes.size(), learning.method().c_str(), steps,
                seconds, learning.loss);
    say_cost(learning);
  }
  // What was to be done is done and saved, whoever reads of it.
  if (!flushed() && (over || stopped_by != SIGPIPE)) std::fprintf(stderr, "sparcl-device: the output cannot be written; everything is saved\n");
  return over ? 0 : 128 + stopped_by;
}

// A descriptor of the three that is closed stays unusable: the next file that is opened would get its number, and what is printed.
void keep_closed() {
  for (int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (fcntl(descriptor, F_GETFD) < 0 && open("/dev/null", descriptor == STDIN_FILENO ? O_WRONLY : O_RDONLY) != descriptor) _exit(1);
}

int fail(const std::string& what, int status) {
  std::fflush(stdout);  // what was said before comes before it
  std::fprintf(stderr, "sparcl-device: %s\n", printable(what).c_str());
  return status;
}

// Runs it; whatever goes wrong is one line and an exit status.
int guarded(const std::function<int()>& work) {
  try {
    return work();
  } catch (const std::invalid_argument& error) {
    return fail(error.what(), 2);
  } catch (const std::length_error&) {
    return fail("not enough memory", 1);
  } catch (const std::bad_alloc&) {
    return fail("not enough memory", 1);
  } catch (const std::exception& error) {
    return fail(error.what(), 1);
  }
}

int run(const Options& o) {
  struct Command {
    const char* name;
    size_t places;
    const char* options;
  };
  constexpr Command kCommands[] = {{"info", 1, ""},
                                   {"predict", 2, "--threads --resize --logits "},
                                   {"evaluate", 2, "--threads --resize "},
                                   {"learn", 2, "--threads --resize --epochs --steps --max-seconds --save-every --out --new-task "},
                                   {"bench", 1, "--threads --batch --steps --json "},
                                   {"gradients", 3, "--threads --resize "}};
  const auto found = std::find_if(std::begin(kCommands), std::end(kCommands), [&](const Command& c) { return o.command == c.name; });
  if (found == std::end(kCommands)) refuse("unknown command '" + o.command + "'; allowed: info, predict, evaluate, learn, bench, gradients");
  if (o.places.size() != found->places) refuse(o.command + " needs " + std::to_string(found->places) + " file(s), " + std::to_string(o.places.size()) + " given");
  for (const std::string& option : o.given)
    if (std::string(found->options).find(option + " ") == std::string::npos) refuse(o.command + " has no option " + option + "; allowed: " + found->options + "--help");
  if (o.command == "bench") {
    BenchOptions options{o.threads, o.batch, 12, o.json};
    if (o.budget.steps > kMostBenchSteps) refuse("--steps of bench must be at most " + std::to_string(kMostBenchSteps));
    if (o.budget.steps) options.steps = o.budget.steps;
    return bench(o.places[0], options, [](const std::function<void()>& work) { return guarded([&] { return work(), 0; }); });
  }
  if (o.command == "learn") return learn(o);
  const AnswerOptions options{o.threads, o.resize, o.logits};
  if (o.command == "gradients") {
    for (size_t input : {0, 1})
      if (same_file(o.places[2], o.places[input])) refuse(o.places[2] + " is an input, and would be lost: name another file");
    const FileLock lock(o.places[2]);
    gradients(read_model(o.places[0]), o.places[1], o.places[2], options);
    return 0;
  }
  const ModelFile model = read_model(o.places[0]);
  if (o.command == "info") info(model);
  if (o.command == "predict") predict(model, o.places[1], options);
  if (o.command == "evaluate") evaluate(model, o.places[1], options);
  return 0;
}

}  // namespace

bool sparcl::flushed() { return std::fflush(stdout) == 0 && !std::ferror(stdout); }

int main(int count, char** arguments) {
  keep_closed();
  handle(SIGXFSZ, SIG_IGN);  // a file that may not be so large is a disk that is full
  return guarded([&] {
    const Options o = parse(count, arguments);
    kernels();  // refuses an unknown SPARCL_ISA
    const bool help = o.help || count == 1;
    if (help) std::printf("%s%s%s", kHelp, image_formats(), kHelpEnd);
    const int status = help ? 0 : run(o);
    if (status == 0 && o.command != "learn" && !flushed()) return fail(kUnwritten, 1);
    return status;
  });
}
