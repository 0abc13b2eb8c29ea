"""LPS, learn-prune-share (Wang et al., ICDM 2020): ADMM prunes each task's weights and picks which old ones it shares.

Legend, for a layer: W its weights, m a real mask over those of older tasks; Z, Y what they should become (at most so
many weights; a binary mask with so many ones), U, K the scaled dual variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparcl.checkpoint import checks
from sparcl.errors import ConfigError
from sparcl.methods.method import Batch, check_not_negative
from sparcl.methods.partition import LEARN_SHARE, PartitionMethod
from sparcl.sparsity.importance import lowest
from sparcl.streams.task import Task

STAGES, ROUNDS = 4, 3
"""ρ grows tenfold in four stages (published); within each Z and U are updated so many times."""


class LPS(PartitionMethod):
    """L(D_t) of the network W_free + m ⊙ W_old, + ρ/2·‖W - Z + U‖² + ρ/2·‖m - Y + K‖²; then prune, and train on.

    Args:
        pruned: share of the free weights of each layer left to later tasks.
        shared: share of the older tasks' weights of each layer that a task uses (ours: the paper tunes it).
        rho: ρ of the first stage (published: 1e-4).
        mask_lr: learning rate of m, by plain gradient descent (ours: the paper trains it with the weights').
    """

    name = "lps"
    passes_in_parts = False

    def __init__(self, *, pruned: float = 0.75, shared: float = 0.8, rho: float = 0.0001, mask_lr: float = 0.1) -> None:
        super().__init__(pruned=pruned)
        if not 0.0 <= shared <= 1.0:
            raise ConfigError(f"shared share {shared} is not allowed for lps; use a share from 0 to 1")
        check_not_negative(self.name, rho=rho, mask_lr=mask_lr)
        self.shared, self.rho, self.mask_lr = shared, rho, mask_lr
        self.round = 0
        self.admm: dict[str, dict[str, Tensor]] = {}  # by letter of the legend, then by parameter
        self.parts: dict[str, dict[str, Tensor]] = {}  # by task: bool, the older tasks' weights that it uses

    @property
    def keys(self) -> dict[int, str]:
        """What a divided parameter is called in `admm` and `parts`."""
        return {i: str(i) for i in self.divided}

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.round = 0
        ones = {k: torch.ones_like(self.parameters[i]).detach() for i, k in self.keys.items()}
        self.admm = {"m": {k: m.requires_grad_() for k, m in ones.items()}}
        self._restart()

    def begin_step(self, progress: float) -> None:
        """Dual updates at fixed shares of the time before packing; each stage of ρ starts afresh."""
        if self.packed:
            return
        now = int(progress / LEARN_SHARE * STAGES * ROUNDS)
        if now > self.round and now < STAGES * ROUNDS:
            new_stage, self.round = now // ROUNDS > self.round // ROUNDS, now
            if new_stage:
                self._restart()
            else:
                self._update()
        super().begin_step(progress)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, logits = super().loss(batch)
        return (loss if self.packed else loss + self.penalty()), logits

    def penalty(self) -> Tensor:
        """ρ/2·‖W - Z + U‖² over the free weights + ρ/2·‖m - Y + K‖² over the masks of the older tasks' weights."""
        terms = []
        for i, k in self.keys.items():
            a, free = self.admm, self.owner[i] == 0
            distance = torch.where(free, self.parameters[i] - a["Z"][k] + a["U"][k], a["m"][k] - a["Y"][k] + a["K"][k])
            terms.append(distance.square().sum())
        rho = self.rho * 10.0 ** (self.round // ROUNDS)
        if not terms:  # all that could be divided is frozen
            return torch.zeros((), device=self.host.device)
        return rho / 2 * torch.stack(terms).sum()

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits with the older tasks' weights times m or, once packed, those that are shared."""
        weights = {}
        for i, k in self.keys.items() if self.present else ():  # no task has begun: the network as it is
            old = (self.owner[i] > 0) & (self.owner[i] < self.present)
            mask = self.parts[str(self.present - 1)][k].to(inputs.dtype) if self.packed else self.admm["m"][k]
            weights[self.names[i]] = self.parameters[i] * torch.where(old, mask, 1.0)
        logits: Tensor = torch.func.functional_call(self.host.model, weights, (inputs,))
        return logits

    @torch.no_grad()
    def after_backward(self, batch: Batch) -> None:
        super().after_backward(batch)
        for m in () if self.packed else self.admm["m"].values():
            if m.grad is not None:
                m -= self.mask_lr * m.grad
                m.grad = None

    @torch.no_grad()
    def pack(self) -> None:
        self.parts[str(self.present - 1)] = {k: self._most_shared(i, self.admm["m"][k]) for i, k in self.keys.items()}
        super().pack()
        self.admm = {}

    def used(self, i: int, t: int) -> Tensor:
        return (self.owner[i] == t + 1) | self.parts[str(t)][self.keys[i]]

    @torch.no_grad()
    def _restart(self) -> None:
        """U = K = 0; Z and Y the projections of W and m."""
        for letter in ("U", "K"):
            self.admm[letter] = {k: torch.zeros_like(self.parameters[i]).detach() for i, k in self.keys.items()}
        self._project()

    @torch.no_grad()
    def _update(self) -> None:
        """Z, Y <- the projections of W + U and m + K; U <- U + W - Z, K <- K + m - Y."""
        self._project()
        for i, k in self.keys.items():
            self.admm["U"][k] += self.parameters[i] - self.admm["Z"][k]
            self.admm["K"][k] += self.admm["m"][k] - self.admm["Y"][k]

    def _project(self) -> None:
        z, y = {}, {}
        for i, k in self.keys.items():
            target, mask = self.parameters[i] + self.admm["U"][k], self.admm["m"][k] + self.admm["K"][k]
            z[k] = target.detach().masked_fill(~self.largest_free(i, target), 0.0)
            y[k] = self._most_shared(i, mask).to(mask.dtype)
        self.admm["Z"], self.admm["Y"] = z, y

    def _most_shared(self, i: int, mask: Tensor) -> Tensor:
        """Bool: the share `shared` of the older tasks' weights of parameter i with the largest mask."""
        old = ((self.owner[i] > 0) & (self.owner[i] < self.present)).flatten().nonzero().squeeze(1)
        chosen = torch.zeros(mask.numel(), dtype=torch.bool, device=mask.device)
        chosen[old[~lowest(mask.detach().flatten()[old], len(old) - round(self.shared * len(old)))]] = True
        return chosen.view(mask.shape)

    def state_dict(self) -> dict[str, Any]:
        admm = {letter: {k: v.detach() for k, v in by.items()} for letter, by in self.admm.items()}
        return {**super().state_dict(), "round": self.round, "admm": admm, "parts": self.parts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.round = checks.integer(state["round"], "the round of ADMM", most=STAGES * ROUNDS)
        self.admm = {letter: self._by_layer(by, torch.float32) for letter, by in state["admm"].items()}
        self.parts = {t: self._by_layer(by, torch.bool) for t, by in state["parts"].items()}
        checks.keys(self.admm, () if self.packed else "mZUYK", "the ADMM state of LPS")
        checks.keys(self.parts, [str(t) for t in range(self.present - (not self.packed))], "what LPS tasks share")
        for m in self.admm.get("m", {}).values():
            m.requires_grad_()

    def _by_layer(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        checks.keys(tensors, list(self.keys.values()), "a layer's part in LPS")
        return {
            k: checks.tensor(tensors[k], "a layer's part in LPS", dtype, tuple(self.parameters[i].shape)).to(
                self.host.device
            )
            for i, k in self.keys.items()
        }
