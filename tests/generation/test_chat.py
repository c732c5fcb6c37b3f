"""A conversation: what the model reads of it, what it keeps, and what it forgets."""

from __future__ import annotations

import pytest

from trivium.errors import UserError
from trivium.generation.chat import Chat
from trivium.generation.generate import generate
from trivium.generation.settings import GenerationSettings
from trivium.models.build import build_model
from trivium.models.config import ModelConfig
from trivium.models.decoder import Decoder
from trivium.tokenizer.bpe import Tokenizer

SETTINGS = GenerationSettings(max_new_tokens=12)


def check_answers(chat: Chat, model: Decoder, tokenizer: Tokenizer) -> None:
    """Each answer is what the model writes after the template's ids of the conversation so far."""
    assert tokenizer.chat is not None
    said: list[dict[str, str]] = [{"role": "system", "content": "Be brief."}]
    for question in ("What is a module?", "And a class?", "Why?"):
        pieces: list[str] = []
        answer = chat.say(question, stream=pieces.append)
        said.append({"role": "user", "content": question})
        prompt = tokenizer.chat.encode(said, add_generation_prompt=True).ids
        ends = [tokenizer.special_tokens["<|im_end|>"], tokenizer.eos_id or 0]
        (expected,) = generate(model, tokenizer, [prompt], SETTINGS, eos_ids=ends)
        assert answer.tokens == expected.tokens and answer.text == "".join(pieces)
        said.append({"role": "assistant", "content": answer.text})
        assert chat.messages == said


def test_answers_follow_the_conversation(model: Decoder, tokenizer: Tokenizer) -> None:
    check_answers(Chat(model, tokenizer, SETTINGS, system="Be brief."), model, tokenizer)


def test_the_check_sees_a_forgotten_conversation(
    model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken control: only the last question is read."""
    prompt = Chat._prompt

    def forgetful(chat: Chat) -> list[int]:
        turns, chat.turns = chat.turns, chat.turns[-1:]
        ids = prompt(chat)
        chat.turns = turns
        return ids

    monkeypatch.setattr(Chat, "_prompt", forgetful)
    with pytest.raises(AssertionError):
        check_answers(Chat(model, tokenizer, SETTINGS, system="Be brief."), model, tokenizer)


def test_the_end_of_a_turn_ends_an_answer(model: Decoder, tokenizer: Tokenizer) -> None:
    end = tokenizer.special_tokens["<|im_end|>"]
    chat = Chat(model, tokenizer, SETTINGS, eos_ids=[7])
    assert set(chat._ends) == {7, end}
    assert set(Chat(model, tokenizer, SETTINGS)._ends) == {tokenizer.eos_id, end}


def test_the_oldest_turns_are_forgotten_first(model: Decoder, tokenizer: Tokenizer) -> None:
    """The context holds 320 tokens; the system message and the newest turns stay."""
    chat = Chat(model, tokenizer, SETTINGS, system="Be brief.")
    for number in range(12):
        answer = chat.say(f"question {number}: what does this function return?")
        assert answer.prompt_tokens + SETTINGS.max_new_tokens <= model.config.max_positions
        assert answer.finish_reason == "stop" or len(answer.tokens) == SETTINGS.max_new_tokens
    assert chat.messages[0] == {"role": "system", "content": "Be brief."}
    assert [turn["role"] for turn in chat.turns] == ["user", "assistant"] * (len(chat.turns) // 2)
    assert 2 < len(chat.turns) < 24 and chat.turns[-2]["content"].startswith("question 11")


def test_a_turn_that_is_too_long_changes_nothing(model: Decoder, tokenizer: Tokenizer) -> None:
    chat = Chat(model, tokenizer, SETTINGS)
    chat.say("hello")
    before = chat.messages
    with pytest.raises(UserError, match="context holds 320"):
        chat.say("é" * 400)
    assert chat.messages == before
    chat.reset()
    assert chat.messages == []


def test_refusals(model: Decoder, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"no chat template, .*: use trivium generate"):
        Chat(model, tokenizer.with_chat_template(None))
    encoder = build_model(ModelConfig(kind="encoder", vocab_size=400, width=16, layers=1, heads=2))
    with pytest.raises(UserError, match=r"chat needs a decoder .*: use fill-mask"):
        Chat(encoder, tokenizer)
