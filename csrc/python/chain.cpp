// Residual blocks in one call, and what may stand around them: relu(norm(conv(x))) before, the mean over each channel behind. What is
// saved over the blocks one by one: the way through Python and autograd from one to the next, 70 us in a small network and 250
// in a large one, whose kernels leave nothing of theirs in the caches.
#include "python/block.h"

namespace sparcl {
namespace {

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
    bool again;     // whether its result is not kept, but made again as it is read
    Cells result;   // null where the next block does not read it, or not there yet
    Block signs;    // of the result
  };
  Extent in, last;
  bool want_x, stem, pooled, half;
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
  Cells run(const float* gy, const Source& x, std::vector<Back>& backs, bool release, int threads);
  Source result(size_t b, std::vector<Back>& backs) const;
};

// The result of block b, made of what is kept in any case where it was not kept.
Source Tape::result(size_t b, std::vector<Back>& backs) const {
  const Place& at = blocks[b];
  if (!at.again) return at.result.get();
  Back &two = backs[at.first + 1], &other = at.side ? backs[at.first + 2] : backs[0];
  return {two.result(true), at.side || b == 0 ? other.result(!at.side) : Term(blocks[b - 1].result.get())};
}

// From the gradient of the result to that of the input, null where it is not wanted.
Cells Tape::run(const float* given, const Source& x, std::vector<Back>& backs, bool release, int threads) {
  Cells g;
  Numbers gy = given;
  if (pooled) {
    g = Cells(last, half);
    average_pool_backward(given, last, whole(last), g.get(), threads);
    gy = g.get();
  }
  for (size_t b = blocks.size(); b-- > 0 && blocks[b].needed;) {
    Place& at = blocks[b];
    Back* back = &backs[at.first];
    const Source from = !at.reads ? Source(nullptr) : b ? result(b - 1, backs) : stem ? Source(backs[0].result(true)) : x;
    g = run_back(from, bytes(at.signs), gy, back[0], back[1], at.side ? &back[2] : nullptr, at.flows, threads);
    gy = g.get();
    if (!release) continue;
    if (b) blocks[b - 1].result.reset();
    at.signs.reset();
    for (size_t i = at.first; i < at.first + (at.side ? 3 : 2); ++i) stages[i].conv.reset();
  }
  if (!stem_needed()) return g;
  const bool through = want_x || backs[0].want_values;
  backs[0].norm(nullptr, gy, through ? g.get() : Room(), threads);
  Cells gx;
  if (want_x) gx = Cells(in, false);
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
  Cells gx;
  {
    nb::gil_scoped_release unlocked;
    gx = run(g, source, backs, release, threads);
  }
  nb::list gradients;
  gradients.append(want_x ? activation_tensor(std::move(gx.memory), in, 4) : nb::none());
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
    tape.blocks.push_back({first, side, flows, needed, want[0].values || (side && want[2].values), false, {}, nullptr});
    flows = needed;
    first += side ? 3 : 2;
  }
}

// Results that are made again, as they are read, of what is kept in any case are not kept: of a block behind a stem, of one with
// a shortcut, of one behind a result that is kept. An eighth of what a ResNet-18 keeps.
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
nb::tuple forward(nb::handle x, const std::optional<Given>& stem, const std::vector<GivenBlock>& blocks, bool pool, bool halves,
                  const std::vector<bool>& wanted, int threads) {
  check_threads(threads);
  const Activation from = activation(x, "x");
  if (halves && !(stem && pool)) refuse("halves need a stem before the blocks and the mean behind them");
  const bool half = halves && halves_fit(from.extent);
  if (from.axes != 4) refuse("a block needs an input of 4 axes [N, C, H, W]");
  if (blocks.empty()) refuse("a chain needs a block");
  std::optional<Stage> first;
  if (stem) first.emplace(*stem, from.extent, half);
  std::vector<Residual> chain;
  chain.reserve(blocks.size());
  for (const GivenBlock& block : blocks)
    chain.emplace_back(block, chain.empty() ? (first ? first->out : from.extent) : chain.back().two.out, half);
  const std::vector<Wanted> want = each_wanted(wanted, stem, blocks);
  auto tape = std::make_unique<Tape>();
  tape->in = from.extent;
  tape->last = chain.back().two.out;
  tape->want_x = !wanted.empty() && wanted[0];
  tape->stem = stem.has_value();
  tape->pooled = pool;
  tape->half = half;
  mark(*tape, blocks, want);
  mark_again(*tape, want);
  const bool keep_stem = tape->stem_needed() || tape->blocks[0].reads;
  Cells y;
  Block mean;
  {
    nb::gil_scoped_release release;
    if (first) {
      first->convolve(from.data, threads);
      first->normalise(nullptr, true, nullptr, nullptr, threads);
    }
    for (size_t b = 0; b < chain.size(); ++b) {
      const Term input = b ? Term(y.get()) : first ? first->result(true) : from.data;
      Cells next = chain[b].run(input, tape->blocks[b].needed, tape->blocks[b].signs, threads);
      if (!b && first && !keep_stem) first->conv.reset();
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
  if (!pool) result = activation_tensor(std::move(y.memory), last, 4);
  if (!tape->blocks.back().needed) return nb::make_tuple(result, nb::none());
  if (stem) tape->stages.emplace_back(*stem, std::move(*first), want[0], keep_stem);
  for (size_t b = 0; b < chain.size(); ++b) leave(*tape, tape->blocks[b], blocks[b], chain[b], want);
  return nb::make_tuple(result, nb::cast(tape.release(), nb::rv_policy::take_ownership));
}

}  // namespace

void bind_chain(nb::module_& m) {
  using namespace nb::literals;
  nb::class_<Tape>(m, "Tape")
      .def_prop_ro("reads_input", &Tape::reads_input)
      .def("backward", &Tape::backward, "gy"_a, "x"_a.none(), "gamma"_a.none(), "beta"_a.none(), "stats"_a.none(),
           "relu"_a, "parameters"_a, "release"_a, "threads"_a);
  m.def("residual_chain", &forward, "x"_a, "stem"_a.none(), "blocks"_a, "pool"_a, "halves"_a, "wanted"_a, "threads"_a);
}

}  // namespace sparcl
