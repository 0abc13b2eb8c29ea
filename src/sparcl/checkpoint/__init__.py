"""Checkpoints: complete state on disk, written so that a power cut leaves the old one or the new one.

Tensors are safetensors, the rest is JSON: loading one from a stranger executes nothing. A folder of checkpoints holds
`step-N/` (manifest.json, state.json, tensors.safetensors) and the small file `latest`, which names the newest whole
one.

    disk.py       durable file operations         tree.py       nested state <-> JSON and named tensors
    files.py      one checkpoint's three files    store.py      step-N, latest, and what is kept
    canonical.py  weights, masks and optimizer state in the one form that all backends share
    by_parameter.py  what a method remembers of each parameter, in that form
    checks.py     what loaded values must be      interval.py   when a checkpoint is due
"""

from sparcl.checkpoint.interval import Checkpointer as Checkpointer
from sparcl.checkpoint.interval import Interval as Interval
from sparcl.checkpoint.store import Loaded as Loaded
from sparcl.checkpoint.store import Store as Store
from sparcl.checkpoint.tree import State as State
