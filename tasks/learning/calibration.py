"""Calibration: a temperature and one bias a label, so that "0.8" comes true eight times in ten.

Bias-corrected temperature scaling (Alexandari, Kundaje & Shrikumar 2020, arXiv:1901.06852); with two labels, Platt scaling.
Fitted by Newton's method on the weighted log loss of rows whose truth is known, with a weak pull towards `prior` so that a few
hundred rows can't swing it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from truing.tasks.kinds.model import Calibration

PULL = 10.0  # strength of the prior, in units of (log temperature)² and bias² against summed log loss


def identity(labels: int) -> Calibration:
    return Calibration(temperature=1.0, bias=(0.0,) * labels)


def calibrate(
    scores: NDArray[np.float64],
    targets: NDArray[np.int64],
    *,
    weights: NDArray[np.float64] | None = None,
    prior: Calibration | None = None,
    steps: int = 50,
) -> Calibration:
    """Fit on `scores` (n, k) and label indices `targets` (n,); n = 0 gives the prior (default: identity) back.

    Gradient and Hessian are of softmax(t · scores + bias); t stays above 0.001.
    """
    n, k = scores.shape
    start = prior or identity(k)
    anchor = np.array([start.temperature, *start.bias])
    if not n:
        return start
    w = np.ones(n) if weights is None else weights
    onehot = np.eye(k)[targets]
    # design[i, c, :] = d logit_ic / d (t, bias): the score itself, then a one for the label's own bias
    design = np.concatenate([scores[:, :, None], np.broadcast_to(np.eye(k), (n, k, k))], axis=2)
    flat = design.reshape(n * k, k + 1)
    pull = np.full(k + 1, PULL)
    scale = float(np.abs(scores).mean()) or 1.0
    pull[0] *= scale**2  # a unit of t moves logits by the size of a score

    def probabilities(theta: NDArray[np.float64]) -> NDArray[np.float64]:
        return Calibration(temperature=float(theta[0]), bias=tuple(theta[1:])).probabilities(scores)

    def loss(theta: NDArray[np.float64]) -> float:
        p = np.clip(probabilities(theta)[np.arange(n), targets], 1e-12, None)
        return float(-(w * np.log(p)).sum() + 0.5 * (pull * (theta - anchor) ** 2).sum())

    theta, now = anchor.copy(), loss(anchor)
    for _ in range(steps):
        p = probabilities(theta)
        mean = np.matmul(p[:, None, :], design)[:, 0, :]
        gradient = flat.T @ (w[:, None] * (p - onehot)).ravel() + pull * (theta - anchor)
        hessian = (flat * (w[:, None] * p).reshape(-1, 1)).T @ flat - (mean * w[:, None]).T @ mean + np.diag(pull)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-4:
            tried = theta - size * step
            tried[0] = max(tried[0], 1e-3)
            after = loss(tried)
            if after < now:
                break
            size /= 2
        else:
            break
        done = now - after < 1e-9 * max(1.0, abs(now))
        theta, now = tried, after
        if done:
            break
    return Calibration(temperature=float(theta[0]), bias=tuple(float(b) for b in theta[1:] - theta[1:].mean()))


def brier(probabilities: NDArray[np.float64], targets: NDArray[np.int64], weights: NDArray[np.float64] | None = None) -> float:
    """Mean squared error of the probabilities, halved over labels so that with two it is the usual (p - y)². 0 = perfect."""
    wrong = ((probabilities - np.eye(probabilities.shape[1])[targets]) ** 2).sum(axis=1) / 2
    return float(np.average(wrong, weights=weights))
