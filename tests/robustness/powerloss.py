"""What a power cut may leave of a save: every write, sync and rename is recorded, and each prefix is replayed.

A file's bytes survive from its last `fsync` on; that a name exists, is gone or has moved survives from the `fsync` of
its folder on. What is not synced may or may not have reached the disk, in any order, so several outcomes are replayed.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Step = tuple[Any, ...]
"""(kind, path, ...): write, truncate, sync, create, rename, unlink, mkdir, rmdir, as they happened."""


class Recorder:
    """Records what goes through `os` below a folder, and does it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.steps: list[Step] = []
        self.open: dict[int, str] = {}

    @contextmanager
    def recording(self, monkeypatch: Any) -> Iterator[list[Step]]:
        real = {
            name: getattr(os, name)
            for name in ("open", "close", "write", "fsync", "rename", "unlink", "mkdir", "rmdir", "ftruncate")
        }

        def inside(path: object) -> str | None:
            text = os.fspath(path)  # type: ignore[call-overload]
            return os.path.relpath(text, self.root) if text.startswith(str(self.root)) else None

        def opened(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            name = inside(path)
            new = name is not None and flags & os.O_CREAT and not os.path.exists(path)
            descriptor: int = real["open"](path, flags, *rest, **named)
            if name is not None:
                self.open[descriptor] = name
                if new:
                    self.steps.append(("create", name))
            return descriptor

        def closed(descriptor: int) -> None:
            self.open.pop(descriptor, None)
            real["close"](descriptor)

        def written(descriptor: int, data: Any) -> int:
            count: int = real["write"](descriptor, data)
            if descriptor in self.open:
                self.steps.append(("write", self.open[descriptor], bytes(data[:count])))
            return count

        def synced(descriptor: int) -> None:
            real["fsync"](descriptor)
            if descriptor in self.open:
                self.steps.append(("sync", self.open[descriptor]))

        def truncated(descriptor: int, length: int) -> None:
            real["ftruncate"](descriptor, length)
            if descriptor in self.open:
                self.steps.append(("truncate", self.open[descriptor], length))

        def two(kind: str) -> Any:
            def act(path: Any, *rest: Any, **named: Any) -> None:
                real[kind](path, *rest, **named)
                if (name := inside(path)) is not None:
                    self.steps.append((kind, name, *[inside(r) for r in rest if isinstance(r, str | Path)]))

            return act

        with monkeypatch.context() as patch:
            for name, stand_in in (("open", opened), ("close", closed), ("write", written), ("fsync", synced)):
                patch.setattr(os, name, stand_in)
            patch.setattr(os, "ftruncate", truncated)
            for name in ("rename", "unlink", "mkdir", "rmdir"):
                patch.setattr(os, name, two(name))
            yield self.steps


@dataclass
class Node:
    """A file or a folder: what the system sees now, and what is safe on the disk."""

    now: bytearray = field(default_factory=bytearray)
    safe: bytes = b""
    children: dict[str, Node] | None = None
    safe_children: dict[str, Node] = field(default_factory=dict)
    pending: list[tuple[str, Node | None]] = field(default_factory=list)  # changes of names since the last sync


class Disk:
    """A disk that forgets what was not synced."""

    def __init__(self) -> None:
        self.top = Node(children={})

    def node(self, path: str) -> Node:
        node = self.top
        for part in Path(path).parts:
            assert node.children is not None
            node = node.children[part]
        return node

    def _name(self, path: str, node: Node | None) -> None:
        folder = self.node(str(Path(path).parent))
        assert folder.children is not None
        name = Path(path).name
        if node is None:
            del folder.children[name]
        else:
            folder.children[name] = node
        folder.pending.append((name, node))

    def do(self, step: Step) -> None:
        kind, path = step[:2]
        if kind == "create":
            self._name(path, Node())
        elif kind == "mkdir":
            self._name(path, Node(children={}))
        elif kind == "write":
            self.node(path).now += step[2]
        elif kind == "truncate":
            file = self.node(path)
            del file.now[step[2] :]
            file.safe = file.safe[: step[2]]  # what was cut off may be gone at once
        elif kind in ("unlink", "rmdir"):
            self._name(path, None)
        elif kind == "rename":
            node = self.node(path)
            self._name(path, None)
            self._name(step[2], node)
        elif kind == "sync":
            node = self.node(path)
            node.safe = bytes(node.now)
            if node.children is not None:
                node.safe_children, node.pending = dict(node.children), []
        else:
            raise AssertionError(kind)

    def after_power_loss(self, target: Path, rng: random.Random | None, names: float, content: float) -> None:
        """Write to `target` what survives: of what was not synced, names and bytes with these probabilities."""
        self._survive(self.top, target, rng or random.Random(0), names, content)

    def _survive(self, node: Node, target: Path, rng: random.Random, names: float, content: float) -> None:
        target.mkdir()
        children = dict(node.safe_children)
        for name, child in node.pending:  # the journal keeps the order of names; it may end anywhere
            if rng.random() >= names:
                break
            if child is None:
                children.pop(name, None)
            else:
                children[name] = child
        for name, child in children.items():
            if child.children is not None:
                self._survive(child, target / name, rng, names, content)
            elif rng.random() < content:
                (target / name).write_bytes(child.now)
            else:
                cut = rng.randrange(len(child.safe), len(child.now) + 1) if content > 0 else len(child.safe)
                (target / name).write_bytes(child.now[:cut])


def replays(
    before: list[Step], steps: list[Step], folder: Path, seeds: int, *, writes: bool = True
) -> Iterator[tuple[int, Path]]:
    """After each prefix of `steps` (which follow `before`), several disks as a power cut may leave them.

    Without `writes`, prefixes that end between two writes are left out: what is not synced yet is lost in part anyway.
    """
    number = 0
    ends = range(len(steps) + 1)
    for count in ends if writes else [n for n in ends if n == len(steps) or steps[n][0] != "write"]:
        outcomes = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)] + [(0.7, 0.5)] * seeds
        for which, (names, content) in enumerate(outcomes):
            disk = Disk()
            for step in [*before, *steps[:count]]:
                disk.do(step)
            number += 1
            target = folder / f"disk-{number}"
            disk.after_power_loss(target, random.Random(1000 * count + which), names, content)
            yield count, target
