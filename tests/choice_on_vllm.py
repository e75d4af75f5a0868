"""Run as a program: samples through our engine and through lm-eval's own `loglikelihood` on the same loaded model."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import sys
from pathlib import Path


def way(choices, limits):
    """Which way a document's choices are asked, told by the requests."""
    from bfpo_bench.harness.choice import plan

    questions = plan(choices, limits)
    if any(question.fresh for question in questions):
        return "whole"
    return "read" if any(question.start for question in questions) else "named"


def main() -> None:
    from lm_eval.api.instance import Instance

    from bfpo_bench.harness import vllm_choice
    from bfpo_bench.harness.choice import encode, missing
    from bfpo_bench.harness.vllm import VLLMEngine

    again = []

    def counted(choices, known):
        questions = missing(choices, known)
        again.extend(questions)
        return questions

    vllm_choice.missing = counted
    spec, cases, compare = pickle.loads(Path(sys.argv[1]).read_bytes())
    engine = VLLMEngine(spec)
    chooser, lm = engine._chooser, engine._lm
    outputs = {output.sample_id: output for outputs in engine.answer(cases) for output in outputs}
    result = {"info": dict(engine.info), "ours": {id_: dataclasses.asdict(output) for id_, output in outputs.items()}}
    result["again"] = len(again)
    tokens = {case.id: encode(case.choices, chooser._tokenise, lm.prefix_token_id) for case in cases}
    result["ways"] = {id_: way(choices, chooser._limits) for id_, choices in tokens.items()}
    result["contexts"] = {id_: [len(choice.context) for choice in choices] for id_, choices in tokens.items()}
    if compare:
        pairs = [(case.id, pair) for case in cases for pair in case.choices]
        theirs = lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for _, pair in pairs], disable_tqdm=True)
        result["theirs"] = {case.id: [] for case in cases}
        for (id_, _), answer in zip(pairs, theirs, strict=True):
            result["theirs"][id_].append(answer)
    engine.close()
    Path(sys.argv[2]).write_text(json.dumps(result))
    # Threads that vLLM leaves behind can abort the interpreter as it ends ("terminate called without an active
    # exception"), after all that is tested here.
    os._exit(0)


if __name__ == "__main__":
    main()
