"""The templates of the mask matrix: trl's, those that mistral-common generates, known families and adversarial ones."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import trl
from mistral_common.integrations.chat_templates.chat_templates import generate_chat_template
from mistral_common.tokens.tokenizers.base import TokenizerVersion

from tests.support.chat_templates.adversarial_templates import adversarial_templates
from tests.support.chat_templates.edges import edge_templates
from tests.support.chat_templates.families import families
from tests.support.chat_templates.families_a_to_f import families_a_to_f
from tests.support.chat_templates.families_a_to_f_2 import families_a_to_f_2
from tests.support.chat_templates.families_g_to_m import families_g_to_m
from tests.support.chat_templates.families_g_to_m_2 import families_g_to_m_2
from tests.support.chat_templates.families_g_to_m_3 import families_g_to_m_3
from tests.support.chat_templates.families_g_to_m_4 import families_g_to_m_4
from tests.support.chat_templates.families_n_to_z import families_n_to_z
from tests.support.chat_templates.families_n_to_z_2 import families_n_to_z_2
from tests.support.chat_templates.families_n_to_z_3 import families_n_to_z_3
from tests.support.chat_templates.other_families import other_families
from tests.support.chat_templates.shapes import EVERY_ROLE, WIDE, Case

TRL_TEMPLATES = Path(trl.__file__).parent / "chat_templates"
_TRL_VOCABULARIES = {
    "llama3": "llama 3",
    "gemma": "mistral v3",
    "phi3": "mistral v1",
    "deepseek": "llama 3",
    "gptoss": "tekken",
    "cohere": "tekken",
    "llava": "mistral v2",
    "idefics3": "llama 3",
    "smolvlm": "qwen",
    "lfm2": "llama 3",
    "glm4moe": "qwen",
    "nemotron": "tekken",
    "muse": "tekken",
    "diffusion": "mistral v3",
}
_TRL_EOS = {
    "gemma": "<eos>",
    "phi3": "<|endoftext|>",
    "llama3": "<|eot_id|>",
    "gptoss": "<|return|>",
    "deepseek": f"<{WIDE}end▁of▁sentence{WIDE}>",
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "llava": "</s>",
    "idefics3": "<end_of_utterance>",
    "smolvlm": "<end_of_utterance>",
    "lfm2": "<|im_end|>",
    "glm4moe": "<|endoftext|>",
    "nemotron": "<|im_end|>",
    "diffusion": "<eos>",
}
_TRL_STOPS = {
    "gemma": ("<end_of_turn>", "<turn|>"),
    "diffusion": ("<turn|>",),
    "phi3": ("<|end|>",),
    "gptoss": ("<|call|>",),
    "glm4moe": ("<|user|>", "<|observation|>"),
    "llama3_1": ("<|eom_id|>",),
}


def _shipped() -> dict[str, Case]:
    cases = {}
    for path in sorted(TRL_TEMPLATES.glob("*.jinja")):
        name = path.stem

        def pick(table: dict[str, Any], name: str = name) -> Any:
            return next(
                (value for key, value in sorted(table.items(), reverse=True) if name.startswith(key)),
                None,
            )

        pictures = name.removesuffix("_training") in {"smolvlm", "idefics3", "llava_next"}
        cases[f"trl:{name}"] = Case(
            path.read_text(encoding="utf-8"),
            f"trl {name}",
            pick(_TRL_VOCABULARIES) or "qwen",
            eos=pick(_TRL_EOS),
            bos="<bos>" if name.startswith(("gemma", "diffusion")) else None,
            stops=pick(_TRL_STOPS) or (),
            strips=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>") if name.startswith("phi3") else (),
            parts=EVERY_ROLE if pictures else frozenset(),
        )
    for name in ("qwen3", "qwen3_5_think", "qwen3_5_nothink", "qwen3_6"):
        for thinking in (True, False):
            cases[f"trl:{name}:thinking={thinking}"] = Case(
                (TRL_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"),
                f"trl {name}",
                "qwen",
                arguments={"enable_thinking": thinking},
            )
    return cases


def _mistral_common() -> dict[str, Case]:
    """Return the templates that mistral-common generates, with its vocabularies."""
    shapes: dict[str, tuple[str, bool, dict[str, Any]]] = {
        "v1": ("mistral v1", True, {}),
        "v2": ("mistral v2", True, {}),
        "v3": ("mistral v3", True, {}),
        "v7": ("mistral v3", True, {}),
        "v3:tekken": ("tekken", False, {}),
        "v7:tekken": ("tekken", False, {}),
        "v11": ("tekken", False, {}),
        "v11:plain_thinking": ("tekken", False, {"plain_thinking_support": True}),
        "v13": ("tekken", False, {}),
        "v13:thinking": ("tekken", False, {"thinking_support": True}),
        "v7:images": ("tekken", False, {"image_support": True}),
    }
    cases = {}
    for name, (vocabulary, spm, changes) in shapes.items():
        settings: dict[str, Any] = {
            "spm": spm,
            "tokenizer_version": TokenizerVersion(name.partition(":")[0]),
            "image_support": False,
            "audio_support": False,
            "thinking_support": False,
            "default_system_prompt": None,
            "plain_thinking_support": False,
            "use_special_token_variables": not changes,
            "model_settings_fields": None,
            "reasoning_effort_values": None,
            "reasoning_effort_default": None,
            **changes,
        }
        tokens = ("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
                  "[TOOL_CALLS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]", "[ARGS]", "[CALL_ID]",
                  "[THINK]", "[/THINK]", "[IMG]")  # fmt: skip
        source = generate_chat_template(**settings)
        cases[f"mistral-common:{name}"] = Case(
            source,
            f"mistral-common {name}",
            vocabulary,
            special=tuple(
                token
                for token in tokens
                if vocabulary not in {"mistral v1", "mistral v2"} and token in source
            ),
        )
    return cases


@cache
def cases() -> dict[str, Case]:
    """Return every template of the matrix by name."""
    return {
        **families(),
        **other_families(),
        **published_families(),
        **adversarial_templates(),
        **edge_templates(),
        **_mistral_common(),
        **_shipped(),
    }


@cache
def published_families() -> dict[str, Case]:
    """Return the templates of further public families, each typed after its shape, with the text that is right."""
    parts = (
        families_a_to_f(),
        families_a_to_f_2(),
        families_g_to_m(),
        families_g_to_m_2(),
        families_g_to_m_3(),
        families_g_to_m_4(),
        families_n_to_z(),
        families_n_to_z_2(),
        families_n_to_z_3(),
    )
    found = {name: case for part in parts for name, case in part.items()}
    if len(found) != sum(map(len, parts)):
        raise AssertionError("each family must have its own name")
    return found
