"""Run every benchmark beside this file and rewrite docs/benchmarks.md: `make bench`, or `make bench ARGS=--quick`.

Each benchmark's own table and figures are kept as printed, under its first sentence, with date, commit, machine and command.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
MORE = {"loop_gain": ["--limits"]}  # options that make a table whole
HEAD = """# Benchmarks

Every figure is measured beside its peer or limit in the same run. `make bench` rewrites this page; one alone:
`python tests/benchmarks/NAME.py [--quick] [--json]`. Seconds depend on the machine, shares and gains hardly do.
"""


def main() -> int:
    quick = [option for option in sys.argv[1:] if option == "--quick"]
    worst, parts = 0, [HEAD]
    for path in sorted(HERE.glob("*.py")):
        if path.stem == "all" or "if __name__ ==" not in path.read_text():  # the latter: a setting that benchmarks share
            continue
        options = [*MORE.get(path.stem, []), *quick]
        sys.stderr.write(f"{path.stem} …\n")
        done = subprocess.run([sys.executable, str(path), *options], stdout=subprocess.PIPE, text=True, check=False)
        worst = max(worst, done.returncode)
        command = " ".join(["python", f"tests/benchmarks/{path.name}", *options])
        broken = "" if done.returncode == 0 else f"\n**A guarantee broke: exit {done.returncode}.**\n"
        title = (ast.get_docstring(ast.parse(path.read_text())) or path.stem).splitlines()[0]
        parts.append(f"## {path.stem}\n\n{title} `{command}`\n{broken}\n```text\n{done.stdout.strip()}\n```\n")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(parts))
    return worst


if __name__ == "__main__":
    raise SystemExit(main())
