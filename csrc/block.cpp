// Residual blocks in one call, and what may stand around them: relu(norm(conv(x))) before, the mean over each channel behind.
// A block: y = relu(norm2(conv2(relu(norm1(conv1(x))))) + shortcut(x)), the shortcut being x itself or norm(conv(x)).
// What is saved over the layers one by one: autograd's nodes, the first norm's result, which is never written to memory, and the
// sums of two gradients, which the last convolution makes as it writes. What is saved over the blocks one by one: the way through
// Python and autograd from one to the next, 70 us in a small network and 250 in a large one, whose kernels leave nothing of
// theirs in the caches.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bind.h"

namespace nb = nanobind;

namespace sparcl {
namespace {

// A convolution without bias and the BatchNorm behind it, as Python hands them over.
// plan, values, gamma, beta, running mean, running variance, number of batches, training, momentum, eps
using Given = std::tuple<nb::object, nb::object, nb::object, nb::object, nb::object, nb::object, nb::object, bool, float, float>;
// first, second, shortcut
using GivenBlock = std::tuple<Given, Given, std::optional<Given>>;

// Which gradients are wanted of a stage.
struct Wanted {
  bool values = false, gamma = false, beta = false;
  bool any() const { return values || gamma || beta; }
};

ConvPlan& plan_of(nb::handle plan) {
  ConvPlan* of = nullptr;
  if (!nb::try_cast(plan, of) || !of) refuse("a block needs the plans of its convolutions");
  return *of;
}

struct Stage {
  ConvPlan& plan;
  Extent in, out;
  const float *values, *gamma, *beta;
  float *running_mean, *running_var;
  int64_t* tracked;
  bool training;
  float momentum, eps;
  Block conv, stats;  // result of the convolution; mean and 1 / deviation
  std::vector<float> scales;

  Stage(const Given& given, const Extent& input)
      : plan(plan_of(std::get<0>(given))), in(input), out(plan.output_extent(input)),
        values(values_of(std::get<1>(given), plan.nonzeros(), "values").data),
        gamma(floats(std::get<2>(given), {out.channels}, "gamma")), beta(floats(std::get<3>(given), {out.channels}, "beta")),
        running_mean(floats(std::get<4>(given), {out.channels}, "running_mean")),
        running_var(floats(std::get<5>(given), {out.channels}, "running_var")),
        tracked(int64_scalar(std::get<6>(given), "num_batches_tracked")), training(std::get<7>(given)),
        momentum(std::get<8>(given)), eps(std::get<9>(given)) {
    if (!running_mean || !running_var) refuse("running_mean and running_var are needed");
    if (training && out.height * out.width * out.batch <= 1)
      refuse("batch_norm: training needs more than one value in each channel, the input is [" + std::to_string(out.batch) + ", " +
             std::to_string(out.channels) + ", " + std::to_string(out.height) + ", " + std::to_string(out.width) + "]");
  }

  void convolve(const Source& x, int threads) {
    conv = activation_block(out);
    plan.forward(values, nullptr, x, in, conv.get(), threads);
  }
  // y: see norm_forward_train.
  void normalise(const float* residual, bool relu, float* y, uint8_t* signs, int threads) {
    stats = vector_block(2 * out.channels);
    float *mean = stats.get(), *rstd = mean + out.channels;
    Norm n = norm_of(out, conv.get(), residual, gamma, beta, eps, relu);
    n.signs = signs;
    if (training) {
      if (tracked) ++*tracked;
      norm_forward_train(n, momentum, running_mean, running_var, mean, rstd, y, threads);
    } else {
      norm_forward_eval(n, running_mean, running_var, mean, rstd, y, threads);
    }
  }
  // relu(norm(conv)), to be read by the next convolution.
  Source source() {
    const Norm n = norm_of(out, conv.get(), nullptr, gamma, beta, eps, true);
    return norm_source(n, stats.get(), stats.get() + out.channels, scales);
  }
};

// Signs of a tensor, see sign_bytes.
Block sign_block(const Extent& e) { return vector_block((e.channels * sign_bytes(e.height * e.width * e.batch) + 3) / 4); }
uint8_t* bytes(const Block& signs) { return reinterpret_cast<uint8_t*>(signs.get()); }

void check_same(const Extent& a, const Extent& b, const char* what) {
  if (a.channels != b.channels || a.height != b.height || a.width != b.width || a.batch != b.batch)
    refuse(std::string(what) + " must have the shape of the block's result");
}

struct Residual {
  Stage one, two;
  std::optional<Stage> side;

  Residual(const GivenBlock& given, const Extent& input)
      : one(std::get<0>(given), input), two(std::get<1>(given), one.out) {
    if (std::get<2>(given)) side.emplace(*std::get<2>(given), input);
    check_same(side ? side->out : input, two.out, "the shortcut");
  }
  // The result, and its signs. Without `keep` nothing but the result is left.
  Block run(const float* x, bool keep, Block& signs, int threads) {
    Block y;
    if (keep) signs = sign_block(two.out);
    one.convolve(x, threads);
    one.normalise(nullptr, true, nullptr, nullptr, threads);
    two.convolve(one.source(), threads);
    if (!keep) one.conv.reset();
    if (side) side->convolve(x, threads);
    if (keep) y = activation_block(two.out);
    float* to = keep ? y.get() : two.conv.get();
    float* beside = side && !keep ? side->conv.get() : to;
    if (side) side->normalise(nullptr, false, beside, nullptr, threads);
    two.normalise(side ? beside : x, true, to, bytes(signs), threads);
    if (!keep) y = std::move(two.conv);
    if (!keep && side) side->conv.reset();
    return y;
  }
};

// What a stage leaves for the way back; memory only where it will be read.
struct Left {
  nb::object plan;
  Extent in, out;
  bool training;
  Wanted wanted;
  Block conv, stats;

  Left(const Given& given, Stage&& stage, const Wanted& want, bool needed)
      : plan(std::get<0>(given)), in(stage.in), out(stage.out), training(stage.training), wanted(want) {
    if (!needed) return;
    conv = std::move(stage.conv);
    stats = std::move(stage.stats);
  }
};

// A stage on the way back, with its gradients.
struct Back {
  ConvPlan& plan;
  Extent in, out;
  std::vector<int64_t> values_shape;
  const float *values, *gamma, *beta;
  bool training;
  const float *conv, *stats;
  Block* own;  // the memory of conv, where nobody reads it a second time
  bool want_values, want_gamma, want_beta;
  Block gvalues, ggamma, gbeta;
  std::vector<float> scales;

  // parameters: values, gamma, beta
  Back(Left& left, nb::handle of_values, nb::handle of_gamma, nb::handle of_beta, bool release)
      : plan(plan_of(left.plan)), in(left.in), out(left.out), gamma(floats(of_gamma, {out.channels}, "gamma")),
        beta(floats(of_beta, {out.channels}, "beta")), training(left.training), conv(left.conv.get()), stats(left.stats.get()),
        own(release ? &left.conv : nullptr), want_values(left.wanted.values), want_gamma(left.wanted.gamma),
        want_beta(left.wanted.beta) {
    const Values all = values_of(of_values, plan.nonzeros(), "values");
    values = all.data;
    values_shape = all.shape;
  }
  bool wanted() const { return want_values || want_gamma || want_beta; }
  Source source() {
    return norm_source(norm_of(out, conv, nullptr, gamma, beta, 0.0f, true), stats, stats + out.channels, scales);
  }
  // Memory for the gradient of conv: its own, if it may go. To write where one has just read is faster, too.
  Block over_conv() { return own ? std::move(*own) : activation_block(out); }
  // Behind the norm comes a ReLU; the signs of its result are at hand or (null) computed again. gx may be null, gy or conv.
  void norm(uint8_t* signs, const float* gy, float* gx, int threads) {
    if (want_gamma) ggamma = vector_block(out.channels);
    if (want_beta) gbeta = vector_block(out.channels);
    Norm n = norm_of(out, conv, nullptr, gamma, beta, 0.0f, true);
    n.signs = signs;
    norm_backward(n, training, stats, stats + out.channels, nullptr, gy, gx, nullptr, ggamma.get(), gbeta.get(), threads);
  }
  // The gradients of the convolution, whose input was x; gx may be null.
  void convolve(const Source& x, const float* gy, float* gx, int threads, const Added& added = {}) {
    if (want_values) gvalues = vector_block(plan.nonzeros());
    if (want_values && gx)
      plan.backward(values, x, gy, in, gx, gvalues.get(), threads, added);
    else if (want_values)
      plan.weight_gradient(x, gy, in, gvalues.get(), threads);
    else if (gx)
      plan.input_gradient(values, gy, in, gx, threads, added);
  }
  void append_to(nb::list& gradients) {
    gradients.append(want_values ? contiguous_tensor(std::move(gvalues), values_shape) : nb::none());
    gradients.append(want_gamma ? vector_tensor(std::move(ggamma), out.channels) : nb::none());
    gradients.append(want_beta ? vector_tensor(std::move(gbeta), out.channels) : nb::none());
  }
};

// The gradient of x, null where it is not wanted. signs: of the block's result. Every temporary is given back as soon as it has been
// read.
Block run_back(const Source& x, uint8_t* signs, const float* gy, Back& one, Back& two, Back* side, bool want_x, int threads) {
  const bool need_one = want_x || one.wanted(), need_side = side && (want_x || side->wanted());
  Block g = need_one || two.want_values ? two.over_conv() : nullptr, gx;
  two.norm(signs, gy, g.get(), threads);
  Block gone = need_one ? activation_block(one.out) : nullptr;
  two.convolve(two.want_values ? one.source() : nullptr, g.get(), gone.get(), threads);
  g.reset();
  if (need_one) {
    one.norm(nullptr, gone.get(), gone.get(), threads);
    if (one.own) one.own->reset();
    if (want_x) gx = activation_block(one.in);
    const Added past_the_relu{gy, signs};  // the gradient of the shortcut that is x itself
    one.convolve(x, gone.get(), gx.get(), threads, side ? Added{} : past_the_relu);
    gone.reset();
  }
  if (need_side) {
    g = side->over_conv();
    side->norm(signs, gy, g.get(), threads);  // it has no ReLU, but the block's is behind it
    side->convolve(x, g.get(), gx.get(), threads, {gx.get()});
  }
  return gx;
}

Window whole(const Extent& e) {
  const int rows = static_cast<int>(e.height), columns = static_cast<int>(e.width);
  return {rows, columns, rows, columns, 0, 0};
}

// What a chain of blocks leaves for the way back. It is memory, no tensors, so that each piece is given back as soon as it has
// been read: autograd would hold all of them until the whole chain is done.
struct Tape {
  struct Place {
    size_t first;   // of the block's stages in `stages`
    bool side;      // whether it has a shortcut
    bool flows;     // whether a gradient of its input is wanted
    bool needed;    // whether any gradient is wanted that comes through it
    bool reads;     // whether a gradient is wanted that reads its input
    bool again;     // whether its result is not kept, but made again before it is read
    Block result;   // null where the next block does not read it, or not there yet
    Block signs;    // of the result
  };
  Extent in, last;
  bool want_x, stem, pooled;
  bool spent = false;
  std::vector<Left> stages;  // the stem's, then of each block the first, the second and the shortcut's
  std::vector<Place> blocks;

  Tape() = default;
  Tape(const Tape&) = delete;
  bool stem_needed() const { return stem && blocks[0].flows; }
  bool reads_input() const { return stem ? stages[0].wanted.values : blocks[0].reads; }
  nb::list backward(nb::handle gy, nb::handle x, nb::handle gamma, nb::handle beta, nb::handle stats, bool relu,
                    const std::vector<nb::object>& parameters, bool release, int threads);

 private:
  Block run(const float* gy, const Source& x, std::vector<Back>& backs, bool release, int threads);
  void make_again(size_t b, const std::vector<Back>& backs, int threads);
};

// The result of block b, if it was not kept and is not there yet: one pass over what is kept in any case.
void Tape::make_again(size_t b, const std::vector<Back>& backs, int threads) {
  Place& at = blocks[b];
  if (!at.again || at.result) return;
  const Back *two = &backs[at.first + 1], *other = at.side ? two + 1 : b ? nullptr : &backs[0];
  const long channels = two->out.channels;
  at.result = activation_block(two->out);
  const float* residual = other ? nullptr : blocks[b - 1].result.get();
  const Norm n = norm_of(two->out, two->conv, residual, two->gamma, two->beta, 0.0f, true);
  if (!other) return norm_again(n, two->stats, two->stats + channels, nullptr, nullptr, nullptr, at.result.get(), threads);
  const Norm beside = norm_of(other->out, other->conv, nullptr, other->gamma, other->beta, 0.0f, !at.side);
  norm_again(n, two->stats, two->stats + channels, &beside, other->stats, other->stats + channels, at.result.get(), threads);
}

// From the gradient of the result to that of the input, null where it is not wanted.
Block Tape::run(const float* gy, const Source& x, std::vector<Back>& backs, bool release, int threads) {
  Block g;
  if (pooled) {
    g = activation_block(last);
    average_pool_backward(gy, last, whole(last), g.get(), threads);
    gy = g.get();
  }
  for (size_t b = blocks.size(); b-- > 0 && blocks[b].needed;) {
    Place& at = blocks[b];
    Back* back = &backs[at.first];
    if (b && at.reads) make_again(b - 1, backs, threads);
    const Source from = b ? blocks[b - 1].result.get() : !stem ? x : at.reads ? backs[0].source() : nullptr;
    g = run_back(from, bytes(at.signs), gy, back[0], back[1], at.side ? &back[2] : nullptr, at.flows, threads);
    gy = g.get();
    if (b && (release || blocks[b - 1].again)) blocks[b - 1].result.reset();
    if (!release) continue;
    at.signs.reset();
    for (size_t i = at.first; i < at.first + (at.side ? 3 : 2); ++i) stages[i].conv.reset();
  }
  if (!stem_needed()) return g;
  const bool through = want_x || backs[0].want_values;
  backs[0].norm(nullptr, gy, through ? g.get() : nullptr, threads);
  Block gx = want_x ? activation_block(in) : nullptr;
  backs[0].convolve(x, g.get(), gx.get(), threads);
  if (release) stages[0].conv.reset();
  return gx;
}

// Gradients of x and of each stage's values, its norm's gamma and beta; None where it is not wanted. x, gamma, beta, stats, relu: what
// the input was made of, see source_of. parameters: values, gamma, beta of each stage. release: there will be no second time.
nb::list Tape::backward(nb::handle gy, nb::handle x, nb::handle gamma, nb::handle beta, nb::handle stats, bool relu,
                        const std::vector<nb::object>& parameters, bool release, int threads) {
  check_threads(threads);
  if (spent) refuse("a chain's way back has been gone and its memory given back");
  if (parameters.size() != 3 * stages.size()) refuse("a chain has three parameters a stage");
  std::vector<Back> backs;
  backs.reserve(stages.size());
  for (size_t i = 0; i < stages.size(); ++i)
    backs.emplace_back(stages[i], parameters[3 * i], parameters[3 * i + 1], parameters[3 * i + 2], release);
  const Extent out = pooled ? Extent{last.channels, 1, 1, last.batch} : last;
  const float* g = activation_like(gy, out, "gy");
  if (gy.is_none()) refuse("the backward pass needs gy");
  std::vector<float> scales;
  const Source source = reads_input() ? source_of(in, x, gamma, beta, stats, relu, scales) : nullptr;
  spent = release;
  Block gx;
  {
    nb::gil_scoped_release unlocked;
    gx = run(g, source, backs, release, threads);
  }
  nb::list gradients;
  gradients.append(want_x ? activation_tensor(std::move(gx), in, 4) : nb::none());
  for (Back& back : backs) back.append_to(gradients);
  return gradients;
}

// Which gradients are wanted, block by block. wanted: of x, then of each stage's values, gamma and beta; empty: none.
void mark(Tape& tape, const std::vector<GivenBlock>& given, const std::vector<Wanted>& wanted) {
  bool flows = tape.want_x || (tape.stem && wanted[0].any());
  size_t first = tape.stem ? 1 : 0;
  for (const GivenBlock& one : given) {
    const bool side = std::get<2>(one).has_value();
    const Wanted* want = &wanted[first];
    const bool needed = flows || want[0].any() || want[1].any() || (side && want[2].any());
    tape.blocks.push_back({first, side, flows, needed, want[0].values || (side && want[2].values), false, nullptr, nullptr});
    flows = needed;
    first += side ? 3 : 2;
  }
}

// Results that a pass over memory makes again of what is kept in any case are not kept: of a block behind a stem, of one with a
// shortcut, of one behind a result that is kept. An eighth of what a ResNet-18 keeps, for a sixtieth of its step.
void mark_again(Tape& tape, const std::vector<Wanted>& wanted) {
  for (size_t b = 0; b + 1 < tape.blocks.size(); ++b) {
    Tape::Place& at = tape.blocks[b];
    bool beside = false;  // whether what is added to the second norm's result is there
    if (at.side)
      beside = at.flows || wanted[at.first + 2].any();
    else if (b == 0)
      beside = tape.stem && (tape.stem_needed() || at.reads);
    else
      beside = !tape.blocks[b - 1].again && at.reads;
    at.again = at.needed && tape.blocks[b + 1].reads && beside;
  }
}

// What the backward pass reads of a block: the first convolution's result too where only the second one's values are wanted.
void leave(Tape& tape, const Tape::Place& at, const GivenBlock& given, Residual& block, const std::vector<Wanted>& wanted) {
  const Wanted* want = &wanted[at.first];
  const bool below = at.flows;
  tape.stages.emplace_back(std::get<0>(given), std::move(block.one), want[0], below || want[0].any() || want[1].values);
  tape.stages.emplace_back(std::get<1>(given), std::move(block.two), want[1], at.needed);
  if (at.side) tape.stages.emplace_back(*std::get<2>(given), std::move(*block.side), want[2], below || want[2].any());
}

std::vector<Wanted> each_wanted(const std::vector<bool>& wanted, const std::optional<Given>& stem,
                                const std::vector<GivenBlock>& blocks) {
  size_t stages = stem ? 1 : 0;
  for (const GivenBlock& block : blocks) stages += std::get<2>(block) ? 3 : 2;
  if (!wanted.empty() && wanted.size() != 1 + 3 * stages) refuse("wanted must speak of x and of three parameters a stage");
  std::vector<Wanted> each(stages);
  for (size_t i = 0; i < stages && !wanted.empty(); ++i) each[i] = {wanted[3 * i + 1], wanted[3 * i + 2], wanted[3 * i + 3]};
  return each;
}

// The result, and the tape where a gradient is wanted (`wanted` as in mark()).
nb::tuple forward(nb::handle x, const std::optional<Given>& stem, const std::vector<GivenBlock>& blocks, bool pool,
                  const std::vector<bool>& wanted, int threads) {
  check_threads(threads);
  const Activation from = activation(x, "x");
  if (from.axes != 4) refuse("a block needs an input of 4 axes [N, C, H, W]");
  if (blocks.empty()) refuse("a chain needs a block");
  std::optional<Stage> first;
  if (stem) first.emplace(*stem, from.extent);
  std::vector<Residual> chain;
  chain.reserve(blocks.size());
  for (const GivenBlock& block : blocks)
    chain.emplace_back(block, chain.empty() ? (first ? first->out : from.extent) : chain.back().two.out);
  const std::vector<Wanted> want = each_wanted(wanted, stem, blocks);
  auto tape = std::make_unique<Tape>();
  tape->in = from.extent;
  tape->last = chain.back().two.out;
  tape->want_x = !wanted.empty() && wanted[0];
  tape->stem = stem.has_value();
  tape->pooled = pool;
  mark(*tape, blocks, want);
  mark_again(*tape, want);
  const bool keep_stem = tape->stem_needed() || tape->blocks[0].reads;
  Block y, mean;
  {
    nb::gil_scoped_release release;
    if (first) {
      first->convolve(from.data, threads);
      if (keep_stem) y = activation_block(first->out);
      first->normalise(nullptr, true, keep_stem ? y.get() : first->conv.get(), nullptr, threads);
      if (!keep_stem) y = std::move(first->conv);
    }
    for (size_t b = 0; b < chain.size(); ++b) {
      Block next = chain[b].run(y ? y.get() : from.data, tape->blocks[b].needed, tape->blocks[b].signs, threads);
      if (b && tape->blocks[b].reads && !tape->blocks[b - 1].again) tape->blocks[b - 1].result = std::move(y);
      y = std::move(next);
    }
    if (pool) {
      mean = activation_block({tape->last.channels, 1, 1, tape->last.batch});
      average_pool(y.get(), tape->last, whole(tape->last), mean.get(), threads);
    }
  }
  const Extent last = tape->last;
  nb::object result = pool ? activation_tensor(std::move(mean), {last.channels, 1, 1, last.batch}, 2) : nb::none();
  if (!pool) result = activation_tensor(std::move(y), last, 4);
  if (!tape->blocks.back().needed) return nb::make_tuple(result, nb::none());
  if (stem) tape->stages.emplace_back(*stem, std::move(*first), want[0], keep_stem);
  for (size_t b = 0; b < chain.size(); ++b) leave(*tape, tape->blocks[b], blocks[b], chain[b], want);
  return nb::make_tuple(result, nb::cast(tape.release(), nb::rv_policy::take_ownership));
}

}  // namespace

void bind_block(nb::module_& m) {
  using namespace nb::literals;
  nb::class_<Tape>(m, "Tape")
      .def_prop_ro("reads_input", &Tape::reads_input)
      .def("backward", &Tape::backward, "gy"_a, "x"_a.none(), "gamma"_a.none(), "beta"_a.none(), "stats"_a.none(),
           "relu"_a, "parameters"_a, "release"_a, "threads"_a);
  m.def("residual_chain", &forward, "x"_a, "stem"_a.none(), "blocks"_a, "pool"_a, "wanted"_a, "threads"_a);
}

}  // namespace sparcl
