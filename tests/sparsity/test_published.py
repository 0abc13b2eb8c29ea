"""What is published, as literals: a constant that is changed in the code is a change of the method."""

from __future__ import annotations

import inspect
from types import UnionType

from sparcl.run.experiment import Experiment
from sparcl.sparsity import DDR, DGM, SET, SNIP, TDM, RigL, SparCL, Static
from sparcl.sparsity.collected import MOST_SHARE
from sparcl.sparsity.ddr import REMOVAL_MOMENTS
from sparcl.sparsity.rigl import UPDATES_AT_LEAST
from sparcl.sparsity.sparcl import SETTINGS
from sparcl.sparsity.tdm import MAX_MOVED, STEPS_APART, UPDATE_MOMENTS, update_moments


def defaults(kind: type, of: type | UnionType = int | float) -> dict[str, object]:
    parameters = inspect.signature(kind.__init__).parameters.values()
    return {p.name: p.default for p in parameters if isinstance(p.default, of) and p.name != "sparsity"}


def test_the_parts_and_the_rivals_have_the_published_settings() -> None:
    assert defaults(TDM) == {"p_intra": 0.01, "p_inter": 0.01, "alpha": 0.5, "beta": 0.5, "batches": 4, "interval": 100}
    assert defaults(DGM) == {"frozen": 0.2, "interval": 30, "alpha": 0.5, "beta": 0.5}
    assert defaults(DDR) == {"removed": 0.3}
    assert defaults(RigL) == {"fraction": 0.3, "every": 100, "stop": 0.75}
    assert defaults(SET) == {"fraction": 0.3}
    assert defaults(SNIP) == {"batches": 4}
    assert MAX_MOVED == 0.2
    assert UPDATES_AT_LEAST == 10
    assert UPDATE_MOMENTS == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    assert REMOVAL_MOMENTS == (0.1, 0.2, 0.3, 0.4)


def test_what_is_ours_and_what_is_published_where_there_is_a_choice() -> None:
    choices = {"distribution": "uniform", "first_mask": "magnitude"}
    assert defaults(SparCL, str) == {
        **choices,
        "pattern": "unstructured",
        "ddr_score": "misclassified",
        "ranking": "step",
    }
    assert defaults(TDM, str) == {**choices, "ranking": "step"}
    assert defaults(DGM, str) == {"ranking": "step"}
    assert defaults(DDR, str) == {"score": "misclassified"}
    assert all(defaults(kind, str) == choices for kind in (Static, SET, RigL))
    assert (STEPS_APART, MOST_SHARE, update_moments().until) == (10, 0.02, 0.9)
    assert SparCL().tdm.interval == 100


def test_sparcl_gives_its_parts_the_published_settings() -> None:
    row = {"p_intra": 0.01, "p_inter": 0.01, "alpha": 0.5, "beta": 0.5}
    assert {0.75: row, 0.90: row, 0.95: row} == SETTINGS
    for sparsity in (0.75, 0.90, 0.95):
        sparcl = SparCL(sparsity)
        tdm, dgm, ddr = sparcl.tdm, sparcl.dgm, sparcl.ddr
        assert (tdm.sparsity, tdm.p_intra, tdm.p_inter, tdm.alpha, tdm.beta) == (sparsity, 0.01, 0.01, 0.5, 0.5)
        assert tdm.batches == 4
        assert (dgm.frozen, dgm.interval, dgm.alpha, dgm.beta) == (0.2, 30, 0.5, 0.5)
        assert (ddr.share, ddr.score) == (0.3, "misclassified")


def test_a_run_has_the_published_settings() -> None:
    experiment = Experiment("seq-cifar10").resolve()
    assert (experiment.gradient_sparsity, experiment.sample_removal, experiment.epochs) == (0.2, 0.3, 50)
    assert (experiment.importance, experiment.ddr_score, experiment.first_mask) == ("cwi", "misclassified", "random")
    assert (experiment.batch_size, experiment.drop_last) == (32, True)
    assert Experiment("seq-cifar10", sparsifier="dense").resolve().drop_last is False
    assert Experiment("seq-cifar10", sparsifier="rigl").resolve().drop_last is True
