"""From text to token ids: the chat template's prompt, and each answer as the model would have to generate it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bfpo_bench.errors import ConfigError
from bfpo_bench.trainers.checks import safer_answer
from bfpo_bench.trainers.layout import Ids, TokenConversation, TokenPair
from bfpo_bench.trainers.records import Conversation, PreferencePair, Problem
from bfpo_bench.types import Message

# Stands for an answer where only what the template puts behind one is wanted.
_ANSWER = "\N{OBJECT REPLACEMENT CHARACTER}"


class PairTokeniser:
    """Renders through the chat template; the prompt's tokens are those of generation, the answer's those behind it.

    An answer ends with the template's end-of-turn token; what the template puts behind that token (a line break) is
    not learnt. Where a template ends an answer with no special token, the tokenizer's end of sequence is put there.
    """

    def __init__(
        self, tokenizer: Any, *, max_length: int, max_prompt_length: int, long_prompts: str, template: str | None = None
    ) -> None:
        if template is not None:
            tokenizer.chat_template = template
        if tokenizer.chat_template is None:
            raise ConfigError(
                "The model's tokenizer has no chat template, so that it is open how a prompt ends: give chat_template "
                "in the recipe."
            )
        self.tokenizer = tokenizer
        # Not `all_special_tokens`: those are the named ones, and an end of turn often has no name.
        self._special = sorted(one.content for one in tokenizer.added_tokens_decoder.values() if one.special)
        self.max_length, self.max_prompt_length, self.long_prompts = max_length, max_prompt_length, long_prompts

    def pair(self, pair: PreferencePair) -> TokenPair | Problem:
        """The pair in token ids, or why it cannot be trained on."""
        if token := self._control_token([*(one.content for one in pair.prompt), pair.chosen, pair.rejected]):
            return Problem(row=pair.row, reason=f"its text has the control token {token}")
        before = self._render(pair.prompt, prompt=True)
        front = self._ids(before)
        prompt = self._prompt(front)
        if isinstance(prompt, str):
            return Problem(row=pair.row, reason=prompt)
        answers, n_cut = [], 0
        for text in (pair.chosen, pair.rejected):
            whole = self._behind(front, before, self._answer(pair.prompt, before, text))
            room = self.max_length - len(prompt)
            n_cut += len(whole) > room
            answers.append(whole[:room])
        if np.array_equal(answers[0], answers[1]):
            return Problem(row=pair.row, reason=f"the answers are equal in their first {len(answers[0])} tokens")
        labels = [np.nan if label is None else float(label) for label in (pair.chosen_safe, pair.rejected_safe)]
        return TokenPair(
            prompt=prompt,
            chosen=answers[0],
            rejected=answers[1],
            chosen_safe=labels[0],
            rejected_safe=labels[1],
            safety_preference=float(safety_preference(pair)),
            source=pair.source,
            row=pair.row,
            n_cut=n_cut,
        )

    def conversation(self, conversation: Conversation) -> TokenConversation | Problem:
        """The conversation in token ids, cut at `max_length`; every turn of the assistant is learnt."""
        if token := self._control_token(one.content for one in conversation.messages):
            return Problem(row=conversation.row, reason=f"its text has the control token {token}")
        pieces: list[Ids] = []
        learnt: list[bool] = []
        done = ""
        for index, message in enumerate(conversation.messages):
            if message.role != "assistant":
                continue
            before = self._render(conversation.messages[:index], prompt=True)
            after = self._render(conversation.messages[: index + 1], prompt=False)
            if not (before.startswith(done) and after.startswith(before)):
                return Problem(
                    row=conversation.row, reason="the chat template rewrites earlier turns of a conversation"
                )
            answer = self._ended(after[len(before) :])
            for front, text, say in ((done, before[len(done) :], False), (before, answer, True)):
                ids = self._behind(self._ids(front), front, text)
                pieces.append(ids)
                learnt += [say] * len(ids)
            done = before + answer
            if not after.startswith(done):  # an end of sequence that the template does not have
                done = after
        ids = np.concatenate(pieces)
        n_cut = int(len(ids) > self.max_length)
        mask = np.array(learnt[: self.max_length])
        if not mask[1:].any():
            return Problem(row=conversation.row, reason=f"no answer begins in its first {self.max_length} tokens")
        return TokenConversation(
            ids=ids[: self.max_length], learnt=mask, source=conversation.source, row=conversation.row, n_cut=n_cut
        )

    def _prompt(self, ids: Ids) -> Ids | str:
        if len(ids) <= self.max_prompt_length:
            return ids
        if self.long_prompts == "skip":
            return f"a prompt of {len(ids)} tokens, max_prompt_length is {self.max_prompt_length}"
        # The end holds the question; a beginning-of-sequence token stays where the model looks for it.
        first = ids[:1] if ids[0] == self.tokenizer.bos_token_id else ids[:0]
        return np.concatenate([first, ids[len(ids) - self.max_prompt_length + len(first) :]])

    def _answer(self, prompt: Sequence[Message], before: str, text: str) -> str:
        after = self._render([*prompt, Message(role="assistant", content=text)], prompt=False)
        if after.startswith(before):
            return self._ended(after[len(before) :])
        # The prompt opens something that a finished answer is shown without (a thought); a turn ends all the same.
        shown = self._render([*prompt, Message(role="assistant", content=_ANSWER)], prompt=False)
        return self._ended(text + shown.rpartition(_ANSWER)[2])

    def _behind(self, front: Ids, before: str, text: str) -> Ids:
        """The ids of `text` behind `before`, whose ids are `front`.

        Tokenised alone it would begin with a space under tokenizers that put one before a text (Llama 2, Mistral).
        """
        whole = self._ids(before + text)
        return whole[len(front) :] if np.array_equal(whole[: len(front)], front) else self._ids(text)

    def _ended(self, answer: str) -> str:
        kept = answer.rstrip()
        if any(kept.endswith(token) for token in self._special):
            return kept
        if self.tokenizer.eos_token is None:
            raise ConfigError(
                "Neither the chat template nor the tokenizer ends an answer, so that none would be learnt to end: give "
                "a chat_template that ends a turn with a special token."
            )
        return answer + str(self.tokenizer.eos_token)

    def _control_token(self, texts: Iterable[str]) -> str | None:
        """A token of the template's that stands in the data: it would end the turn there, or begin another."""
        return next((token for text in texts for token in self._special if token in text), None)

    def _render(self, messages: Sequence[Message], *, prompt: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(
            [{"role": one.role, "content": one.content} for one in messages],
            tokenize=False,
            add_generation_prompt=prompt,
        )
        return text

    def _ids(self, text: str) -> Ids:
        return np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)


def safety_preference(pair: PreferencePair) -> int:
    """1 where the chosen answer is the safer one, -1 where the rejected is, 0 where the data prefers neither."""
    return {"chosen": 1, "rejected": -1, None: 0}[safer_answer(pair)]
