"""Takes small random models of every language model of transformers through the trainer, and tells how far each gets.

A model that also sees or hears is a type of its own, whose text part is trained.

The stages are the trainer's own functions: inspect and quantize, adapt and train four steps, merge, and then a plain
`from_pretrained` of the merged folder (`finetune_trainer.proof.small_run`). How the memory of a type is known, is found apart.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_trainer.contract.memory_trace import TraceRequest
from finetune_trainer.contract.model_config import has_formula
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.describe import inspect_base_model
from finetune_trainer.model.packed_weight import packed_weights
from finetune_trainer.model.packing_canary import packing_obstacle
from finetune_trainer.model.small_config import small_document
from finetune_trainer.model.text_part import find_text_part
from finetune_trainer.proof.canaries import LORA, checkpointing_problem, describe_error
from finetune_trainer.proof.small_run import LENGTHS, SmallRun
from finetune_trainer.trace.command import traced
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from tests.support.memory_oracle.fake_run import plan_spec
from tests.support.repository import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

STAGES = ("prepare", "train", "merge", "load")
_STEPS = 4


@dataclass
class Journey:
    """How far a model type got: the stages that it passed, and why it did not pass the next one."""

    kind: str
    architecture: str = ""
    passed: list[str] = field(default_factory=list)
    reason: str = ""
    message: str = ""
    packing: str = ""
    size: str = ""
    experts: int = 0
    difference: float = 0.0
    effect: float = 0.0
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether it passed every stage."""
        return self.passed == list(STAGES)


_AXES: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
_PARTIAL_AXES: dict[str, Any] = {**_AXES, "partial_rotary_factor": 0.5, "mrope_section": [8, 12, 12]}
PUBLISHED: dict[str, dict[str, Any]] = {
    **{
        kind: {"text_config": {"rope_parameters": _AXES}}
        for kind in ("qwen2_vl", "qwen2_5_vl", "paddleocr_vl")
    },
    **{
        kind: {"text_config": {"rope_parameters": _PARTIAL_AXES}}
        for kind in ("glm4v", "glm46v", "glm4v_moe", "glm_ocr", "glmga")
    },
    "hunyuan_vl": {
        "text_config": {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [16, 16, 16, 16]}
        }
    },
    "dbrx": {"attn_config": {"rope_theta": 5e5, "kv_n_heads": 8}},
    "dots1": {"n_shared_experts": 2, "n_routed_experts": 128, "num_experts_per_tok": 6},
    "lfm2_moe": {"num_hidden_layers": 6, "layer_types": ["conv", "conv", "full_attention"] * 2},
    "xmod": {"default_language": "en_XX"},
}
"""Members that a type's published checkpoints have, and that its default config lacks or has as None."""


def config_of(kind: str) -> Any:
    """Return the config of a type that is made small: its default, with what published checkpoints add."""
    return AutoConfig.for_model(kind, **copy.deepcopy(PUBLISHED.get(kind, {})))


def model_types() -> list[str]:
    """Return every model type with a language model in transformers, alone or as a part, each once."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES | MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)


def travel(kind: str, folder: Path) -> Journey:
    """Take a small random model of this type through all stages in `folder`."""
    journey = Journey(kind)
    start = time.monotonic()
    run = SmallRun(folder, LORA)
    try:
        with _stage(journey, "build"):
            journey.architecture = run.build(config_of(kind))
        with _stage(journey, "prepare"):
            run.prepare()
        with _stage(journey, "train"):
            run.adapt()
            stacks = packed_weights(run.adapted).values()
            journey.experts = max(
                (stack.parameter.experts for stack in stacks if not stack.parameter.is_conv1d), default=0
            )
            journey.packing = packing_obstacle(run.adapted, max(LENGTHS)) or ""
            problem = checkpointing_problem(run)
            if problem is not None:
                raise StageError(Reason.MODEL_UNPROVABLE, problem)
            run.train(_STEPS, packed=not journey.packing)
        with _stage(journey, "merge"):
            merged = run.merge()
        with _stage(journey, "load"):
            compared = run.compare(merged)
            journey.difference, journey.effect = compared.difference, compared.effect
            if not compared.equal:
                raise ValueError(
                    f"the merged model must compute the trained logits, found other logits; {compared}"
                )
    except _StoppedError:
        if journey.reason == "NotBuilt":
            _inspect(journey, folder / "config")
    journey.seconds = time.monotonic() - start
    return journey


def _inspect(journey: Journey, folder: Path) -> None:
    """Let PREPARE judge the config of a type without a small model. It refuses many before it needs one."""
    try:
        config_of(journey.kind).save_pretrained(folder)
        inspect_base_model(folder)
    except StageError as error:
        # An invalid config is that of the sweep: the default one is not that of a model.
        if error.reason is Reason.UNSUPPORTED_MODEL:
            journey.reason, journey.message = error.reason.value, error.message
    except Exception as error:  # noqa: BLE001 -- some defaults are no config at all
        journey.message = describe_error(error)


class _StoppedError(Exception):
    pass


@contextmanager
def _stage(journey: Journey, name: str) -> Iterator[None]:
    try:
        yield
    except StageError as error:
        journey.reason, journey.message = error.reason.value, error.message
        raise _StoppedError from error
    except Exception as error:
        # PREPARE's trial refuses what fails after the model is quantized.
        reasons = {"build": "NotBuilt", "prepare": "InternalError"}
        journey.reason = reasons.get(name, Reason.MODEL_UNPROVABLE.value)
        journey.message = describe_error(error)
        raise _StoppedError from error
    if name in STAGES:
        journey.passed.append(name)


BEGIN, END = "<!-- models -->", "<!-- end of models -->"
PAGE = ROOT / "docs" / "models.md"


def sized_by(kind: str) -> str:
    """Return how the memory of a type is known: `formula`, `trace`, both, or `no` and the reason."""
    small = small_document(config_of(kind).to_dict())
    document = {name: value for name, value in small.items() if value is not None} | {"model_type": kind}
    training = plan_spec(TrainingPlan(64, 1, gradient_accumulation=1)).training
    request = TraceRequest(training=training, config=document, length=64)
    problem = traced(request).problem
    found = (["formula"] if has_formula(_trained(document)) else []) + (["trace"] if problem is None else [])
    return ", ".join(found) or f"no: {str(problem).replace('|', '/')[:80]}"


def _trained(document: dict[str, Any]) -> dict[str, Any]:
    """Return the config of the text part, or the config itself."""
    part = find_text_part(AutoConfig.for_model(**document))
    return document if part is None else part.config.to_dict()


def table_row(journey: Journey) -> str:
    """Return a type's line of the table in docs/models.md."""
    cells = ["yes" if stage in journey.passed else "no" for stage in STAGES]
    # What comes after the first stage that fails was not tried.
    for place in range(cells.index("no") + 1 if "no" in cells else len(cells), len(cells)):
        cells[place] = ""
    cells.insert(1, journey.size)
    notes = []
    if journey.experts:
        notes.append("experts in 4 bits")
    if journey.packing:
        notes.append("rows are padded, not packed")
    if journey.reason:
        notes.append(f"`{journey.reason}`: {_short(journey)}")
    return f"| `{journey.kind}` | {journey.architecture} | {' | '.join(cells)} | {'; '.join(notes)} |"


def table(rows: Mapping[str, str]) -> str:
    """Return the table of lines by type, and a line with its count."""
    complete = sum(row.count("| yes ") == len(STAGES) for row in rows.values())
    head = [
        "| type | architecture | prepare | size | train | merge | load | notes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    count = f"{complete} of {len(rows)} types pass every stage."
    return "\n".join([BEGIN, count, "", *head, *(rows[kind] for kind in sorted(rows)), END])


def written_rows() -> dict[str, str]:
    """Return the lines of the table in docs/models.md by type."""
    lines = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].splitlines()
    return {line.split("`")[1]: line for line in lines if line.startswith("| `")}


def written_size(row: str) -> str:
    """Return the cell of a line that says how the memory is known."""
    cells = _cells(row)
    return cells[_SIZE].strip() if len(cells) == _COLUMNS else ""


def write_sizes(kinds: Iterable[str]) -> None:
    """Find how the memory of these types is known, and write it into the table of docs/models.md.

    A type that PREPARE refuses has no size.
    """
    rows = written_rows()
    for kind in kinds:
        cells = _cells(rows[kind])
        if len(cells) < _COLUMNS:
            cells.insert(_SIZE, "")
        size = sized_by(kind) if cells[_SIZE - 1].strip() == "yes" else ""
        cells[_SIZE] = f" {size} "
        rows[kind] = "|".join(cells)
        _write_rows(rows)


_COLUMNS = 10
"""Parts of a line between its bars, those before the first and after the last one included."""
_SIZE = 4


def _cells(row: str) -> list[str]:
    return re.split(r"(?<!\\)\|", row)


def write_page(journeys: Iterable[Journey]) -> None:
    """Replace the lines of these types in the table of docs/models.md; lines of other types and sizes stay."""
    rows = written_rows()
    for journey in journeys:
        journey.size = written_size(rows.get(journey.kind, ""))
        rows[journey.kind] = table_row(journey)
    _write_rows(rows)


def _write_rows(rows: Mapping[str, str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(before + table(rows) + rest.partition(END)[2], encoding="utf-8")


def _short(journey: Journey) -> str:
    """Return what was found, without numbers that differ between machines."""
    if journey.reason == "NotBuilt":
        return "transformers builds no small model of it from its default config"
    found = journey.message.partition(", found ")[2].partition("; ")[0] or journey.message
    return re.sub(r"\d+\.\d+\S*", "#", found).replace("|", "\\|")[:120]


def main() -> None:
    """Print a line of JSON for each type; arguments are types, or none for all. `--write` writes docs/models.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--output", type=Path, help="file of results, to which lines are added")
    parser.add_argument(
        "--write", action="store_true", help="write the table of docs/models.md from --output"
    )
    parser.add_argument("--sizes", action="store_true", help="write how the memory of the types is known")
    options = parser.parse_args()
    if options.sizes:
        write_sizes(options.kinds or [kind for kind, row in written_rows().items() if not written_size(row)])
        return
    known = _results(options.output)
    if options.write:
        write_page(known.values())
        return
    with options.output.open("a") if options.output else nullcontext(sys.stdout) as out:
        for kind in options.kinds or [kind for kind in model_types() if kind not in known]:
            with tempfile.TemporaryDirectory() as folder:
                print(json.dumps(asdict(travel(kind, Path(folder)))), file=out, flush=True)


def _results(path: Path | None) -> dict[str, Journey]:
    if path is None or not path.is_file():
        return {}
    return {
        found.kind: found for found in (Journey(**json.loads(line)) for line in path.read_text().splitlines())
    }


if __name__ == "__main__":
    main()
