"""Write `official_keys.json.gz` from the lists of official tensor names and shapes: python make_official_keys.py FOLDER."""

import gzip
import json
import sys
from pathlib import Path

LISTS = {
    "Sa2VA-1B": "sa2va_1b_internvl2_5_qwen2_5_0_5b",
    "Sa2VA-4B": "sa2va_4b_internvl2_5_qwen2_5_3b",
    "Sa2VA-8B": "sa2va_8b_internvl2_5_internlm2_5_7b",
    "Sa2VA-26B": "sa2va_26b_internvl2_5_internlm2_5_20b",
    "Sa2VA-InternVL3-2B": "sa2va_internvl3_2b",
    "Sa2VA-InternVL3-8B": "sa2va_internvl3_8b",
    "Sa2VA-InternVL3-14B": "sa2va_internvl3_14b",
    "Sa2VA-Qwen2_5-VL-3B": "sa2va_qwen2_5_vl_3b",
    "Sa2VA-Qwen2_5-VL-7B": "sa2va_qwen2_5_vl_7b",
    "Sa2VA-Qwen3-VL-4B": "sa2va_qwen3_vl_4b",
}


def main() -> None:
    folder = Path(sys.argv[1])
    lists = {
        name: {key: shape for key, (shape, _) in json.loads((folder / f"{file}.json").read_text()).items()}
        for name, file in LISTS.items()
    }
    text = json.dumps(lists, separators=(",", ":")).encode()
    out = Path(__file__).with_name("official_keys.json.gz")
    out.write_bytes(gzip.compress(text, mtime=0))
    print(f"{out}: {out.stat().st_size} bytes, {sum(map(len, lists.values()))} keys")


if __name__ == "__main__":
    main()
