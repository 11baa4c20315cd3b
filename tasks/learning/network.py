"""The slow learner: a small network on the encoder's units, fine-tuned from its parent's weights.

The head is linear plus one hidden layer, f(u) = u·W + b + relu(u·A + a)·B, with B starting at zero: before the first step the
network answers exactly as its parent did, whichever learner made that parent. A pull towards the starting point (L2-SP, Li,
Grandvalet & Davoine 2018, arXiv:1802.01483) and replay keep what was learned before.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truing.tasks.kinds.model import Head, Model
from truing.tasks.learning.calibration import brier, identity
from truing.tasks.learning.protocol import Batch, Found, Params, Progress, Range
from truing.tasks.learning.study import Report, search

HIDDEN = 32
BATCH = 256
FIRST: Params = {"rate": 1e-2, "epochs": 6.0, "stay": 1e-4, "drop": 0.2}  # where a study without a predecessor begins
EachEpoch = Callable[[int, Head], None]  # may raise to stop


class Network:
    """Implements `truing.tasks.learning.protocol.Learner`; its state is the head itself."""

    name = "slow"

    def space(self) -> dict[str, Range]:
        """`rate` of Adam; `epochs` over the batch; `stay`: strength of the pull to the start; `drop`: share of hidden units."""
        # No step so small that nothing is learned: "no update" is judged beside every candidate, a study must not choose it.
        return {
            "rate": Range(8e-3, 2e-2, log=True),
            "epochs": Range(5, 8),
            "stay": Range(1e-5, 1e-3, log=True),
            "drop": Range(0.0, 0.5),
        }

    def start(self, parent: Model, *, seed: int) -> Head:
        """The parent's head with its calibration folded in, and a hidden layer if it had none."""
        t = parent.card.calibration.temperature
        weight, bias = parent.head.weight * t, parent.head.bias * t + np.array(parent.card.calibration.bias)
        head = parent.head
        if head.hidden is not None and head.hidden_bias is not None and head.out is not None:
            hidden, hidden_bias, out = head.hidden, head.hidden_bias, head.out * t
        else:
            hidden, hidden_bias, out = _hidden(weight.shape[0], weight.shape[1], seed)
        return Head(
            weight=weight.astype(np.float32), bias=bias.astype(np.float32), hidden=hidden, hidden_bias=hidden_bias,
            out=out.astype(np.float32),
        )  # fmt: skip

    def fit(self, batch: Batch, *, labels: int, params: Params, seed: int, threads: int) -> Head:
        """From scratch: all answers equally likely at first."""
        width = batch.units.shape[1]
        hidden, hidden_bias, out = _hidden(width, labels, seed)
        weight, bias = np.zeros((width, labels), np.float32), np.zeros(labels, np.float32)
        empty = Head(weight=weight, bias=bias, hidden=hidden, hidden_bias=hidden_bias, out=out)
        return self.update(empty, batch, params=params, seed=seed, threads=threads)

    def update(
        self, state: Head, batch: Batch, *, params: Params, seed: int, threads: int, each_epoch: EachEpoch | None = None
    ) -> Head:
        """Fine-tune by Adam on weighted log loss; one permutation of the rows an epoch, seeded."""
        import torch

        torch.set_num_threads(threads)
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        start = {name: torch.from_numpy(value.copy()) for name, value in state.arrays().items()}
        now = {name: value.clone().requires_grad_() for name, value in start.items()}
        optimiser = torch.optim.Adam(now.values(), lr=params["rate"])
        units, targets = torch.from_numpy(batch.units), torch.from_numpy(batch.targets)
        weights = torch.from_numpy((batch.weights / batch.weights.mean()).astype(np.float32))
        epochs = round(params["epochs"])
        steps = max(1, epochs * -(-len(targets) // BATCH))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: max(0.02, 1 - step / steps))
        for epoch in range(epochs):
            order = torch.from_numpy(rng.permutation(len(targets)))
            for i in range(0, len(order), BATCH):
                chosen = order[i : i + BATCH]
                loss = _loss(now, units[chosen], targets[chosen], weights[chosen], params.get("drop", 0.0))
                stay = sum(((now[name] - start[name]) ** 2).sum() for name in now)
                optimiser.zero_grad()
                (loss + params["stay"] * stay).backward()
                optimiser.step()
                schedule.step()
            if each_epoch is not None:
                each_epoch(epoch, _head(now))
        return _head(now)

    def tune(
        self,
        state: Head,
        batch: Batch,
        evidence: Batch,
        *,
        trials: int,
        seed: int,
        threads: int,
        problem: str = "",
        storage: Path | None = None,
        progress: Progress | None = None,
    ) -> Found:
        """A study over `space`, each trial fine-tuning `state` on `batch`; kept in `storage` under the problem's name."""
        tried: list[tuple[float, Head]] = []

        def judge(head: Head) -> float:
            return brier(identity(head.bias.shape[0]).probabilities(head.scores(evidence.units)), evidence.targets)

        def objective(params: Params, report: Report) -> float:
            head = self.update(
                state, batch, params=params, seed=seed, threads=threads,
                each_epoch=lambda epoch, so_far: report(epoch, judge(so_far)),
            )  # fmt: skip
            tried.append((judge(head), head))
            return tried[-1][0]

        best, done = search(
            problem, objective, self.space(), first=FIRST, trials=trials, seed=seed, storage=storage, progress=progress
        )
        head = min(tried, key=lambda entry: entry[0])[1] if tried else state
        return Found(head, best, head.scores(evidence.units), done)

    def subtract(self, state: Head, batch: Batch) -> Head | None:
        """Gradient steps can't be taken back: fit again without the rows."""
        return None

    def head(self, state: Head, params: Params) -> Head:
        return state


def _hidden(width: int, labels: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    hidden = rng.normal(scale=1.0, size=(width, HIDDEN)).astype(np.float32)  # units have norm 1, so relu sees N(0, 1)
    return hidden, np.zeros(HIDDEN, np.float32), np.zeros((HIDDEN, labels), np.float32)


def _loss(now: dict[str, Any], units: Any, targets: Any, weights: Any, drop: float) -> Any:
    import torch.nn.functional as f

    inner = f.dropout(f.relu(units @ now["hidden"] + now["hidden_bias"]), p=drop)
    logits = units @ now["weight"] + now["bias"] + inner @ now["out"]
    return (f.cross_entropy(logits, targets, reduction="none") * weights).mean()


def _head(now: dict[str, Any]) -> Head:
    return Head(**{name: value.detach().numpy().copy() for name, value in now.items()})
