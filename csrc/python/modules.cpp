// Looks at torch.nn modules for nn/block.py: whether a fused operation may stand for them, and what it needs of them. In Python
// this was 40 us of dictionary lookups a step where all is in the caches, and 200 in a full-size training step; here 10 and 110.
#include <nanobind/nanobind.h>

#include <utility>

#include "python/bind.h"

namespace nb = nanobind;

namespace sparcl {
namespace {

// One string of each name for the life of the process: as dictionaries have them, so that a lookup compares pointers.
nb::handle name(const char* text) { return PyUnicode_InternFromString(text); }

struct Names {
  nb::handle hooks[4] = {name("_forward_hooks"), name("_forward_pre_hooks"), name("_backward_hooks"), name("_backward_pre_hooks")};
  nb::handle forward = name("forward"), compiled = name("_compiled_call_impl");
  nb::handle parameters = name("_parameters"), buffers = name("_buffers"), modules = name("_modules");
  nb::handle plan_kept = name("_plan"), plan = name("plan"), values = name("values"), weight = name("weight"), bias = name("bias");
  nb::handle mean = name("running_mean"), var = name("running_var"), tracked = name("num_batches_tracked");
  nb::handle training = name("training"), momentum = name("momentum"), eps = name("eps");
  nb::handle conv1 = name("conv1"), norm1 = name("bn1"), conv2 = name("conv2"), norm2 = name("bn2"), shortcut = name("shortcut");
};
const Names& names() {
  static const Names one;
  return one;
}

// Null where there is none.
nb::handle entry(nb::handle dictionary, nb::handle key) {
  if (!dictionary.is_valid() || !PyDict_Check(dictionary.ptr())) return {};
  PyObject* found = PyDict_GetItemWithError(dictionary.ptr(), key.ptr());
  if (!found && PyErr_Occurred()) throw nb::python_error();
  return found;
}

// As entry(), null for None as well.
nb::handle some(nb::handle dictionary, nb::handle key) {
  const nb::handle found = entry(dictionary, key);
  return found.is_valid() && !found.is_none() ? found : nb::handle();
}

nb::object own_dictionary(nb::handle module) {
  PyObject* own = PyObject_GenericGetDict(module.ptr(), nullptr);
  if (!own) throw nb::python_error();
  return nb::steal(own);
}

// The module's own dictionary, where calling the module runs the `forward` of one of these classes and nothing else; else null.
nb::object plain_dictionary(nb::handle module, nb::handle kinds) {
  if (!module.is_valid()) return {};
  bool known = false;
  for (nb::handle kind : kinds) known = known || module.type().is(kind);
  if (!known) return {};
  const nb::object own = own_dictionary(module);
  for (nb::handle hooks : names().hooks) {
    const nb::handle registered = entry(own, hooks);
    if (!registered.is_valid() || !PyDict_Check(registered.ptr()) || PyDict_Size(registered.ptr())) return {};
  }
  return entry(own, names().forward).is_valid() || entry(own, names().compiled).is_valid() ? nb::object() : own;
}

nb::object or_none(nb::handle object) { return object.is_valid() ? nb::borrow(object) : nb::none(); }

// Which classes the fused operation may stand for.
struct Kinds {
  nb::tuple convolutions, norms, sequences, blocks;
  Kinds(const nb::tuple& all) : convolutions(all[0]), norms(all[1]), sequences(all[2]), blocks(all[3]) {}
};

// A convolution without bias and the norm behind it, in the order of kernels/block.py's ConvNorm; None where one of them is not
// plain or has settings that the fused operation has not.
nb::object stage_of(nb::handle conv, nb::handle norm, const Kinds& kinds) {
  const Names& n = names();
  const nb::object of_conv = plain_dictionary(conv, kinds.convolutions), of_norm = plain_dictionary(norm, kinds.norms);
  if (!of_conv.is_valid() || !of_norm.is_valid()) return nb::none();
  const nb::handle weights = entry(of_conv, n.parameters);
  const nb::handle affine = entry(of_norm, n.parameters), buffers = entry(of_norm, n.buffers);
  const nb::handle compact = some(weights, n.values), values = compact.is_valid() ? compact : some(weights, n.weight);
  const nb::handle mean = some(buffers, n.mean), var = some(buffers, n.var), momentum = some(of_norm, n.momentum);
  if (!values.is_valid() || !mean.is_valid() || !var.is_valid() || !momentum.is_valid()) return nb::none();
  if (some(of_conv, n.bias).is_valid() || some(weights, n.bias).is_valid()) return nb::none();
  const nb::handle scale = entry(affine, n.weight), shift = entry(affine, n.bias);
  if (!scale.is_valid() || !shift.is_valid()) return nb::none();  // something else has been put there
  const nb::handle kept = some(of_conv, n.plan_kept);
  const nb::object plan = kept.is_valid() ? nb::borrow(kept) : nb::getattr(conv, n.plan);  // made at the first use
  return nb::make_tuple(plan, values, scale, shift, mean, var, or_none(entry(buffers, n.tracked)),
                        or_none(entry(of_norm, n.training)), momentum, or_none(entry(of_norm, n.eps)));
}

// (first, second, shortcut or None) of a residual block, None as in stage_of().
nb::object block_of(nb::handle conv1, nb::handle norm1, nb::handle conv2, nb::handle norm2, nb::handle shortcut,
                    const Kinds& kinds) {
  const nb::object first = stage_of(conv1, norm1, kinds), second = stage_of(conv2, norm2, kinds);
  const nb::object sequence = plain_dictionary(shortcut, kinds.sequences);
  if (first.is_none() || second.is_none() || !sequence.is_valid()) return nb::none();
  const nb::handle inside = entry(sequence, names().modules);
  if (!inside.is_valid()) return nb::none();
  const nb::list layers(nb::borrow<nb::dict>(inside).values());
  if (layers.size() == 0) return nb::make_tuple(first, second, nb::none());
  if (layers.size() != 2) return nb::none();
  const nb::object third = stage_of(layers[0], layers[1], kinds);
  if (third.is_none()) return nb::none();
  return nb::make_tuple(first, second, third);
}

// Of every block in the stages, one after the other; None where one of them or what holds them is not plain.
nb::object blocks_of(nb::handle stages, const Kinds& kinds) {
  const Names& n = names();
  nb::list blocks;
  for (nb::handle stage : stages) {
    const nb::object sequence = plain_dictionary(stage, kinds.sequences);
    const nb::handle inside = sequence.is_valid() ? entry(sequence, n.modules) : nb::handle();
    if (!inside.is_valid()) return nb::none();
    for (nb::handle module : nb::borrow<nb::dict>(inside).values()) {
      const nb::object own = plain_dictionary(module, kinds.blocks);
      const nb::handle layers = own.is_valid() ? entry(own, n.modules) : nb::handle();
      if (!layers.is_valid()) return nb::none();
      const nb::object block = block_of(entry(layers, n.conv1), entry(layers, n.norm1), entry(layers, n.conv2),
                                        entry(layers, n.norm2), entry(layers, n.shortcut), kinds);
      if (block.is_none()) return nb::none();
      blocks.append(block);
    }
  }
  return std::move(blocks);
}

}  // namespace

void bind_modules(nb::module_& m) {
  using namespace nb::literals;
  m.def("is_plain", [](nb::handle module, const nb::tuple& kinds) { return plain_dictionary(module, kinds).is_valid(); },
        "module"_a, "kinds"_a);
  m.def("stage_of", [](nb::handle conv, nb::handle norm, const nb::tuple& kinds) { return stage_of(conv, norm, kinds); }, "conv"_a,
        "norm"_a, "kinds"_a);
  m.def("block_of",
        [](nb::handle conv1, nb::handle norm1, nb::handle conv2, nb::handle norm2, nb::handle shortcut, const nb::tuple& kinds) {
          return block_of(conv1, norm1, conv2, norm2, shortcut, kinds);
        },
        "conv1"_a, "norm1"_a, "conv2"_a, "norm2"_a, "shortcut"_a, "kinds"_a);
  m.def("blocks_of", [](nb::handle stages, const nb::tuple& kinds) { return blocks_of(stages, kinds); }, "stages"_a, "kinds"_a);
}

}  // namespace sparcl
