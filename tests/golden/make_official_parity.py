"""Write `official/`: results of the official code for one case of each stored model: python make_official_parity.py FOLDER.

Only the vision-language model and the projector are kept, because the segmenter is three times as large.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

CASES = {
    "internvl_qwen2": "img_sq400",
    "internvl_internlm2": "img_sq700_2seg",
    "qwen2_5_vl": "img_sq400",
    "qwen3_vl": "img_odd",
}
QUANTITIES = ("prompt_ids", "answer_ids", "logits_last8", "seg_hidden", "seg_embeds")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tokenizer_cases.json")


def main() -> None:
    source, target = Path(sys.argv[1]), Path(__file__).with_name("official")
    for model, case in CASES.items():
        folder = target / model
        folder.mkdir(parents=True, exist_ok=True)
        tensors = load_file(source / model / "model.safetensors")
        half = {name: tensor for name, tensor in tensors.items() if not name.startswith("grounding_encoder.")}
        save_file(half, folder / "half.safetensors")
        stored = np.load(source / model / "expected.npz")
        np.savez_compressed(folder / "expected.npz", **{name: stored[f"{case}/{name}"] for name in QUANTITIES})
        facts = json.loads((source / model / "expected.json").read_text())[case]
        chosen = {name: facts[name] for name in ("text", "answer", "image")}
        (folder / "expected.json").write_text(json.dumps(chosen, indent=1) + "\n")
        for name in ("config.json", *TOKENIZER):
            if (source / model / name).is_file():
                shutil.copyfile(source / model / name, folder / name)


if __name__ == "__main__":
    main()
