#include "engine/plan.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

#include "engine/parallel.h"

namespace sparcl {
namespace {

std::atomic<long long> forward_done{0}, input_gradient_done{0}, weight_gradient_done{0};

constexpr size_t kGeometries = 4;  // sizes of input remembered: training, evaluation, a probe or two

constexpr int kMaxStride = 64, kMaxReach = 4096;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

int positive_mod(int a, int b) { return ((a % b) + b) % b; }

void check_shape(const ConvShape& s, int block) {
  for (int w : s.weight)
    if (w < 1) refuse("weight_shape must be four positive sizes (O, I / groups, rows, columns)");
  if (s.groups < 1 || s.weight[0] % s.groups) refuse("groups must be positive and divide the output channels");
  if (s.stride[0] < 1 || s.stride[1] < 1) refuse("stride must be at least 1");
  if (s.dilation[0] < 1 || s.dilation[1] < 1) refuse("dilation must be at least 1");
  if (s.padding[0] < 0 || s.padding[1] < 0) refuse("padding must not be negative");
  for (int axis : {0, 1}) {  // far above any network's, and low enough that no product below overflows
    if (s.stride[axis] > kMaxStride) refuse("stride must be at most " + std::to_string(kMaxStride));
    if (std::max({s.padding[axis], s.dilation[axis], s.weight[2 + axis]}) > kMaxReach)
      refuse("kernel, padding and dilation must be at most " + std::to_string(kMaxReach));
  }
  long count = static_cast<long>(s.weight[1]) * s.groups;
  for (int w : {s.weight[0], s.weight[2], s.weight[3]}) count = count < (1L << 31) ? count * w : count;
  if (count >= 1L << 31) refuse("weight_shape must have fewer than 2^31 elements");
  if (block < 1 || (s.weight[0] / s.groups) % block) refuse("block must divide the output channels of a group");
}

// The largest number of channels that the kernels take together and that divides `block`.
int kernel_block(int block) { return block % 4 == 0 ? 4 : block % 2 == 0 ? 2 : 1; }

}  // namespace

struct ConvPlan::Geometry {
  const Kernels* unit;
  Extent input, output;
  Walk walk;
  std::unique_ptr<const Pass> forward, input_gradient, weight_gradient;
  // The input gradient's pass, seen from a tap, is over as many positions as the output has: the weight gradient can be summed
  // on the way.
  bool same_positions;
  // An order is made when it is first asked for: a step walks two, or three where the gradients are not taken together.
  struct Cached {
    std::mutex mutex;
    std::shared_ptr<const Chosen> chosen;
    std::shared_ptr<const Pass::Order> order;
    template <class Make>
    std::shared_ptr<const Pass::Order> get(const std::shared_ptr<const Chosen>& now, Make make) {
      std::lock_guard<std::mutex> lock(mutex);
      if (!order || chosen != now) {
        order.reset();
        order = std::make_shared<const Pass::Order>(make());
        chosen = now;
      }
      return order;
    }
  };
  mutable Cached forward_order, back_order, weight_order;
};

// The nonzeros whose weight gradients are wanted.
struct ConvPlan::Chosen {
  std::vector<uint8_t> flags;  // [K]
  long count;
  bool shared;  // by the channels of a block
};

ConvPlan::ConvPlan(const int32_t* index, long nonzeros, const ConvShape& shape, int block) : shape_(shape) {
  check_shape(shape, block);
  const auto& w = shape_.weight;
  const long size = static_cast<long>(w[0]) * w[1] * w[2] * w[3];
  if (nonzeros > size) refuse("index has more entries than the weight has elements");
  for (long k = 0; k < nonzeros; ++k)
    if (index[k] < 0 || index[k] >= size || (k > 0 && index[k] <= index[k - 1]))
      refuse("index must be ascending positions within the weight, each at most once");
  nonzeros_ = nonzeros;
  build_forward(index, nonzeros == size ? w[0] / shape_.groups : block);
  find_phases();
}

void ConvPlan::build_forward(const int32_t* index, int block) {
  const auto& w = shape_.weight;
  const int taps = w[2] * w[3], row = w[1] * taps, per_group = w[0] / shape_.groups;
  forward_.channels = w[0];
  forward_.block = kernel_block(block);
  forward_.nonzeros = nonzeros_;
  forward_.start.assign(w[0] + 1, 0);
  forward_.key.resize(static_cast<size_t>(nonzeros_));
  long k = 0;
  const long nonzeros = this->nonzeros();
  for (int o = 0; o < w[0]; ++o) {
    const long base = static_cast<long>(o) * row, shift = static_cast<long>(o / per_group) * row - base;
    for (; k < nonzeros && index[k] < base + row; ++k) forward_.key[k] = static_cast<int32_t>(index[k] + shift);
    forward_.start[o + 1] = static_cast<int32_t>(k);
  }
  for (int o = 0; o < w[0]; ++o) {
    const int first = o / block * block, n = forward_.start[o + 1] - forward_.start[o];
    const auto own = forward_.key.begin() + forward_.start[o], shared = forward_.key.begin() + forward_.start[first];
    if (n != forward_.start[first + 1] - forward_.start[first] || !std::equal(own, own + n, shared))
      refuse("block: the output channels of a block must have the same positions");
  }
}

void ConvPlan::find_phases() {
  const auto& w = shape_.weight;
  const int taps = w[2] * w[3];
  phase_of_tap_.resize(taps);
  for (int t = 0; t < taps; ++t) {
    const int y = positive_mod(t / w[3] * shape_.dilation[0] - shape_.padding[0], shape_.stride[0]);
    const int x = positive_mod(t % w[3] * shape_.dilation[1] - shape_.padding[1], shape_.stride[1]);
    phase_of_tap_[t] = y * shape_.stride[1] + x;
  }
}

// The form of the lists by (phase of the input position, input channel), for the input gradient. A stride of s makes s phases
// a side: input rows y with the same y mod s are reached by the same taps.
Form ConvPlan::transposed_form() const {
  const auto& w = shape_.weight;
  const bool dense = nonzeros() == static_cast<long>(w[0]) * w[1] * w[2] * w[3];
  Form form;
  form.channels = shape_.stride[0] * shape_.stride[1] * input_channels();
  form.block = dense ? kernel_block(w[1]) : 1;
  form.depth = form.block == 1 ? forward_.block : 1;
  form.nonzeros = nonzeros();
  return form;
}

Lists ConvPlan::transposed() const {
  const auto& w = shape_.weight;
  const int taps = w[2] * w[3], channels = input_channels();
  std::vector<int32_t> list(static_cast<size_t>(channels) * taps), tap(list.size());
  for (int c = 0; c < channels; ++c)
    for (int t = 0; t < taps; ++t) {
      list[static_cast<size_t>(c) * taps + t] = phase_of_tap_[t] * channels + c;
      tap[static_cast<size_t>(c) * taps + t] = t;
    }
  Lists lists;
  static_cast<Form&>(lists) = transposed_form();
  const int D = lists.depth;
  auto& start = lists.start;
  start.assign(lists.channels + 1, 0);
  for (int o = 0; o < w[0]; o += D)
    for (int32_t k = forward_.start[o]; k < forward_.start[o + 1]; ++k) ++start[list[forward_.key[k]] + 1];
  for (int c = 0; c < lists.channels; ++c) start[c + 1] += start[c];
  std::vector<int32_t> next(start.begin(), start.end() - 1);
  lists.key.resize(static_cast<size_t>(nonzeros_ / D));
  lists.canonical.resize(static_cast<size_t>(nonzeros_));
  for (int o = 0; o < w[0]; o += D)
    for (int32_t k = forward_.start[o]; k < forward_.start[o + 1]; ++k) {
      const int32_t key = forward_.key[k], at = next[list[key]]++;
      lists.key[at] = o * taps + tap[key];
      for (int d = 0; d < D; ++d) lists.canonical[static_cast<size_t>(at) * D + d] = k - forward_.start[o] + forward_.start[o + d];
    }
  return lists;
}

Extent ConvPlan::output_extent(const Extent& input) const {
  const auto& w = shape_.weight;
  if (input.channels != input_channels())
    refuse("x must have " + std::to_string(input_channels()) + " channels, it has " + std::to_string(input.channels));
  if (input.height < 0 || input.width < 0 || input.batch < 0 || input.height > 1 << 20 || input.width > 1 << 20)
    refuse("x must have at most 2^20 rows and columns");
  const auto size = [&](long in, int axis) {
    const long reach = in + 2L * shape_.padding[axis] - static_cast<long>(shape_.dilation[axis]) * (w[2 + axis] - 1) - 1;
    if (reach < 0) refuse("the kernel is larger than the padded input");
    return reach / shape_.stride[axis] + 1;
  };
  return {w[0], size(input.height, 0), size(input.width, 1), input.batch};
}

void ConvPlan::set_chosen(const uint8_t* chosen) {
  std::shared_ptr<Chosen> made;
  if (chosen) {
    made = std::make_shared<Chosen>(Chosen{{chosen, chosen + nonzeros_}, 0, true});
    for (int o = 0; o < forward_.channels; ++o) {
      const int32_t own = forward_.start[o], first = forward_.start[o / forward_.block * forward_.block];
      for (int32_t k = own; k < forward_.start[o + 1]; ++k) {
        made->count += chosen[k] != 0;
        made->shared = made->shared && (chosen[k] != 0) == (chosen[first + k - own] != 0);
      }
    }
  }
  std::lock_guard<std::mutex> lock(mutex_);
  chosen_ = made;
}

std::shared_ptr<const ConvPlan::Chosen> ConvPlan::chosen() {
  std::lock_guard<std::mutex> lock(mutex_);
  return chosen_;
}

Lists ConvPlan::lists_of(const Chosen& chosen) const {
  Lists lists;
  lists.channels = forward_.channels;
  lists.block = chosen.shared ? forward_.block : 1;
  lists.nonzeros = chosen.count;
  lists.start.push_back(0);
  for (int o = 0; o < forward_.channels; ++o) {
    for (int32_t k = forward_.start[o]; k < forward_.start[o + 1]; ++k) {
      if (!chosen.flags[k]) continue;
      lists.key.push_back(forward_.key[k]);
      lists.canonical.push_back(k);
    }
    lists.start.push_back(static_cast<int32_t>(lists.key.size()));
  }
  return lists;
}

std::shared_ptr<const Pass::Order> ConvPlan::forward_order(const Geometry& g) const {
  return g.forward_order.get(nullptr, [&] { return g.forward->order(forward_); });
}

std::shared_ptr<const Pass::Order> ConvPlan::back_order(const Geometry& g, const std::shared_ptr<const Chosen>& chosen) const {
  return g.back_order.get(chosen, [&] {
    return g.input_gradient->order(transposed(), chosen && chosen->shared ? chosen->flags.data() : nullptr);
  });
}

std::shared_ptr<const Pass::Order> ConvPlan::weight_order(const Geometry& g, const std::shared_ptr<const Chosen>& chosen) const {
  return g.weight_order.get(chosen, [&] { return g.weight_gradient->order(chosen ? lists_of(*chosen) : forward_); });
}

std::shared_ptr<const ConvPlan::Geometry> ConvPlan::geometry(const Extent& input, bool half) {
  const Extent output = output_extent(input);
  const Kernels& unit = kernels();
  const auto& w = shape_.weight;
  Walk walk;
  walk.flat = !half && w[2] == 1 && w[3] == 1 && shape_.stride[0] == 1 && shape_.stride[1] == 1 && shape_.padding[0] == 0 &&
              shape_.padding[1] == 0;
  Extent in = input, out = output;
  if (walk.flat) {
    const long count = input.height * input.width * input.batch, vectors = (count + unit.lanes - 1) / unit.lanes;
    in.height = out.height = 1;
    in.width = out.width = vectors;
    in.batch = out.batch = unit.lanes;
    walk.tail = count % unit.lanes;
    walk.chunks = 1;
  } else {
    walk.tail = 0;
    walk.chunks = (input.batch + unit.lanes - 1) / unit.lanes;
  }
  walk.batch = in.batch;

  std::lock_guard<std::mutex> lock(mutex_);
  for (size_t i = 0; i < geometries_.size(); ++i) {
    const auto found = geometries_[i];
    if (found->unit != &unit || found->input.height != in.height || found->input.width != in.width ||
        found->input.batch != in.batch || found->walk.flat != walk.flat || found->walk.tail != walk.tail)
      continue;
    std::rotate(geometries_.begin(), geometries_.begin() + i, geometries_.begin() + i + 1);
    return found;
  }

  const int taps = w[2] * w[3], channels = input_channels();
  const int height = static_cast<int>(in.height), width = static_cast<int>(in.width);
  const int out_height = static_cast<int>(out.height), out_width = static_cast<int>(out.width);
  PassShape forward{channels, height, width, shape_.stride[0], shape_.stride[1], forward_taps(),
                    {{0, w[0], 0, 0, out_height, out_width}}, out_height, out_width, 1, 1};
  PassShape back{w[0], out_height, out_width, 1, 1, {}, {}, height, width, shape_.stride[0], shape_.stride[1]};
  for (int t = 0; t < taps; ++t) {
    const int y = phase_of_tap_[t] / shape_.stride[1], x = phase_of_tap_[t] % shape_.stride[1];
    back.taps.push_back({(y + shape_.padding[0] - t / w[3] * shape_.dilation[0]) / shape_.stride[0],
                         (x + shape_.padding[1] - t % w[3] * shape_.dilation[1]) / shape_.stride[1]});
  }
  for (int y = 0; y < shape_.stride[0]; ++y)
    for (int x = 0; x < shape_.stride[1]; ++x)
      back.outputs.push_back({(y * shape_.stride[1] + x) * channels, channels, y, x,
                              (height - y + shape_.stride[0] - 1) / shape_.stride[0],
                              (width - x + shape_.stride[1] - 1) / shape_.stride[1]});
  auto made = std::make_shared<Geometry>();
  made->unit = &unit;
  made->input = in;
  made->output = out;
  made->walk = walk;
  made->forward = std::make_unique<Pass>(unit, forward, forward_, Purpose::kForward);
  made->input_gradient = std::make_unique<Pass>(unit, back, transposed_form(), Purpose::kBack);
  made->weight_gradient = std::make_unique<Pass>(unit, forward, forward_, Purpose::kWeights);
  made->same_positions = true;
  for (const Output& output : back.outputs)
    made->same_positions = made->same_positions && output.rows == out_height && output.columns == out_width;
  if (geometries_.size() >= kGeometries) geometries_.pop_back();
  geometries_.insert(geometries_.begin(), made);
  return made;
}

std::vector<Tap> ConvPlan::forward_taps() const {
  const auto& w = shape_.weight;
  std::vector<Tap> taps;
  for (int y = 0; y < w[2]; ++y)
    for (int x = 0; x < w[3]; ++x) taps.push_back({y * shape_.dilation[0] - shape_.padding[0], x * shape_.dilation[1] - shape_.padding[1]});
  return taps;
}

void ConvPlan::forward(const float* values, const float* bias, const Source& x, const Extent& input, const Room& out, int threads) {
  if (output_extent(input).count() == 0) return;
  const auto g = geometry(input, out.half);
  forward_done += g->forward->convolve(g->walk, *forward_order(*g), values, bias, x, out, threads);
}

void ConvPlan::backward(const float* values, const Source& x, const Numbers& gy, const Extent& input, const Room& gx, float* gvalues,
                        int threads, const Added& added) {
  if (output_extent(input).count() == 0) {
    if (gx) clear(gx, input.count());
    if (gvalues) std::fill(gvalues, gvalues + nonzeros(), 0.0f);
    return;
  }
  const auto g = geometry(input, gy.half);
  const auto chosen = this->chosen();
  const bool dense = transposed_form().block > 1;
  const bool together = gx && gvalues && g->same_positions && !dense && (!chosen || chosen->shared);
  if (gvalues && !together) {
    if (chosen) std::fill(gvalues, gvalues + nonzeros(), 0.0f);
    weight_gradient_done += g->weight_gradient->weight_gradient(g->walk, *weight_order(*g, chosen), x, gy, gvalues, threads);
  }
  if (!gx) return;
  const auto order = back_order(*g, chosen);
  const Pass& pass = *g->input_gradient;
  if (dense) {
    input_gradient_done += pass.convolve(g->walk, *order, values, nullptr, gy, gx, threads, added);
  } else {
    const auto done = pass.backward(g->walk, *order, values, x, gy, gx, together ? gvalues : nullptr, threads, added);
    input_gradient_done += done.input;
    weight_gradient_done += done.weights;
  }
}

Counters counters() { return {forward_done.load(), input_gradient_done.load(), weight_gradient_done.load()}; }

void reset_counters() { forward_done = input_gradient_done = weight_gradient_done = 0; }

}  // namespace sparcl
