"""Write `first_losses.json`: the first five losses of a fixed run of `tiny`.

    .venv/bin/python tests/golden/make_first_losses.py

Run it again only after an intended change of the model, the data, the loss or the order of samples.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from vesalius.config import make_settings
from vesalius.synth import write_dataset
from vesalius.training.run import train
from vesalius.training.settings import RunSettings

HERE = Path(__file__).parent


def main() -> None:
    """Write the losses into this folder."""
    settings = json.loads((HERE / "first_losses_settings.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "set"
        write_dataset(data, 4, seed=7, size=96)
        values = {**settings, "data": {"train": data, "val": data}, "out": Path(folder) / "run"}
        run = train(make_settings(RunSettings, values, "golden"))
        losses = [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
    (HERE / "first_losses.json").write_text(json.dumps(losses) + "\n")
    print(losses)


if __name__ == "__main__":
    main()
