"""SparCL-DER++ as a model of Mammoth: copy this file into Mammoth's `models/`, then `--model sparcl-derpp`.

TDM and DGM work on Mammoth's own network, optimizer and buffer. DDR does not: the order of the samples is Mammoth's.
The mask is real, the time is not saved: that takes sparcl's native backend, and so sparcl's own loop.
"""

from collections.abc import Iterator

import torch
from models.utils.continual_model import ContinualModel
from torch import Tensor
from torch.nn import functional as F
from utils.args import ArgumentParser, add_rehearsal_args
from utils.buffer import Buffer

import sparcl


class SparclDerpp(ContinualModel):
    """DER++ whose weights (TDM) and gradients (DGM) are sparse."""

    NAME = "sparcl_derpp"
    COMPATIBILITY = ("class-il", "task-il")

    @staticmethod
    def get_parser(parser: ArgumentParser) -> ArgumentParser:
        add_rehearsal_args(parser)
        parser.add_argument("--alpha", type=float, required=True, help="weight of the remembered logits")
        parser.add_argument("--beta", type=float, required=True, help="weight of the remembered labels")
        parser.add_argument("--sparsity", type=float, default=0.90, help="share of prunable weights that is zero")
        parser.add_argument("--gradient_sparsity", type=float, default=0.2, help="share of the others not updated")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None) -> None:
        super().__init__(backbone, loss, args, transform, dataset=dataset)
        self.buffer = Buffer(args.buffer_size)
        self.sparsifier: sparcl.SparCL | None = None  # until the network is where it will be trained

    def get_optimizer(self, params=None, lr=None) -> torch.optim.Optimizer:
        """The first one for good: Mammoth makes a new one for each task, but masks and optimizer belong together."""
        if getattr(self, "opt", None) is None:
            return super().get_optimizer(params, lr)
        for group in self.opt.param_groups:
            group["lr"] = self.args.lr
        self.opt.state.clear()  # as a new one
        return self.opt

    def begin_task(self, dataset) -> None:
        if self.sparsifier is None:
            sparsifier = sparcl.SparCL(self.args.sparsity, gradients=self.args.gradient_sparsity, samples=0.0)
            self.sparsifier = sparsifier.attach(self.net, self.opt, seed=self.args.seed or 0)
        self.loader, self.fresh = dataset.train_loader, iter(())
        losses = sparcl.Losses(task=self.task_loss, replay=self.replay_loss)
        size, epochs = len(self.loader.dataset), self.args.n_epochs
        self.sparsifier.begin_task(self.current_task, samples=size, epochs=epochs, losses=losses)

    def begin_epoch(self, epoch: int, dataset) -> None:
        del dataset
        self.sparsifier.begin_epoch(epoch, steps=len(self.loader))

    def end_task(self, dataset) -> None:
        del dataset
        self.sparsifier.end_task()

    def observe(self, inputs: Tensor, labels: Tensor, not_aug_inputs: Tensor, epoch=None) -> float:
        del epoch
        self.sparsifier.begin_step(self.epoch_iteration)  # masks move now, or where a task begins or ends
        self.opt.zero_grad()
        outputs = self.net(inputs)
        loss = self.loss(outputs, labels)
        if (remembered := self.replay_loss()) is not None:
            loss = loss + remembered
        loss.backward()
        self.sparsifier.after_backward()
        self.opt.step()
        self.sparsifier.after_step()
        self.buffer.add_data(examples=not_aug_inputs, labels=labels, logits=outputs.data)
        return loss.item()

    def task_loss(self) -> Tensor:
        """L~(D_t): cross-entropy among the task's own classes, on a batch that is new at each call."""
        inputs, labels = next(self.fresh, (None, None))
        if inputs is None:
            self.fresh = self.batches()
            inputs, labels = next(self.fresh)
        first, end = self.get_offsets(self.current_task)
        return F.cross_entropy(self.net(inputs)[:, first:end], labels - first)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Another pass over the task."""
        for data in self.loader:
            yield data[0].to(self.device), data[1].to(self.device, dtype=torch.long)

    def replay_loss(self) -> Tensor | None:
        """L(M), what DER++ adds to the task's loss; None while the buffer is empty."""
        if self.buffer.is_empty():
            return None
        inputs, _, logits = self.remembered()
        loss = self.args.alpha * F.mse_loss(self.net(inputs), logits)
        inputs, labels, _ = self.remembered()
        return loss + self.args.beta * self.loss(self.net(inputs), labels)

    def remembered(self) -> tuple[Tensor, ...]:
        return self.buffer.get_data(self.args.minibatch_size, transform=self.transform, device=self.device)
