"""Fuzz the readers: damage small datasets of every format thousands of times and open them.

    python benchmarks/fuzz_readers.py --cases 20000 --json

A case damages one file: bytes are flipped, cut, repeated or dropped, numbers made extreme, JSON values or XML text
replaced, or paths made to leave the folder. The dataset is then opened, in every second case in the way of `vesalius
check`, which collects the errors of single entries, and every sample is loaded. DataError and SettingError are allowed.
Any other error, more than 5 seconds, more than 3 GiB of memory or the end of the process is a failure. A failure is
reported with format and case number; the number reproduces the damage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import resource
import signal
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from specimens import SPECIMENS, Files
from vesalius.data.dataset import load_item, open_dataset
from vesalius.data.formats import FORMATS
from vesalius.errors import DataError, SettingError
from vesalius.files import write_json

LIMIT_S = 5.0
LIMIT_BYTES = 3 << 30
NUMBERS = ("0", "-1", "1e999", "NaN", "99999999999999999999", "0.5", "-0", "2147483648", "1e-320")
PIECES = (
    *'null true " [ ] {} , . < > &lt; &a; <!DOCTYPE <image> ../ é'.split(),
    '"dataset": 1,',
    "[255, 0, 0]",
    "9" * 40,
)
PATHS = ("../../../etc/passwd", "/etc/passwd", "a/../../b.png", "", ".", "\x00", "a" * 5000, "images", "图.png")


def damage(files: Files, rng: np.random.Generator) -> tuple[str, bytes]:
    """The path of one file, in most cases an annotation, and its damaged content."""
    names = sorted(files, key=lambda name: name.endswith(".png"))
    name = names[0] if rng.random() < 0.7 else names[int(rng.integers(len(names)))]
    data = files[name]
    if name.endswith(".json") and rng.random() < 0.6:
        return name, json.dumps(_exchange(json.loads(data), rng)).encode()
    for _ in range(int(rng.integers(1, 4))):
        data = DAMAGES[int(rng.integers(len(DAMAGES)))](data, rng)
    return name, data


def _exchange(value: Any, rng: np.random.Generator) -> Any:
    """The JSON value after one nested value, chosen by a random walk from the root, was dropped or replaced."""
    if isinstance(value, list) and value and rng.random() < 0.9:
        i = int(rng.integers(len(value)))
        return [*value[:i], _exchange(value[i], rng), *value[i + 1 :]]
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = list(value)[int(rng.integers(len(value)))]
        if rng.random() < 0.15:
            return {other: each for other, each in value.items() if other != key}
        return {**value, key: _exchange(value[key], rng)}
    strange: tuple[Any, ...] = (None, True, [], {}, [[]], "", "v", -1, 0, 1e308, 10**40, float("nan"), [value, value])
    strange += (*PATHS, [1, 2], [[1, 2, 3, 4, 5, 6]], {"size": [9**9, 9**9], "counts": [81**9]})
    return strange[int(rng.integers(len(strange)))]


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        if changed:
            changed[int(rng.integers(len(changed)))] = int(rng.integers(256))
    return bytes(changed)


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(len(data) + 1))]


def _double(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(rng.integers(len(data) + 1, size=2).tolist())
    return data[:end] + data[start:end] + data[end:]


def _drop(data: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(data) + 1))
    return data[:start] + data[start + int(rng.integers(1, 40)) :]


def _number(data: bytes, rng: np.random.Generator) -> bytes:
    """The content with the first digits within 400 bytes of a random offset replaced by an extreme number."""
    offset = int(rng.integers(len(data) + 1))
    start = next((i for i in range(offset, min(offset + 400, len(data))) if data[i : i + 1].isdigit()), None)
    if start is None:
        return _flip(data, rng)
    end = start
    while end < len(data) and data[end : end + 1].isdigit():
        end += 1
    return data[:start] + NUMBERS[int(rng.integers(len(NUMBERS)))].encode() + data[end:]


def _header(data: bytes, rng: np.random.Generator) -> bytes:
    """The content with bytes near the start set to 255, where binary files store sizes and counts."""
    changed = bytearray(data)
    start = int(rng.integers(min(len(data), 600) + 1))
    changed[start : start + int(rng.integers(1, 5))] = b"\xff" * int(rng.integers(1, 5))
    return bytes(changed)


def _insert(data: bytes, rng: np.random.Generator) -> bytes:
    """The content with a JSON or XML fragment written over the bytes at a random offset."""
    offset = int(rng.integers(len(data) + 1))
    piece = PIECES[int(rng.integers(len(PIECES)))].encode()
    return data[:offset] + piece + data[offset + int(rng.integers(len(piece) + 1)) :]


DAMAGES = (_flip, _cut, _double, _drop, _number, _header, _insert)


def try_case(name: str, files: Files, number: int, seed: int) -> str:
    """Outcome of a case: `read`, `refused an entry`, the class of the error, or `FAILED: ...`."""
    rng = np.random.default_rng([seed, list(SPECIMENS).index(name), number])
    changed, data = damage(files, rng)
    with tempfile.TemporaryDirectory() as folder:
        for path, content in {**files, changed: data}.items():
            target = Path(folder) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
        try:
            problems: list[DataError] | None = [] if number % 2 else None
            dataset = open_dataset(folder, prompt=None if name != "maskfolder" else "v", problems=problems)
            for sample in dataset.samples:
                load_item(sample)
            return "refused an entry" if problems else "read"
        except (DataError, SettingError) as error:
            if "\n" in str(error):
                return f"FAILED: {type(error).__name__} of several lines"
            return f"{type(error).__name__}"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return f"FAILED: {type(error).__name__}: {str(error)[:200]}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"took more than {LIMIT_S:g} s")


def _run(name: str, start: int, end: int, seed: int, results: Any) -> None:
    """Run cases `start` to `end` of one format in a new process; `results` gets (number, outcome) before and after each."""
    resource.setrlimit(resource.RLIMIT_AS, (2 * LIMIT_BYTES, 2 * LIMIT_BYTES))
    signal.signal(signal.SIGALRM, _too_long)
    warnings.simplefilter("error")  # a library's warning would reach the user's terminal
    files = SPECIMENS[name]()
    for number in range(start, end):
        results.send((number, "FAILED: the process ended"))
        outcome = try_case(name, files, number, seed)
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > LIMIT_BYTES:
            results.send((number, "FAILED: memory"))
            return
        results.send((number, outcome))


def fuzz(name: str, cases: int, seed: int) -> dict[int, str]:
    """Outcome by case number. If a process dies, another one continues with the next case."""
    context = multiprocessing.get_context("fork")
    outcomes: dict[int, str] = {}
    while len(outcomes) < cases:
        begun = len(outcomes)
        reading, writing = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(name, len(outcomes), cases, seed, writing))
        process.start()
        writing.close()
        with contextlib.suppress(EOFError):
            while True:
                outcomes.update([reading.recv()])
        process.join()
        if process.exitcode and len(outcomes) == begun:
            raise SystemExit(f"{name}: no case could be tried")
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=2000, help="cases of each format (default 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--format", choices=sorted(SPECIMENS), action="append", help="only this format; may be repeated"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table to this file")
    args = parser.parse_args()
    rows, failures = [], []
    for name in args.format or [each for each in SPECIMENS if each in FORMATS]:
        started = time.perf_counter()
        outcomes = fuzz(name, args.cases, args.seed)
        wrong = {number: what for number, what in outcomes.items() if what.startswith("FAILED")}
        counted = Counter("FAILED" if number in wrong else what for number, what in outcomes.items())
        rows.append({"format": name, "cases": args.cases, "took_s": round(time.perf_counter() - started, 1), **counted})
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        failures += [f"{name} {number}: {what}" for number, what in sorted(wrong.items())]
    for line in failures[:50]:
        print(line)
    if args.json:
        write_json(args.json, {"seed": args.seed, "rows": rows, "failures": failures})
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
