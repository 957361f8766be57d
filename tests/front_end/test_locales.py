"""The texts of the nodes in other languages: complete, true to the English ones, and served by the host.

English is what the schemas say, written down for translators in locales/en. Front ends look texts up by node, name of
the input and number of the output; an output that is called like its type they translate themselves. Choices in lists
are not translated, so a tooltip names a choice as it stands in the list.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from demo.server import PACK, REPO
from host_routes import served

LOCALES = REPO / "locales"
SCRIPTS = {
    "zh": "CJK UNIFIED",
    "zh-TW": "CJK UNIFIED",
    "ja": "HIRAGANA|KATAKANA",
    "ko": "HANGUL",
    "ru": "CYRILLIC",
    "fr": "LATIN",
    "es": "LATIN",
    "de": "LATIN",
}
"""What the letters of a language are called in Unicode."""

LITERALS = re.compile(
    r"base \+ scale × \(tuned − base\)|tuned − base|models/\w+|output/\w+|\w+\.(?:safetensors|json|csv|png)"
    r"|pip install [\w-]+|\.(?:txt|csv|jsonl)\b|\b(?:CFG|LoRA|VAE|PEFT|PAG|SLG|RescaleCFG|diffusers|kohya|alpha|euler"
    r"|SD3\.5|SD3|Flux|UTF-8|ImageReFL|Flow-GRPO|CLIP|DINO|AlexNet|Hugging Face|ComfyUI|vendi_|jpeg_"
    r"|interval guidance)",
    re.ASCII,
)
"""What is the same in every language: formulas, paths, files, names."""

SAME_EVERYWHERE = {
    "RLG Flow-GRPO",
    "RLG DiffusionNFT",
    "RLG DDPO",
    "RLG B²-DiffuRL",
    "RLG ReFL",
    "RLG SRPO",
    "RLG KSampler",
    "RLG Guider",
    "RLG Keyframes",
    "RLG Sweep",
    "RLG Score",
    "Flow-GRPO SDE",
}
"""Node names that a language may keep."""


def _english(rlg: SimpleNamespace) -> dict[str, Any]:
    """What nodeDefs.json of English has to be."""
    texts = {}
    for node_id, node in rlg.nodes.items():
        if node_id.startswith("RLG"):
            schema = node.GET_SCHEMA()
            outputs = {}
            for index, output in enumerate(schema.outputs):
                name = {} if output.display_name == output.get_io_type() else {"name": output.display_name}
                outputs[str(index)] = name | {"tooltip": output.tooltip}
            texts[node_id] = {
                "display_name": schema.display_name,
                "description": schema.description,
                "inputs": {i.id: {"name": i.id, "tooltip": i.tooltip} for i in schema.inputs},
                "outputs": outputs,
            }
    return texts


def _read(language: str, name: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def _texts(tree: dict[str, Any], *path: str) -> Iterator[tuple[tuple[str, ...], str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _texts(value, *path, key)
        else:
            yield (*path, key), value


def _pairs(language: str) -> list[tuple[str, str, str]]:
    """(where, English, translation) of everything in nodeDefs.json."""
    english, translated = (dict(_texts(_read(each, "nodeDefs"))) for each in ("en", language))
    return [(".".join(path), text, translated[path]) for path, text in english.items()]


def _sentences(language: str) -> list[tuple[str, str, str]]:
    """Those that are more than the name of an input or output."""
    return [pair for pair in _pairs(language) if pair[0].endswith((".tooltip", ".description"))]


def test_english_is_what_the_schemas_say(rlg: SimpleNamespace, tmp_path: Path) -> None:
    wanted = tmp_path / "nodeDefs.json"
    wanted.write_text(json.dumps(_english(rlg), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    kept = (LOCALES / "en/nodeDefs.json").read_text(encoding="utf-8")
    assert kept == wanted.read_text(encoding="utf-8"), f"copy {wanted} to locales/en, and translate what is new in it"


def test_every_output_has_a_name_and_a_tooltip(rlg: SimpleNamespace) -> None:
    for node_id, node in rlg.nodes.items():
        if node_id.startswith("RLG"):
            assert all(output.display_name and output.tooltip for output in node.GET_SCHEMA().outputs), node_id


def test_no_language_is_left_untested() -> None:
    assert {path.name for path in LOCALES.iterdir()} == {"en", *SCRIPTS}
    assert {path.name for path in LOCALES.glob("*/*")} == {"main.json", "nodeDefs.json"}


@pytest.mark.parametrize("language", SCRIPTS)
def test_a_language_has_every_text_and_none_that_is_gone(language: str) -> None:
    for name in ("nodeDefs", "main"):
        english, translated = (dict(_texts(_read(each, name))) for each in ("en", language))
        assert translated.keys() == english.keys()
        for path, text in translated.items():
            assert text and text == text.strip(), path
            assert text == unicodedata.normalize("NFC", text) and text.isprintable(), path
            assert not set(text) & set("{}@|"), f"{path}: front ends read these signs as commands"


@pytest.mark.parametrize("language", SCRIPTS)
def test_every_sentence_is_in_the_language(language: str) -> None:
    for where, english, text in _pairs(language):
        if where.endswith(".display_name"):
            assert text != english or english in SAME_EVERYWHERE, where
        elif not where.endswith(".name"):
            assert text != english, where
            assert any(re.match(SCRIPTS[language], unicodedata.name(letter, "")) for letter in text), where


@pytest.mark.parametrize("language", SCRIPTS)
def test_numbers_formulas_paths_and_names_are_those_of_the_english_text(language: str) -> None:
    number = re.compile(r"-?\d+(?:\.\d+)?")
    for where, english, text in _sentences(language):
        for pattern in (number, LITERALS):
            missing = Counter(pattern.findall(english)) - Counter(pattern.findall(text))
            assert not missing, f"{where}: {missing}"


@pytest.mark.parametrize("language", SCRIPTS)
def test_a_tooltip_names_the_choices_as_the_list_does(rlg: SimpleNamespace, language: str) -> None:
    translated = _read(language, "nodeDefs")
    for node_id in translated:
        for each in rlg.nodes[node_id].GET_SCHEMA().inputs:
            if each.id.startswith("lora_"):
                continue  # files of this machine, whose names may be any word
            for choice in getattr(each, "options", None) or ():
                word = re.compile(rf"(?<![\w-]){re.escape(str(choice))}(?![\w-])", re.ASCII)
                if word.search(each.tooltip):
                    assert word.search(translated[node_id]["inputs"][each.id]["tooltip"]), (
                        f"{node_id}.{each.id}: {choice}"
                    )


@pytest.mark.parametrize("language", SCRIPTS)
def test_a_node_is_called_the_same_wherever_it_is_spoken_of(language: str) -> None:
    """And no two nodes are called the same."""
    names = {english: text for where, english, text in _pairs(language) if where.endswith(".display_name")}
    assert len(set(names.values())) == len(names)
    short = {re.split(r" ?[(（]", english)[0]: re.split(r" ?[(（]", text)[0] for english, text in names.items()}
    for where, english, text in _sentences(language):
        for name, translated in short.items():
            if re.search(rf"\b{re.escape(name)}\b", english):
                assert translated in text, f"{where}: {translated}"


@pytest.mark.parametrize("language", SCRIPTS)
def test_what_is_said_alike_in_english_is_said_alike(language: str) -> None:
    said: dict[str, str] = {}
    for where, english, text in _pairs(language):
        assert said.setdefault(english, text) == text, where


def test_every_category_has_a_name(rlg: SimpleNamespace) -> None:
    parts = {
        part for node_id, node in rlg.nodes.items() if node_id.startswith("RLG") for part in node.CATEGORY.split("/")
    }
    assert _read("en", "main")["nodeCategories"] == {part: part for part in sorted(parts - {"RLG"})}


def test_the_template_browser_calls_the_pack_by_its_name() -> None:
    """Its folder is the repository's or the registry's name, and would stand there itself."""
    project = (REPO / "pyproject.toml").read_text(encoding="utf-8")
    name = re.search(r'^DisplayName = "(.+)"$', project, re.MULTILINE)[1]
    folders = ["comfyui-rlg", re.search(r'^name = "(.+)"$', project, re.MULTILINE)[1]]
    for language in ("en", *SCRIPTS):
        assert _read(language, "main")["templateWorkflows"]["category"] == dict.fromkeys(folders, name)


def test_the_host_serves_all_languages(rlg: SimpleNamespace) -> None:
    (answer,) = served(PACK, "/i18n")
    for language, texts in json.loads(answer).items():
        assert texts == _read(language, "main") | {"nodeDefs": _read(language, "nodeDefs")}
    assert json.loads(answer).keys() == {"en", *SCRIPTS}
