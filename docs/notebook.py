"""Execute a notebook and store its outputs: `python docs/notebook.py docs/notebooks/first_hour.ipynb`.

Cells run in order in one namespace and an empty folder. A cell's outputs are its printed text and its last expression.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def execute(notebook: dict[str, Any], folder: Path) -> None:
    """Run the code cells in `folder`, and replace their outputs."""
    names: dict[str, Any] = {"__name__": "__main__"}
    before = Path.cwd()
    os.chdir(folder)
    try:
        for number, cell in enumerate((each for each in notebook["cells"] if each["cell_type"] == "code"), 1):
            cell["execution_count"], cell["outputs"] = number, run_cell("".join(cell["source"]), names, number)
    finally:
        os.chdir(before)


def run_cell(source: str, names: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """Outputs of one cell in the format of Jupyter; text on stderr, such as progress, is left out."""
    tree = ast.parse(source)
    last = ast.Expression(tree.body.pop().value) if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {number}", "exec"), names)
        if last is not None:
            value = eval(compile(last, f"cell {number}", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    if value is not None:
        shown: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
        to_png = getattr(value, "_repr_png_", lambda: None)
        if png := to_png():
            shown["image/png"] = base64.b64encode(png).decode()
        outputs.append({"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": shown})
    return outputs


def main(path: Path) -> None:
    """Execute the notebook at `path` and write it with its outputs."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder))
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
