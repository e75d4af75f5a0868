"""The recorded answers of AlpacaEval 2.0 (models' and its annotator's) as runs and as a server; read from shared data.

Knows the folder's files, nothing of judges: `annotator` looks at what a request shows and answers as was recorded.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bfpo_bench.registry import load_registry
from bfpo_bench.store import RunStore
from bfpo_bench.types import Output, Sample, sample_id

TASK = "bfpo_alpaca_eval"
OWN_TEMPLATE = (
    "## Instruction\n{request}\n\n## Answer m\n{first}\n\n## Answer M\n{second}\n\n## Which is better?\nSay m or M."
)
OWN_JUDGE = {
    "name": "own_pairwise",
    "kind": "pairwise",
    "about": "of the tests",
    "source": "tests",
    "licence": "CC0-1.0",
    "model": "recorded",
    "axes": ["helpfulness"],
    "rubrics": ["pairwise"],
    "texts": {"user": OWN_TEMPLATE},
    "turns": [{"role": "user", "text": "user"}],
    "settings": {"temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": 5},
}


def json_lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


class Recorded:
    """One model's answers, and what the annotator said of each."""

    def __init__(self, folder: Path, model: str) -> None:
        self.folder = folder
        self.instructions = json_lines(folder / "instructions.jsonl.gz")
        self.outputs: Mapping[int, str] = {
            row["id"]: row["output"] for row in json_lines(folder / "outputs" / f"{model}.jsonl.gz")
        }
        annotations = folder / "annotations" / "weighted_alpaca_eval_gpt4_turbo.jsonl.gz"
        self.annotations = {row["id"]: row for row in json_lines(annotations) if row["model"] == model}
        with (folder / "expected_leaderboard.csv").open(newline="") as rows:
            self.published = next(row for row in csv.DictReader(rows) if row["model"] == model)

    def build_run(self, folder: Path) -> Path:
        """A run folder of the task with the model's recorded answers, not judged."""
        spec = load_registry([])[TASK]
        samples, outputs = [], []
        for row in self.instructions:
            prompt, n = row["instruction"], row["id"]
            sample = Sample(
                id=sample_id(TASK, spec.version, prompt, (), n),
                task=TASK,
                index=n,
                prompt=prompt,
                meta={"output": row["baseline_output"]},
            )
            samples.append(sample)
            if n in self.outputs:
                outputs.append(Output(sample_id=sample.id, text=self.outputs[n], finish_reason="stop"))
        task = {name: value for name, value in asdict(spec).items() if name != "yaml_path"}
        model = {"name": "recorded", "engine": "hf", "identity": "sha256:recorded", "path": "recorded"}
        identity = {"seed": 0, "model": model, "suite": None, "limit": None, "tasks": {TASK: task}}
        with RunStore.create_or_resume(folder, {"schema": 2, "identity": identity}) as store:
            store.add_samples(samples)
            store.add_outputs(outputs)
        return folder

    def annotator(self, template: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """Answers a request whose last message is `template` filled as was recorded; any other gets no verdict."""
        known = {}
        for row in self.instructions:
            if row["id"] in self.outputs:
                pair = [self.outputs[row["id"]], row["baseline_output"]]
                first, second = pair if row["model_first"] else reversed(pair)
                fields = {"request": row["instruction"], "first": first, "second": second}
                parts = re.split(r"\{(request|first|second)\}", template)
                text = "".join(fields[part] if i % 2 else part for i, part in enumerate(parts))
                known[text] = self.annotations[row["id"]]

        def answer(payload: Mapping[str, Any]) -> dict[str, Any]:
            found = known.get(payload["messages"][-1]["content"])
            if found is None:
                return {"finish_reason": "stop", "message": {"role": "assistant", "content": "not recorded"}}
            told = {token: found[f"lp_{token}"] for token in "mM"}
            return said({token: value for token, value in told.items() if value is not None})

        return answer


def said(logprobs: Mapping[str, float]) -> dict[str, Any]:
    """A reply of one token with its candidates' log-probabilities, as OpenAI's API gives it."""
    best = max(logprobs, key=logprobs.__getitem__)
    top = [{"token": token, "logprob": value, "bytes": None} for token, value in logprobs.items()]
    content = [{"token": best, "logprob": logprobs[best], "bytes": None, "top_logprobs": top}]
    message = {"role": "assistant", "content": best}
    return {"finish_reason": "length", "message": message, "logprobs": {"content": content, "refusal": None}}
