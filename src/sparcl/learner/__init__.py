"""One task after another: the Learner, where it stands, what it refuses, and how it is saved."""

from sparcl.learner.learner import SAFE as SAFE
from sparcl.learner.learner import Learner as Learner
from sparcl.learner.learner import MakeOptimizer as MakeOptimizer
from sparcl.learner.learner import Observer as Observer
