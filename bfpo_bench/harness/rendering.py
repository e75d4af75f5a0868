"""How a sample becomes the text that a model is sent: system prompt, chat template, thinking switched on or off."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bfpo_bench.errors import ConfigError, EngineError
from bfpo_bench.harness.engine import THINKING_SWITCH, prompt_sha, template_warning, wants_template
from bfpo_bench.thinking import TAGS
from bfpo_bench.types import Message, ModelSpec, Sample

History = list[dict[str, str]]


class Renderer:
    """The texts of one model's prompts. Raises EngineError where the run asks for what its template cannot say."""

    def __init__(self, spec: ModelSpec, tokenizer: Any) -> None:
        self._spec = spec
        self._tokenizer = tokenizer
        thinking = thinking_switch(spec)
        self._arguments: Mapping[str, Any] = {} if thinking is None else {THINKING_SWITCH: thinking}
        self.use_template = wants_template(spec, tokenizer)
        # A system prompt that the template drops would be another experiment than the one that was asked for.
        if spec.system_prompt is not None and self.use_template and not self._says(spec.system_prompt):
            raise EngineError(
                f"--system-prompt: the chat template of {spec.name!r} has no system role and would drop it. "
                "Leave it out, or put it before the plain prompt with --chat-template off."
            )

    @property
    def info(self) -> dict[str, Any]:
        """The engine's `info` as far as it is about prompts."""
        tokenizer = self._tokenizer
        return {
            "chat_template": prompt_sha(str(tokenizer.chat_template)) if self.use_template else None,
            "system_role": self._says("system") if self.use_template else True,
            "warning": template_warning(self._spec, tokenizer),
        }

    def prompt(self, sample: Sample) -> str:
        """What is sent to be answered: the messages through the template, or the plain prompt."""
        asked = with_system_prompt(sample, self._spec.system_prompt)
        if not self.use_template or not asked.messages:
            return asked.prompt
        return self._templated([{"role": m.role, "content": m.content} for m in asked.messages])

    def with_choices(self, sample: Sample) -> Sample:
        """The sample with its choices as they are sent: plain, or behind the template where the run asks so."""
        asked = with_system_prompt(sample, self._spec.system_prompt)
        if not asked.chat_choices:
            return asked
        return replace(asked, choices=tuple((self._templated(json.loads(h)), end) for h, end in asked.chat_choices))

    def _templated(self, history: History) -> str:
        """As lm-eval's HFLM renders it, for every engine: its VLLM also hands templates an `enable_thinking` of None,
        which some of them take for false."""
        import jinja2

        # A last turn of the assistant is the task's gen_prefix: the model continues it.
        asks = history[-1]["role"] != "assistant"
        options = {"tokenize": False, "add_generation_prompt": asks, "continue_final_message": not asks}
        try:
            return str(self._tokenizer.apply_chat_template(history, **options, **self._arguments))
        except jinja2.TemplateError:
            said = [turn for turn in history if turn["role"] != "system"]
            return str(self._tokenizer.apply_chat_template(said, **options, **self._arguments))

    def _says(self, text: str) -> bool:
        """Whether the template shows a system turn with this text."""
        try:
            rendered = self._templated([{"role": "system", "content": text}, {"role": "user", "content": "x"}])
        except Exception:  # a template may refuse any history; its author's exceptions are of any type
            return False
        return text.strip() in rendered


def with_system_prompt(sample: Sample, system: str | None) -> Sample:
    """The sample asked under a system prompt, joined to the task's own as lm-eval joins its `system_instruction`.

    Its id stays: with and without a system prompt it is the same sample.
    """
    if system is None:
        return sample

    def under(text: str) -> str:
        return _joined(system, text, sample.joint)

    def history(text: str) -> str:
        return json.dumps([{"role": m.role, "content": m.content} for m in said(_turns(json.loads(text)))])

    def said(turns: tuple[Message, ...]) -> tuple[Message, ...]:
        first, rest = (turns[0].content, turns[1:]) if turns[0].role == "system" else ("", turns)
        return (Message(role="system", content=_joined(system, first, sample.joint)), *rest)

    return replace(
        sample,
        prompt=under(sample.prompt),
        messages=said(sample.messages) if sample.messages else (),
        choices=tuple((under(context), end) for context, end in sample.choices),
        chat_choices=tuple((history(text), end) for text, end in sample.chat_choices),
    )


def _turns(history: History) -> tuple[Message, ...]:
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in history)


def _joined(system: str, text: str, joint: str) -> str:
    """lm-eval's rule: nothing between them where either has white space at the boundary already."""
    if not system or not text or system[-1].isspace() or text[0].isspace():
        return system + text
    return f"{system}{joint}{text}"


def thinking_switch(spec: ModelSpec) -> bool | None:
    """`--engine-args enable_thinking=`, for templates that know it (Qwen3); None where it was not given.

    Not handed to lm-eval's classes: with it on they refuse choice tasks, and they cut thoughts off unseen.
    """
    value = spec.engine_args.get(THINKING_SWITCH)
    if value is None:
        return None
    if value.lower() not in ("true", "false"):
        raise ConfigError(f"--engine-args {THINKING_SWITCH} must be true or false, got {value!r}.")
    return value.lower() == "true"


def thinking_tokens(tokenizer: Any) -> dict[int, str]:
    """Tags of thinking that are control tokens of this tokenizer, which decoding would drop without a trace."""
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    return {int(id_): str(token) for id_, token in added.items() if token.special and str(token) in TAGS}


def decoded(tokens: Sequence[int], decode: Callable[[list[int]], str], tags: Mapping[int, str]) -> str:
    """The tokens' text, with the tags that `decode` drops."""
    parts: list[str] = []
    between: list[int] = []
    for token in tokens:
        if token in tags:
            parts += [decode(between), tags[token]]
            between = []
        else:
            between.append(token)
    return "".join([*parts, decode(between)])
