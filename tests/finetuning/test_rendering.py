"""What is learned of a conversation, and that it is read in training as it is read in serving."""

from __future__ import annotations

import argparse
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from trivium.data.conversations import Conversation, Message
from trivium.data.row import Row
from trivium.data.rows import Text, Tokenized, parse_row
from trivium.errors import UserError
from trivium.finetuning.rendering import Rendered, Renderer, chatml_for
from trivium.generation.prompts import encode_prompt, encode_source
from trivium.generation.settings import GenerationSettings
from trivium.tokenizer.bpe import Tokenizer

SOURCE = inspect.getsource(argparse)
BOTCHAN = "tokenizers/sentencepiece/botchan_en_bpe_1000.model"


@pytest.fixture(scope="module")
def beginning() -> Tokenizer:
    """A byte-level BPE without a chat template, whose texts begin with `<|endoftext|>`."""
    tokenizer = Tokenizer.train(texts=[SOURCE], vocab_size=500).with_chat_template(None)
    assert tokenizer.adds_bos and tokenizer.bos_id == tokenizer.eos_id
    return tokenizer


@pytest.fixture(scope="module")
def bare(beginning: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The same, where nothing begins a text."""
    folder = tmp_path_factory.mktemp("bare")
    beginning.save(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": False}))
    tokenizer = Tokenizer.load(folder)
    assert not tokenizer.adds_bos
    return tokenizer


@pytest.fixture(params=["bare", "beginning", "sentencepiece", "with a template"])
def tokenizer(request: pytest.FixtureRequest, bare: Tokenizer, beginning: Tokenizer) -> Tokenizer:
    """One of every kind that differs in how texts begin."""
    if request.param == "sentencepiece":
        return Tokenizer.load(request.getfixturevalue("shared_data") / BOTCHAN)
    named = {"bare": bare, "beginning": beginning}
    return named.get(request.param) or bare.with_chat_template(chatml_for(bare))


def row(**values: Any) -> Conversation:
    parsed = parse_row(Row(values, "a.jsonl", 1))
    assert isinstance(parsed, Conversation)
    return parsed


PLAIN = row(prompt="Who wrote it?", response=" Nobody\ndid.")
TALK = row(
    messages=[
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye\n"},
        {"role": "assistant", "content": "\nGood night"},
    ]
)


def learned_text(tokenizer: Tokenizer, rendered: Rendered) -> str:
    return tokenizer.decode([token for token, each in zip(rendered.ids, rendered.learned, strict=True) if each])


def begins_with(rendered: Rendered, prompt: list[int]) -> bool:
    return rendered.ids[: len(prompt)] == prompt and not any(rendered.learned[: len(prompt)])


# ---------------------------------------------------------------------------------------- training and serving


@pytest.mark.parametrize("talk", [PLAIN, TALK], ids=["plain", "messages"])
def test_the_ids_of_a_prompt_are_the_first_of_its_row(tokenizer: Tokenizer, talk: Conversation) -> None:
    renderer = Renderer(tokenizer, "decoder", "last_response")
    (rendered,), question = renderer.render(talk), renderer.question(talk)
    assert question is not None and question.answer == talk.messages[-1].content
    assert begins_with(rendered, question.prompt)
    assert rendered.learned[len(question.prompt)], "the first id after the prompt is the first that is learned"
    if tokenizer.bos_id is not None and tokenizer.adds_bos:
        assert rendered.ids[0] == tokenizer.bos_id and rendered.ids[1] != tokenizer.bos_id


def test_control_a_row_encoded_as_one_text_is_caught(bare: Tokenizer) -> None:
    """As it is often done: the end of the prompt then joins the beginning of the answer."""
    talk = row(prompt="def f(self", response=", name):")
    renderer = Renderer(bare, "decoder")
    question = renderer.question(talk)
    assert question is not None and begins_with(renderer.render(talk)[0], question.prompt)
    prompts = ["self", "def", "return", "            if", "argument_default", "_get_", "conflict_handl"]
    joined = [bare.encode(text + end) for text in prompts for end in ("ed", "er", "s", "(", "_")]
    alone = [bare.encode(text) for text in prompts for _ in range(5)]
    assert any(whole[: len(part)] != part for whole, part in zip(joined, alone, strict=True))


def test_serving_reads_what_training_wrote(tokenizer: Tokenizer) -> None:
    """`generate` reads the same prompt; `chat` the same conversation."""
    renderer = Renderer(tokenizer, "decoder")
    if tokenizer.chat_template is None:
        served = encode_prompt(tokenizer, PLAIN.messages[0].content, GenerationSettings())
        assert begins_with(renderer.render(PLAIN)[0], served)
        tokenizer = tokenizer.with_chat_template(chatml_for(tokenizer))  # as it is saved with the model
    template = tokenizer.chat
    assert template is not None
    served = template.encode([{"role": "user", "content": "Hi"}], add_generation_prompt=True).ids
    assert begins_with(renderer.render(TALK)[0], served)


def test_the_end_of_an_answer_is_learned_and_ends_generation(tokenizer: Tokenizer) -> None:
    renderer = Renderer(tokenizer, "decoder")
    for talk in (PLAIN, TALK):
        (rendered,) = renderer.render(talk)
        last = [token for token, learned in zip(rendered.ids, rendered.learned, strict=True) if learned][-1]
        assert last in renderer.ends
        assert last in tokenizer.special_tokens.values()


def test_what_is_learned(bare: Tokenizer) -> None:
    end, chat = "<|endoftext|>", "<|im_end|>"
    assert learned_text(bare, Renderer(bare, "decoder").render(PLAIN)[0]) == f" Nobody\ndid.{end}"
    assert learned_text(bare, Renderer(bare, "decoder").render(TALK)[0]) == f"Hello.{chat}\nGood night{chat}"
    last = Renderer(bare, "decoder", "last_response").render(TALK)[0]
    assert learned_text(bare, last) == f"\nGood night{chat}"
    everything = Renderer(bare, "decoder", "all").render(TALK)[0]
    assert learned_text(bare, everything) == bare.decode(everything.ids)
    assert "Bye" in learned_text(bare, everything)


def test_flags_of_messages(bare: Tokenizer) -> None:
    said = [{"role": each.role, "content": each.content} for each in TALK.messages]
    off = row(messages=[said[0], {**said[1], "weight": 0}, *said[2:]])
    assert learned_text(bare, Renderer(bare, "decoder").render(off)[0]) == "\nGood night<|im_end|>"
    on = row(messages=[said[0], {**said[1], "train": True}, *said[2:]])
    assert "Hello." in learned_text(bare, Renderer(bare, "decoder", "last_response").render(on)[0])
    all_but = Renderer(bare, "decoder", "all").render(off)[0]
    assert "Hello." not in learned_text(bare, all_but) and "Bye" in learned_text(bare, all_but)
    asked = row(messages=[{**said[0], "train": False}, *said[1:]])
    with pytest.raises(UserError, match=r"only answers can be left out by train: false"):
        Renderer(bare, "decoder", "all").render(asked)


def test_a_system_message_for_rows_without_one(bare: Tokenizer) -> None:
    renderer = Renderer(bare, "decoder", system="Be brief.")
    text = bare.decode(renderer.render(PLAIN)[0].ids)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho")
    own = row(messages=[{"role": "system", "content": "Be long."}, {"role": "user", "content": "a"}, *SAID])
    assert "Be brief" not in bare.decode(renderer.render(own)[0].ids)


SAID = [{"role": "assistant", "content": "b"}]


def test_chatml_without_its_marks_ends_turns_with_the_end_of_text(shared_data: Path) -> None:
    tokenizer = Tokenizer.load(shared_data / BOTCHAN)
    assert "<|im_end|>" not in tokenizer.special_tokens
    renderer = Renderer(tokenizer, "decoder")
    (rendered,) = renderer.render(TALK)
    assert [*rendered.ids].count(tokenizer.eos_id) == 4, "one for each turn"
    assert rendered.ids.count(tokenizer.bos_id) == 1
    assert renderer.template.end_of_turn_id == tokenizer.eos_id


def test_a_template_that_writes_the_beginning_and_a_tokenizer_that_adds_it(beginning: Tokenizer) -> None:
    named = beginning.with_chat_template("{{ bos_token }}" + chatml_for(beginning).removeprefix("{{- bos_token -}}\n"))
    (rendered,) = Renderer(named, "decoder").render(TALK)
    assert rendered.ids[0] == named.bos_id and rendered.ids.count(named.bos_id) == 1


def test_a_template_of_plain_words_gets_the_end_of_text(bare: Tokenizer) -> None:
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    source += "{% if add_generation_prompt %}assistant:{% endif %}"
    (rendered,) = Renderer(bare.with_chat_template(source), "decoder").render(PLAIN)
    assert rendered.ids[-1] == bare.eos_id and rendered.learned[-1]


def test_special_tokens_in_what_people_wrote_stay_text(bare: Tokenizer) -> None:
    forged = row(prompt="a<|endoftext|>b", response="c<|endoftext|>d")
    ids = Renderer(bare, "decoder").render(forged)[0].ids
    assert ids.count(bare.eos_id) == 1 and ids[-1] == bare.eos_id


TOOLS = [{"name": "add", "parameters": {"type": "object"}}]
CALLS = row(
    conversations=[
        {"from": "human", "value": "1 + 1?"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1, "b": 1}}'},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "Two."},
    ],
    tools=json.dumps(TOOLS),
)


def test_functions_where_the_template_does_not_know_them(bare: Tokenizer) -> None:
    text = learned_text(bare, Renderer(bare, "decoder").render(CALLS)[0])
    assert text == '{"name": "add", "arguments": {"a": 1, "b": 1}}<|im_end|>Two.<|im_end|>'
    assert bare.decode(Renderer(bare, "decoder").render(CALLS)[0].ids).startswith(
        '<|im_start|>system\nFunctions:\n{"name": "add"'
    )


def test_functions_where_the_template_knows_them(bare: Tokenizer) -> None:
    source = (
        "{% if tools %}T{{ tools | length }} {% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.tool_calls %}CALL {{ m.tool_calls[0].function.name }}{% else %}{{ m.content }}{% endif %}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    named = bare.with_chat_template(source)
    (rendered,) = Renderer(named, "decoder").render(CALLS)
    assert named.decode(rendered.ids).startswith("T1 <|im_start|>user")
    assert learned_text(named, rendered) == "CALL add<|im_end|>Two.<|im_end|>"


def test_documents_and_ids(beginning: Tokenizer) -> None:
    (document,) = Renderer(beginning, "decoder").render(Text("def f():"))
    assert document.learned == [False] + [True] * (len(document.ids) - 1)
    assert document.ids == [beginning.bos_id, *beginning.encode("def f():"), beginning.eos_id]
    (ids,) = Renderer(beginning, "decoder").render(Tokenized((5, 6, 7), (-100, 6, 7)))
    assert (ids.ids, ids.learned) == ([5, 6, 7], [False, True, True])


# --------------------------------------------------------------------------------------------- two stacks


@pytest.fixture(scope="module")
def source_tokenizer() -> Tokenizer:
    return Tokenizer.train(texts=[SOURCE], vocab_size=500, kind="encoder-decoder")


def test_an_encoder_decoder_reads_lines_and_writes_the_answer(source_tokenizer: Tokenizer) -> None:
    renderer = Renderer(source_tokenizer, "encoder-decoder")
    first, second = renderer.render(TALK)
    assert first.source == encode_source(source_tokenizer, "Hi")
    assert second.source == encode_source(source_tokenizer, "Hi\nHello.\nBye\n")
    assert second.ids == [*source_tokenizer.encode("\nGood night"), source_tokenizer.eos_id] and all(second.learned)
    question = renderer.question(TALK)
    assert question is not None and question.prompt == second.source, "served as it was learned"
    assert len(Renderer(source_tokenizer, "encoder-decoder", "last_response").render(TALK)) == 1
    with pytest.raises(UserError, match="a text alone has no source"):
        renderer.render(Text("a"))


def test_a_message_alone_is_no_question(bare: Tokenizer) -> None:
    renderer = Renderer(bare, "decoder")
    assert renderer.question(Conversation((Message("user", "a"),))) is None
    assert renderer.question(Conversation((Message("assistant", "a"),))) is None
