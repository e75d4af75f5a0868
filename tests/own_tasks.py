"""Small lm-eval tasks of every shape that prompts take, written into a folder, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

ROWS = [
    {"question": f"What is {n} and {n}?", "options": [str(2 * n), str(2 * n + 1), "none"], "right": n % 3}
    for n in range(1, 9)
]
BLANKS = [
    {"first": f"The {n} cat", "second": f"The {n} dog", "end": "sat down.", "right": str(n % 2)} for n in range(1, 5)
]
TURNS = [{"turns": ["Name a colour.", "Name another one.", "Which is brighter?"]}, {"turns": ["Say hello."]}]

CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}\nAnswer:",
    "doc_to_choice": "{{options}}",
    "doc_to_target": "{{right}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
GENERATE: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{options[right]}}",
    "generation_kwargs": {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
SHAPES: dict[str, dict[str, Any]] = {
    "own_choice": CHOICE,
    "own_described": CHOICE | {"description": "Sums, and nothing else.", "num_fewshot": 2, "fewshot_split": "test"},
    "own_spaced": CHOICE | {"description": "Sums:\n\n", "fewshot_delimiter": "\n"},
    "own_prefixed": CHOICE | {"gen_prefix": "The sum is"},
    "own_blank": CHOICE
    | {
        "doc_to_text": "{{right | int}}",
        "doc_to_choice": "{{[first, second]}}",
        "doc_to_target": "{{end}}",
        "description": "Which goes on?",
    },
    "own_generate": GENERATE,
    "own_taught": GENERATE | {"description": "Be brief.", "num_fewshot": 1, "fewshot_split": "test"},
    "own_turns": GENERATE | {"doc_to_text": "{{turns[0]}}", "doc_to_target": ""},
}
CHOICES = ("own_blank", "own_choice", "own_described", "own_prefixed", "own_spaced")
GENERATED = ("own_generate", "own_taught")


def write_tasks(folder: Path) -> Path:
    """A folder for `--include-path`."""
    for name, shape in SHAPES.items():
        rows = {"own_blank": BLANKS, "own_turns": TURNS}.get(name, ROWS)
        data = folder / f"{name}.jsonl"
        data.parent.mkdir(parents=True, exist_ok=True)
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        is_choice = shape["output_type"] == "multiple_choice"
        bfpo: dict[str, Any] = {
            "axis": "capability" if is_choice else "harmlessness",
            "metric": "acc" if is_choice else "harmless",
            "source": "tests",
            "licence": "CC0-1.0",
        }
        bfpo |= {} if is_choice else {"judge": "keyword"}
        bfpo |= {"turns_key": "turns"} if name == "own_turns" else {}
        config = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            **shape,
            "metadata": {"version": 1.0, "bfpo": bfpo},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return folder


HUB_TASK = """
task: {name}
tag: [bfpo_sums]
dataset_path: {repo}
dataset_name: {config}
dataset_kwargs: {{revision: {revision}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}]
metadata:
  version: 1.0
  bfpo:
    axis: capability
    metric: acc
    source: {repo}
    revision: {revision}
    licence: MIT
    n: {n}
    columns: [{columns}]
    files: {files}
    gated: {gated}
"""


def write_hub_task(folder, name, repo="own/sums", config="even", *, revision="main", files="[]", gated="null", n=6):
    """A choice task that reads a hub data set, written into a folder, which is returned."""
    folder.mkdir(exist_ok=True)
    columns = "question, choices, answer"
    text = HUB_TASK.format(
        name=name, repo=repo, config=config, revision=revision, columns=columns, files=files, gated=gated, n=n
    )
    (folder / f"{name}.yaml").write_text(text)
    return folder
