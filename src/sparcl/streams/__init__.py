"""What arrives: streams of tasks. Start with `load(name, data)`, a named stream, or `from_arrays`."""

from sparcl.streams.augment import Normalize as Normalize
from sparcl.streams.augment import Transform as Transform
from sparcl.streams.digits import seq_digits as seq_digits
from sparcl.streams.registry import STREAMS as STREAMS
from sparcl.streams.registry import load as load
from sparcl.streams.split import from_arrays as from_arrays
from sparcl.streams.task import Samples as Samples
from sparcl.streams.task import Stream as Stream
from sparcl.streams.task import Task as Task
