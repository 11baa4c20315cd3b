"""A small Optuna study over a learner's space, pruned by the median and warm-started from the last study's best.

The journal is one append-only file, so several processes may look at it and a killed study leaves no lock behind. An unlucky
study can do no harm: its winner is only a candidate beside the fast learner and has to pass the gate.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from truing.tasks.learning.protocol import Params, Progress, Range
from truing.tasks.records import Trial

Report = Callable[[int, float], None]  # (epoch, score); raises to stop a hopeless trial
Objective = Callable[[Params, Report], float]


def search(
    name: str,
    objective: Objective,
    space: dict[str, Range],
    *,
    first: Params,
    trials: int,
    seed: int,
    storage: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Params, tuple[Trial, ...]]:
    """The best parameters found and all trials; `objective` is minimised.

    `name` is the problem's. The first trial repeats the best of its latest finished study in `storage`, or else `first`.
    `storage=None` keeps everything in memory.
    """
    import optuna
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    store: Any = None
    earlier: list[str] = []
    if storage is not None:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        storage.parent.mkdir(parents=True, exist_ok=True)
        store = JournalStorage(JournalFileBackend(str(storage)))
        earlier = [found for found in optuna.get_all_study_names(store) if found.rpartition("-")[0] == name]
    numbers = sorted(int(found.rpartition("-")[2]) for found in earlier)
    last = _best(store, name, numbers)
    study = optuna.create_study(
        study_name=f"{name}-{numbers[-1] + 1 if numbers else 1}",
        storage=store,
        direction="minimize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=3),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=1),
    )
    if last is not None and set(last) == set(space):
        study.enqueue_trial({key: min(max(value, space[key].low), space[key].high) for key, value in last.items()})
    study.enqueue_trial(first)

    def one(trial: Any) -> float:
        params = {key: trial.suggest_float(key, r.low, r.high, log=r.log) for key, r in space.items()}

        def report(step: int, score: float) -> None:
            trial.report(score, step)
            if trial.should_prune():
                raise optuna.TrialPruned

        score = objective(params, report)
        if progress is not None:
            progress(trial.number + 1, trials, f"trial {trial.number + 1}: Brier {score:.4f}")
        return score

    study.optimize(one, n_trials=trials)
    done = tuple(
        Trial(
            problem=name,
            number=trial.number,
            params={key: float(value) for key, value in trial.params.items()},
            score=float(trial.value) if trial.state is TrialState.COMPLETE and trial.value is not None else None,
            seconds=trial.duration.total_seconds() if trial.duration else 0.0,
            state={TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}.get(trial.state, "failed"),
        )
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished()
    )
    finished = [trial for trial in done if trial.score is not None]
    best = min(finished, key=lambda trial: (trial.score, trial.number)).params if finished else first
    return best, done


def _best(store: Any, name: str, numbers: list[int]) -> Params | None:
    import optuna

    for number in reversed(numbers):
        study = optuna.load_study(study_name=f"{name}-{number}", storage=store)
        try:
            return {key: float(value) for key, value in study.best_params.items()}
        except ValueError:  # it was killed before its first trial ended
            continue
    return None
