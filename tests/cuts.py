"""Kills a process between any two lines of one file: `python cuts.py FILE_SUFFIX BEFORE FOLDER CODE`.

For k = 1, 2, … a child runs CODE on a copy of BEFORE at FOLDER/k and is killed (SIGKILL) when it has come to the k-th line of
the file; the last child gets through. CODE sees its `folder` and `say`, which writes a line to FOLDER/k.said.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any


def child(suffix: str, code: str, folder: Path, cut: int) -> None:
    count = 0
    said = os.open(folder.with_suffix(".said"), os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    names = {"folder": folder, "say": lambda text: os.write(said, f"{text}\n".encode())}

    def trace(frame: FrameType, event: str, _arg: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.endswith(suffix):
            return None
        if event == "line":
            count += 1
            if count == cut:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    program = compile(code, "<cut>", "exec")
    sys.settrace(trace)
    exec(program, names)  # noqa: S102 - the test's own lines
    sys.settrace(None)


def cut(suffix: str, before: Path, root: Path, code: str) -> list[Path]:
    """The folders that the children left, in the order of their cuts; the last one got through."""
    before.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, suffix, str(before), str(root), code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return sorted((path for path in root.iterdir() if path.is_dir()), key=lambda path: int(path.name))


def main() -> int:
    suffix, before, root, code = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    exec(code.split("# ready\n")[0], {})  # noqa: S102 - its imports, once for all children
    for cut in range(1, 2000):
        folder = root / str(cut)
        shutil.copytree(before, folder)
        pid = os.fork()
        if pid == 0:
            try:
                child(suffix, code, folder, cut)
            except Exception:  # noqa: BLE001 - the parent must not go on in a child
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            return os.WEXITSTATUS(status)
        if os.WTERMSIG(status) != signal.SIGKILL:
            return 2
    return 3


if __name__ == "__main__":
    sys.exit(main())
