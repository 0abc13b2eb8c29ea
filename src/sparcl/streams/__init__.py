"""What arrives: streams of tasks. Start with `load(name, data)`, a named stream, or `from_arrays`."""

from sparcl.streams.arrive import make_task as make_task
from sparcl.streams.augment import Normalize as Normalize
from sparcl.streams.augment import Transform as Transform
from sparcl.streams.blurry import blurry as blurry
from sparcl.streams.blurry import single_pass as single_pass
from sparcl.streams.cifar import seq_cifar10 as seq_cifar10
from sparcl.streams.cifar import seq_cifar100 as seq_cifar100
from sparcl.streams.digits import seq_digits as seq_digits
from sparcl.streams.folder import folder as folder
from sparcl.streams.idx import seq_fashion_mnist as seq_fashion_mnist
from sparcl.streams.idx import seq_mnist as seq_mnist
from sparcl.streams.lazy import Lazy as Lazy
from sparcl.streams.registry import STREAMS as STREAMS
from sparcl.streams.registry import load as load
from sparcl.streams.registry import reads_data as reads_data
from sparcl.streams.split import from_arrays as from_arrays
from sparcl.streams.task import Samples as Samples
from sparcl.streams.task import Stream as Stream
from sparcl.streams.task import Task as Task
from sparcl.streams.tinyimagenet import seq_tinyimg as seq_tinyimg
