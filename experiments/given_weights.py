"""What a trained network knows once it is made sparse: `python experiments/given_weights.py OUT`.

A ConvNet of width 32 learns all digits at once, dense; then `Learner(model, DERpp(), SparCL(s))`, by the largest
weights and at random: accuracy at once, and after its running statistics have been measured anew on the training images
(`torch.optim.swa_utils.update_bn`), which trains nothing. Each seed is a line of OUT; those that are done are skipped.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from pathlib import Path

import lines
import torch
from torch.optim.swa_utils import update_bn

from sparcl import Learner
from sparcl.methods import DERpp, Joint
from sparcl.nn import build
from sparcl.sparsity import SparCL
from sparcl.sparsity.static import FIRST_MASKS
from sparcl.streams import Stream, seq_digits

SEEDS = range(5)
SPARSITIES = (0.5, 0.75, 0.9)


def class_il(learner: Learner, stream: Stream) -> float:
    accuracy = learner.evaluate(stream.tasks).class_il
    assert accuracy is not None
    return statistics.mean(accuracy)


def run(seed: int) -> dict[str, float]:
    """Accuracies over all classes in percent: `dense`, and by sparsity and first mask at once and `measured` anew."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    stream = seq_digits()
    dense = build("convnet", 10, stream.input_shape, 32)
    teacher = Learner(copy.deepcopy(dense), Joint(), lr=0.1, epochs=10, seed=seed, drop_last=True, backend="reference")
    for task in stream.merged():
        teacher.learn(task)
    inputs = torch.cat([task.transform.test(task.train.inputs) for task in stream])
    inputs = inputs[torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))]
    row = {"seed": seed, "dense": class_il(teacher, stream)}
    for sparsity in SPARSITIES:
        for first_mask in FIRST_MASKS:
            model = copy.deepcopy(dense)
            model.load_state_dict(teacher.model.state_dict())
            sparsifier = SparCL(sparsity, first_mask=first_mask)
            learner = Learner(model, DERpp(), sparsifier, seed=seed, backend="reference")
            name = f"{sparsity:.2f} {first_mask}"
            row[name] = class_il(learner, stream)
            update_bn(inputs.split(256), learner.model)
            row[f"{name} measured"] = class_il(learner, stream)
    return row


def main() -> None:
    """Parse, run what is missing, print means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    rows = lines.read(out)
    for seed in SEEDS:
        if seed not in [row["seed"] for row in rows]:
            rows.append(run(seed))
            lines.add(out, rows[-1])
    for name in list(rows[0])[1:]:
        values = [row[name] for row in rows]
        print(f"{name:25} {statistics.mean(values):5.1f} ± {statistics.stdev(values):.1f}")


if __name__ == "__main__":
    main()
