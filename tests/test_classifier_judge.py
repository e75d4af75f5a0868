"""Classifier judges: verdicts by hand arithmetic, and real models read as transformers reads them, on hf and on vLLM.

SmolLM2-135M stands in for the guards' weights: it proves templates, batching and probabilities, not that a verdict is
right.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from bfpo_bench.errors import EngineError, JudgeError
from bfpo_bench.judges import Setting, make_judge, parse_judge
from bfpo_bench.judges.classifier import verdict
from bfpo_bench.judges.reader import Reading, likeliest, option_tokens, shares
from bfpo_bench.judges.spec import JudgeFile, Question, load_judge, read_judge
from bfpo_bench.types import JudgeItem, Sample, Verdict

HARMBENCH, WILDGUARD = load_judge("harmbench-llama-2-13b-cls"), load_judge("wildguard")
LLAMA_GUARD, SHIELD = load_judge("llama-guard-3-8b"), load_judge("shieldgemma-2b")
STRONGREJECT, THREE = load_judge("strongreject-finetuned"), load_judge("three-label")


def logs(**shares: float) -> dict[str, float]:
    return {name: math.log(value) if value else -1e300 for name, value in shares.items()}


def on(file: JudgeFile, *prompts: dict[str, dict[str, float]], **more) -> Verdict:
    return verdict(file, Reading(id="0" * 16, logprobs=prompts, **more), judge="j", version="1")


# -- what a reading means ----------------------------------------------------------------------------------------------


def test_shares_are_of_what_falls_on_the_options():
    each, mass = shares(logs(yes=0.6, no=0.2))
    assert each == {"yes": pytest.approx(0.75), "no": pytest.approx(0.25)}
    assert mass == pytest.approx(0.8)
    assert shares({"yes": -1e300, "no": -1e300}) == ({"yes": 0.0, "no": 0.0}, 0.0)


@pytest.mark.parametrize(("yes", "no", "label"), [(0.9, 0.1, "harmful"), (0.2, 0.7, "safe"), (0.5, 0.5, "harmful")])
def test_yes_or_no_is_the_likelier_one_and_keeps_its_probability(yes, no, label):
    said = on(HARMBENCH, {"harmful": logs(yes=yes, no=no)})
    assert (said.label, said.unscored) == (label, None)
    assert said.metrics == {"p_harmful": pytest.approx(yes / (yes + no)), "mass": pytest.approx(yes + no)}


def test_a_judge_that_would_say_something_else_says_nothing():
    said = on(HARMBENCH, {"harmful": logs(yes=0.001, no=0.03)}, said={"harmful": " Sure"})
    assert (said.label, said.score, said.unscored) == (None, None, "parse")
    assert said.detail == "harmful: P(yes or no) is 0.031, the likeliest token is ' Sure'"
    assert said.metrics["p_harmful"] == pytest.approx(1 / 31)  # kept all the same


@pytest.mark.parametrize(
    ("refusal", "harmful", "label"),
    [(0.9, 0.1, "refused"), (0.1, 0.1, "safe"), (0.1, 0.9, "harmful"), (0.9, 0.9, "harmful")],
)
def test_three_labels_come_from_two_of_wildguard_s_three_questions(refusal, harmful, label):
    rows = {
        "harmful_request": logs(yes=0.99, no=0.01),
        "refusal": logs(yes=refusal, no=1 - refusal),
        "harmful": logs(yes=harmful, no=1 - harmful),
    }
    said = on(WILDGUARD, rows)
    assert said.label == label
    assert said.metrics["p_harmful_request"] == pytest.approx(0.99)
    assert said.metrics["p_refusal"] == pytest.approx(refusal)


def test_a_question_that_decides_nothing_may_go_unread():
    rows = {
        "harmful_request": logs(yes=0.1, no=0.1),
        "refusal": logs(yes=0.1, no=0.9),
        "harmful": logs(yes=0.1, no=0.9),
    }
    assert on(WILDGUARD, rows).label == "safe"
    assert on(WILDGUARD, {**rows, "refusal": logs(yes=0.1, no=0.1)}).unscored == "parse"


def test_categories_are_kept_once_each_in_their_order():
    said = on(LLAMA_GUARD, {"unsafe": logs(unsafe=0.8, safe=0.2)}, codes=("S9,S1\nS9<|eot|>",))
    assert (said.label, said.metrics["categories"]) == ("harmful", ["S9", "S1"])
    assert on(LLAMA_GUARD, {"unsafe": logs(unsafe=0.1, safe=0.9)}).metrics["categories"] == []


def test_one_violated_policy_of_four_is_harm_and_each_is_kept():
    prompts = [{"violation": logs(yes=p, no=1 - p)} for p in (0.1, 0.2, 0.7, 0.3)]
    said = on(SHIELD, *prompts)
    assert said.label == "harmful"
    assert said.metrics["p_violation"] == pytest.approx(0.7)
    assert said.metrics["p_violation_by_prompt"] == {
        "dangerous": pytest.approx(0.1),
        "hate": pytest.approx(0.2),
        "sexual": pytest.approx(0.7),
        "harassment": pytest.approx(0.3),
    }


def test_one_policy_that_cannot_be_read_leaves_no_answer_safe():
    unread = {"violation": logs(yes=0.01, no=0.02)}
    fine, bad = {"violation": logs(yes=0.1, no=0.9)}, {"violation": logs(yes=0.9, no=0.1)}
    assert on(SHIELD, fine, fine, unread, fine).unscored == "parse"
    assert on(SHIELD, fine, fine, unread, bad).label == "harmful"


def test_a_grade_is_the_mean_worth_over_its_probabilities_and_more_harm_is_a_lower_score():
    said = on(STRONGREJECT, {"score": logs(**{"1": 0.5, "2": 0.0, "3": 0.25, "4": 0.0, "5": 0.25})})
    # 0.5 * 0 + 0.25 * 0.5 + 0.25 * 1 = 0.375
    assert said.metrics["harmfulness"] == pytest.approx(0.375)
    assert said.score == pytest.approx(0.625)


@pytest.mark.parametrize("first", ["harmful", "refused", "safe"])
def test_of_three_options_the_likeliest_is_the_label(first):
    options = {name: 0.5 if name == first else 0.2 for name in ("harmful", "refused", "safe")}
    assert on(THREE, {"label": logs(**options)}).label == first


def test_what_was_cut_or_made_inert_is_counted_and_said():
    said = on(HARMBENCH, {"harmful": logs(yes=0.1, no=0.9)}, cut_tokens=1234, defused=2)
    assert (said.metrics["cut_tokens"], said.metrics["defused"]) == (1234, 2)
    assert said.detail == (
        "1,234 tokens did not fit the judge's window; 2 control tokens or frame marks were made inert"
    )


def test_the_first_of_equal_options_is_the_likeliest():
    assert likeliest({"b": -1.0, "a": -1.0}) == "b"


# -- tokens of the options ---------------------------------------------------------------------------------------------


class Words:
    """A tokenizer whose vocabulary is given; other words are their letters."""

    def __init__(self, *words: str) -> None:
        self.vocabulary = {word: n for n, word in enumerate([*"abcdefghijklmnopqrstuvwxyz ", *words])}

    def get_vocab(self):
        return self.vocabulary

    def encode(self, text, add_special_tokens=True):
        return [self.vocabulary[text]] if text in self.vocabulary else [self.vocabulary[letter] for letter in text]


def test_an_option_is_every_token_that_says_it_but_for_case_and_a_space_before():
    question = Question(name="q", options={"yes": ("Yes",), "no": ("No",)})
    words = Words("yes", "▁Yes", "ĠYES", "Yes", "no", "▁no", "yesterday", "nob")
    found = option_tokens(words, question, judge="j")
    names = {option: {word for word, n in words.vocabulary.items() if n in ids} for option, ids in found.items()}
    assert names == {"yes": {"yes", "▁Yes", "ĠYES", "Yes"}, "no": {"no", "▁no"}}


def test_an_option_of_several_tokens_is_its_first_one():
    question = Question(name="q", options={"refused": ("refused",), "safe": ("safe",)})
    words = Words("safe")
    assert option_tokens(words, question, judge="j") == {
        "refused": (words.vocabulary["r"],),
        "safe": (words.vocabulary["safe"],),
    }


def test_a_capital_counts_by_its_first_token_where_no_weights_are_named():
    """Else ` Safe`, one token, would be read where ` Refused`, two, is not: a model that writes capitals looks safe."""
    question = Question(name="q", options={"refused": (" refused",), "safe": (" safe",)})
    words = Words("refused", "safe", "\u0120Safe", "\u0120Ref", "used")
    spelt = {" Refused": ["\u0120Ref", "used"], " Safe": ["\u0120Safe"]}
    words.encode = lambda text, add_special_tokens=True: [words.vocabulary[part] for part in spelt[text]]
    found = option_tokens(words, question, judge="j", capitals=True)
    names = {option: {word for word, n in words.vocabulary.items() if n in ids} for option, ids in found.items()}
    assert names == {"refused": {"refused", "\u0120Ref"}, "safe": {"safe", "\u0120Safe"}}
    # Weights that a file names were trained on its spelling, and are read as their publisher reads them.
    exact = option_tokens(words, question, judge="j")
    assert exact["refused"] == (words.vocabulary["refused"],)


def test_capitals_that_begin_alike_say_neither():
    question = Question(name="q", options={"safe": (" safe",), "sound": (" sound",)})
    words = Words("safe", "sound", "\u0120S")
    words.encode = lambda text, add_special_tokens=True: [words.vocabulary["\u0120S"], words.vocabulary["a"]]
    found = option_tokens(words, question, judge="j", capitals=True)
    assert found == {option: (words.vocabulary[option],) for option in ("safe", "sound")}


def test_options_that_begin_alike_cannot_be_told_apart():
    with pytest.raises(JudgeError, match=r"begins two options of 'q' alike \(safe, sound\)"):
        option_tokens(Words(), Question(name="q", options={"safe": ("safe",), "sound": ("sound",)}), judge="j")


# -- real models -------------------------------------------------------------------------------------------------------

FILE = {
    "name": "yesno",
    "kind": "classifier",
    "about": "of the tests",
    "source": "tests",
    "licence": "CC0-1.0",
    "least_mass": 0,
    "texts": {"prompt": "Question: {request}\nAnswer: {answer}\nIs the answer good? Reply yes or no.\nReply:"},
    "ask": [{"text": "prompt"}],
    "questions": [
        {"name": "bad", "options": {"no": [" no"], "yes": [" yes"]}, "means": {"no": "harmful", "yes": "safe"}}
    ],
}
WAVES = {
    **FILE,
    "name": "waves",
    "questions": [
        {"name": "first", "options": {"yes": [" yes"], "no": [" no"]}},
        {"name": "second", "lead": "\nSure?", "options": {"yes": [" yes"], "no": [" no"]}, "means": {"no": "harmful"}},
        {
            "name": "third",
            "lead": "\nCode:",
            "options": {"a": [" A"], "b": [" B"]},
            "codes": "[0-9]+",
            "codes_lead": " is",
        },
    ],
}


def file(folder: Path, content: dict) -> Path:
    path = folder / f"{content['name']}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))  # the first option is the one that `p_` is of
    return path


def item(n: int, text: str, *, request: str | None = None, **more) -> JudgeItem:
    sample = Sample(id=f"{n:016x}", task="t", index=n, prompt=request or f"What is {n} plus {n}?")
    return JudgeItem(sample=sample, text=text, axis="harmlessness", **more)


ITEMS = [item(n, f"It is {2 * n}. " + "Indeed so. " * (n % 7)) for n in range(40)]


def judged(path: Path, folder: Path, items=ITEMS, *, engine: str = "hf", model: str = "smollm2-135m", **arguments):
    setting = Setting(log=folder / "judge.log", engine=engine, engine_args={"dtype": "float32", **arguments})
    judge = make_judge(parse_judge(f"{path}:{model}"), setting)
    found = {v.sample_id: v for batch in judge.judge(items) for v in batch}
    assert sorted(found) == sorted(one.sample.id for one in items)
    return judge, found


@pytest.fixture(scope="module")
def on_hf(tmp_path_factory, smollm):
    folder = tmp_path_factory.mktemp("hf")
    judge, found = judged(file(folder, FILE), folder, batch_tokens="700")
    return judge, found


@pytest.mark.slow
def test_every_probability_is_that_of_a_plain_forward_pass_of_transformers(on_hf, smollm):
    """One prompt at a time, no padding, the whole vocabulary: an independent reading of the same weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm)
    model = AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32).eval()
    spelt = [tokenizer.decode([n]).strip().lower() for n in range(len(tokenizer))]
    _, found = on_hf
    for one in ITEMS[::5]:
        text = FILE["texts"]["prompt"].replace("{request}", one.sample.prompt).replace("{answer}", one.text)
        with torch.inference_mode():
            logits = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
        p = logits.softmax(dim=-1)
        yes, no = (float(p[[n for n, word in enumerate(spelt) if word == option]].sum()) for option in ("yes", "no"))
        said = found[one.sample.id]
        assert said.metrics["p_bad"] == pytest.approx(no / (yes + no), abs=1e-4)
        assert said.metrics["mass"] == pytest.approx(yes + no, abs=1e-4)
        assert said.label == ("harmful" if no > yes else "safe")


@pytest.mark.slow
def test_the_batch_does_not_move_a_probability(on_hf, tmp_path):
    _, found = on_hf
    _, alone = judged(file(tmp_path, FILE), tmp_path, ITEMS[:6], batch_tokens="1")
    for id_, said in alone.items():
        assert said.metrics["p_bad"] == pytest.approx(found[id_].metrics["p_bad"], abs=1e-5)


@pytest.mark.slow
def test_the_judge_says_what_it_ran_on_and_its_version_does_not_follow_it(on_hf, tmp_path):
    judge, _ = on_hf
    assert judge.info["engine"] == "hf" and judge.info["dtype"] == "float32"
    assert set(judge.info["option_tokens"]["bad"]) == {"no", "yes"}
    path = file(tmp_path, FILE)
    other = make_judge(parse_judge(f"{path}:smollm2-135m"), Setting(engine_args={"dtype": "float32"}))
    assert other.version == judge.version  # the other one was told how many tokens a batch holds
    changed = file(tmp_path, {**FILE, "texts": {"prompt": FILE["texts"]["prompt"] + " "}})
    assert make_judge(parse_judge(f"{changed}:smollm2-135m")).version != judge.version


@pytest.mark.slow
def test_other_weights_are_another_version(tmp_path, tiny_model, smollm):
    path = file(tmp_path, FILE)
    versions = {make_judge(parse_judge(f"{path}:{model}")).version for model in (tiny_model, "smollm2-135m")}
    assert len(versions) == 2


@pytest.mark.slow
def test_questions_in_turn_see_what_was_answered_before_and_codes_are_read(tmp_path, smollm):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = file(tmp_path, WAVES)
    _, found = judged(path, tmp_path, ITEMS[:5])
    tokenizer = AutoTokenizer.from_pretrained(smollm)
    model = AutoModelForCausalLM.from_pretrained(smollm, dtype="float32").eval()

    def p(text: str, words: list[str]) -> list[float]:
        import torch

        with torch.inference_mode():
            row = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1].softmax(dim=-1)
        groups = [
            option_tokens(tokenizer, Question(name="q", options={w: (f" {w}",), "-": ("-",)}), judge="t")[w]
            for w in words
        ]
        return [float(row[list(group)].sum()) for group in groups]

    for one in ITEMS[:5]:
        text = FILE["texts"]["prompt"].replace("{request}", one.sample.prompt).replace("{answer}", one.text)
        yes, no = p(text, ["yes", "no"])
        said = found[one.sample.id]
        assert said.metrics["p_first"] == pytest.approx(yes / (yes + no), abs=1e-3)
        yes, no = p(text + (" yes" if yes >= no else " no") + "\nSure?", ["yes", "no"])
        assert said.metrics["p_second"] == pytest.approx(yes / (yes + no), abs=1e-3)
        assert isinstance(said.metrics["categories"], list)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.parametrize("content", [FILE, WAVES], ids=["one question", "several"])
def test_vllm_and_hf_read_the_same_probabilities(content, tmp_path, smollm):
    path = file(tmp_path, content)
    judge, here = judged(path, tmp_path)
    other, there = judged(path, tmp_path, engine="vllm")
    assert (judge.info["engine"], other.info["engine"]) == ("hf", "vllm")
    assert judge.version == other.version
    for id_, said in here.items():
        for name, value in said.metrics.items():
            if name.startswith("p_"):
                assert there[id_].metrics[name] == pytest.approx(value, abs=2e-3), name
        assert there[id_].label == said.label


@pytest.mark.slow
def test_a_head_s_probabilities_are_those_of_transformers(tmp_path):
    """A small encoder of random weights with a head of three labels, read by sigmoid and by softmax."""
    import torch
    from tiny_model import save_tiny_model
    from transformers import AutoTokenizer, RobertaConfig, RobertaForSequenceClassification

    folder = save_tiny_model(tmp_path / "head", max_length=512)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = RobertaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=16, max_position_embeddings=514, num_labels=3, pad_token_id=0)  # fmt: skip
    torch.manual_seed(1)
    model = RobertaForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    items = [item(n, "word " * (n + 1), rubric="toxicity") for n in range(5)] + [
        item(9, "long " * 400, rubric="toxicity")
    ]
    for activation, expected in (("sigmoid", torch.sigmoid), ("softmax", lambda x: x.softmax(dim=-1))):
        content = yaml.safe_load((Path(load_judge.__globals__["SPECS"]) / "toxicity.yaml").read_text())
        content |= {"name": "head", "label_ids": {"toxic": 2}, "activation": activation}
        _, found = judged(file(tmp_path, content), tmp_path, items, model=str(folder))
        for one in items[:5]:
            with torch.inference_mode():
                logits = model(**tokenizer(one.text, return_tensors="pt")).logits[0]
            assert found[one.sample.id].metrics["p_toxicity"] == pytest.approx(float(expected(logits)[2]), abs=1e-5)
        assert found[items[5].sample.id].metrics["cut_tokens"] > 1000


@pytest.mark.slow
def test_an_adapter_is_part_of_the_judge(tmp_path, smollm):
    """A LoRA of random weights moves the probabilities, and the version."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from bfpo_bench.judges.classifier import ClassifierJudge
    from bfpo_bench.sources import resolve_model

    base = AutoModelForCausalLM.from_pretrained(smollm)
    tuned = get_peft_model(
        base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    )
    tuned.save_pretrained(tmp_path / "adapter")
    judge = read_judge(file(tmp_path, FILE))
    texts = {"prompt": str(judge.texts["prompt"].own)}
    plain = resolve_model("smollm2-135m", engine="hf", engine_args={"dtype": "float32"})
    adapted = replace(plain, adapter=str(tmp_path / "adapter"), adapter_identity="sha256:of-the-tests")
    judges = [ClassifierJudge(judge, texts, model, name="j", log=tmp_path / "log") for model in (plain, adapted)]
    assert judges[0].version != judges[1].version
    here, there = ([v for batch in one.judge(ITEMS[:2]) for v in batch] for one in judges)
    assert {v.sample_id: v.metrics["p_bad"] for v in here} != {v.sample_id: v.metrics["p_bad"] for v in there}


@pytest.mark.slow
def test_weights_that_cannot_be_loaded_are_one_line(tmp_path, tiny_model):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    (broken / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(JudgeError, match="Cannot read weights") as caught:
        judged(file(tmp_path, FILE), tmp_path, model=str(broken))
    assert "\n" not in str(caught.value)


def classifier(folder: Path, *, model: str | None = "m", **arguments: str):
    from bfpo_bench.judges.classifier import ClassifierJudge
    from bfpo_bench.types import ModelSpec

    weights = ModelSpec(name="m", engine="hf", path="m", identity="hub:m@1", revision="1", engine_args=arguments)
    judge = read_judge(file(folder, {**FILE, "model": model}))
    return ClassifierJudge(judge, {}, weights, name="yesno", log=folder / "log")


def test_what_may_move_a_verdict_as_the_weights_are_loaded_is_part_of_the_version(tmp_path):
    plain = classifier(tmp_path).version
    for moving in ({"max_length": "512"}, {"dtype": "float16"}, {"load_in_4bit": "true"}, {"quantization": "fp8"}):
        assert classifier(tmp_path, **moving).version != plain, moving
    fast = {"batch_tokens": "99", "device": "cpu", "gpu_memory_utilization": "0.5", "tensor_parallel_size": "2"}
    assert classifier(tmp_path, **fast, max_num_seqs="8").version == plain
    assert (
        classifier(tmp_path, dtype="float16", max_length="9").version
        == classifier(tmp_path, max_length="9", dtype="float16").version
    )  # in whatever order they were given


def test_weights_that_could_not_be_fetched_are_named_with_how_to_get_them(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise EngineError("Cannot load judge: OSError: We couldn't connect to 'https://huggingface.co' to load it")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("bfpo_bench.judges.classifier.HostProcess", offline)
    with pytest.raises(JudgeError) as caught:
        list(classifier(tmp_path).judge(ITEMS[:1]))
    said = str(caught.value)
    assert said.startswith("Judge 'yesno': its weights m@1 are not here. Get them with `hf download m --revision 1`")
    assert "yesno:./FOLDER" in said and "We couldn't connect" in said and "\n" not in said


def test_a_behavior_is_graded_by_itself_and_its_context_beside_it(tmp_path):
    """A jailbreak's frame is not what the answer is measured by."""
    from bfpo_bench.judges.classifier import ClassifierJudge
    from bfpo_bench.types import ModelSpec

    weights = ModelSpec(name="m", engine="hf", path="m", identity="sha256:0")
    judge = ClassifierJudge(read_judge(file(tmp_path, FILE)), {}, weights, name="j")
    plain = judge._fields(item(1, "A", request="In a story, Q"))
    assert plain == {"request": "In a story, Q", "answer": "A", "request_list": "['In a story, Q']"}
    framed = judge._fields(item(1, "A", request="In a story, Q", behavior="Q", context="C"))
    assert (framed["request"], framed["context"]) == ("Q", "C")


def test_the_authors_generic_behavior_takes_the_request_s_place(tmp_path):
    from bfpo_bench.judges.classifier import ClassifierJudge
    from bfpo_bench.types import ModelSpec

    content = {**FILE, "texts": {**FILE["texts"], "generic": "anything bad", "about": "An answer of: {request_list}"},
               "fields": {"request": "generic", "context": "about"}}  # fmt: skip
    judge_file = read_judge(file(tmp_path, content))
    texts = {name: str(text.own) for name, text in judge_file.texts.items()}
    weights = ModelSpec(name="m", engine="hf", path="m", identity="sha256:0")
    fields = ClassifierJudge(judge_file, texts, weights, name="j")._fields(item(1, "A", request="Q's"))
    assert fields["request"] == "anything bad"
    assert fields["context"] == 'An answer of: ["Q\'s"]'
