"""One task after another: the Learner, where it stands, what it refuses, and how it is saved."""

from sparcl.learner.assembly import MakeOptimizer as MakeOptimizer
from sparcl.learner.learner import Learner as Learner
from sparcl.learner.telling import SAFE as SAFE
from sparcl.learner.telling import Observer as Observer
