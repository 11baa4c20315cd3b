"""Kills a process of the stack with SIGKILL just before or after a named call: the injector of `tests/test_crashes.py`.

Python runs a `sitecustomize` that it finds on its path before anything else, so a stack that is started with PYTHONPATH on this
folder carries the injector in every part, and the product's own code has no hook for it. It lies in a folder by itself, unlike
all other tests, because nothing else may come onto that path.

`CRASH` in the environment names a folder. Its file `targets` lists the functions to watch, one `module:qualified.name` a line:
each is wrapped as soon as its module has been imported, before anybody else can have taken it by name. Its file `armed`, looked
at in each call, holds the point that is on now, as JSON:

    {"name": …, "target": …, "when": "before" | "after", "call": n, "part": office or "", "about": piece of the arguments' repr}

The n-th such call since it was armed kills this process, once: `<name>.reached` is created exclusively beforehand, and shows
the test that the point lies on the way. No file, no kill: a stack can be armed and disarmed while it runs.
"""

from __future__ import annotations

import functools
import importlib.abc
import json
import os
import signal
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class Injector(importlib.abc.MetaPathFinder):
    """Finds what the others find, and wraps the watched functions when the module has run."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.part = os.environ.get("TRUING_OFFICE", "")
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()
        self._watched: dict[str, list[str]] = defaultdict(list)
        with open(os.path.join(folder, "targets"), encoding="utf-8") as file:
            for module, _, name in (line.strip().partition(":") for line in file):
                self._watched[module].append(name)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self._watched:
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if finder is not self else None
            if spec is not None and spec.loader is not None:
                self._after(spec.loader, name)
                return spec
        return None

    def _after(self, loader: Any, module: str) -> None:
        """Let the module's own loader run it, then wrap: `python -m` and tracebacks see the loader they expect."""
        run = loader.exec_module

        def exec_module(made: ModuleType) -> None:
            run(made)
            for name in self._watched[module]:
                owner: Any = made
                *outer, last = name.split(".")
                for part in outer:
                    owner = getattr(owner, part)
                setattr(owner, last, self._wrap(f"{module}:{name}", getattr(owner, last)))

        loader.exec_module = exec_module

    def _wrap(self, target: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched(*arguments: Any, **named: Any) -> Any:
            point = self._due(target, arguments, named)
            if point is not None and point["when"] == "before":
                self._kill(point["name"])
            result = function(*arguments, **named)
            if point is not None:
                self._kill(point["name"])
            return result

        return watched

    def _due(self, target: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any] | None:
        """The armed point, if this very call is its n-th."""
        try:
            with open(os.path.join(self.folder, "armed"), encoding="utf-8") as file:
                point: dict[str, Any] = json.load(file)
        except FileNotFoundError:
            return None
        if point["target"] != target or point["part"] not in ("", self.part):
            return None
        if point["about"] not in repr((arguments, named)):
            return None
        with self._lock:
            self._calls[point["name"]] += 1
            return point if self._calls[point["name"]] == point["call"] else None

    def _kill(self, name: str) -> None:
        try:
            os.close(os.open(os.path.join(self.folder, f"{name}.reached"), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:  # once is enough: the part has to get past it when it has been started again
            return
        os.kill(os.getpid(), signal.SIGKILL)


if os.environ.get("CRASH"):
    sys.meta_path.insert(0, Injector(os.environ["CRASH"]))
