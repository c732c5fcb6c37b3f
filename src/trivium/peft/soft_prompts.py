"""Learned positions that are no text: prompts, P-tuning and prefixes.

Prompt tuning (Lester et al., 2021, sec. 2): P learned vectors stand before the embedded text. P-tuning (Liu et al.,
2021) makes the vectors by a network; here an MLP D -> W -> W -> D with ReLU, of which only the result is saved. Prefix
tuning (Li & Liang, 2021, eq. 3): P learned keys and values in every attention, for the time of training optionally made
by a network D -> W -> all of them with tanh (sec. 4.3).

A causal stack without a source runs the prompt through its own blocks, once per pass, and all documents see the keys
and values that result (`models/learned_positions.py`): the same numbers as with the vectors put before each. A stack
that sees both ways gets the vectors before its text, one text a row. Of an encoder-decoder, prompts stand before the
source, prefixes in the stacks chosen; with all of them cross-attention has one of its own too, with the decoder alone
only its attention to itself, as in `peft`. Prefix keys are not turned by rotary positions, as there.

No start leaves a model as it was, since attention sees more than before: what is drawn is small, and what begins as a
text is what that text would do. Departs from `peft`: prefixes are drawn with the model's own deviation, not with 1.

Invariants the tests check: equal to `transformers` with the vectors before the embedded text, or with the keys and
values as its past, and so their gradients; packed equals alone; cached equals uncached; as many numbers as planned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trivium.errors import UserError
from trivium.models.base import LanguageModel
from trivium.models.encoder_decoder import EncoderDecoder
from trivium.models.learned_positions import LearnedPositions
from trivium.models.transformer import Stack
from trivium.peft.settings import PrefixTuningSettings, PromptSettings, PTuningSettings, VirtualSettings

PROMPT = "prompt"
"""The name of a prompt's vectors among an adapter's tensors, (P, D)."""
PREFIX_TENSORS = ("prefix_keys", "prefix_values", "prefix_source_keys", "prefix_source_values")
"""Those of a stack's prefix, after the stack's name, (L, P, K, N) each; the last two of cross-attention."""


class Prompt(nn.Module):
    """P vectors, learned by themselves or through a network."""

    def __init__(self, vectors_PD: Tensor, network: nn.Module | None = None) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors_PD)
        self.network = network

    def forward(self) -> Tensor:
        """(P, D)."""
        return self.vectors if self.network is None else self.network(self.vectors)

    def tensors(self) -> dict[str, Tensor]:
        """What is saved."""
        return {PROMPT: self()}

    def fixed(self, tensors: Mapping[str, Tensor]) -> Prompt:
        """One with these vectors, and without a network."""
        return Prompt(tensors[PROMPT])


class Prefix(nn.Module):
    """P keys and values for each attention of one stack, learned by themselves or through a network."""

    def __init__(self, name: str, keys_values: Tensor | None, made: Made | None = None) -> None:
        """`keys_values` (2 or 4, L, P, K, N): as in `PREFIX_TENSORS`."""
        super().__init__()
        self.name = name
        self.keys_values = None if keys_values is None else nn.Parameter(keys_values)
        self.made = made

    def forward(self) -> Tensor:
        """(2 or 4, L, P, K, N)."""
        if self.made is not None:
            return self.made()  # type: ignore[no-any-return]
        assert self.keys_values is not None
        return self.keys_values

    def learned(self) -> LearnedPositions:
        """As the layers of the stack see them."""
        parts = [tuple(layer[None] for layer in part.transpose(1, 2)) for part in self()]
        return LearnedPositions(*parts)

    def tensors(self) -> dict[str, Tensor]:
        """What is saved."""
        return {f"{self.name}.{own}": part for own, part in zip(PREFIX_TENSORS, self(), strict=False)}

    def fixed(self, tensors: Mapping[str, Tensor]) -> Prefix:
        """One with these keys and values, and without a network."""
        parts = [tensors[f"{self.name}.{own}"] for own in PREFIX_TENSORS if f"{self.name}.{own}" in tensors]
        return Prefix(self.name, torch.stack(parts))


class Made(nn.Module):
    """Keys and values made of P vectors by a network of one hidden layer."""

    def __init__(self, vectors_PD: Tensor, width: int, shape: tuple[int, int, int, int]) -> None:
        """`shape`: (2 or 4, L, K, N)."""
        super().__init__()
        parts, layers, heads, head_width = shape
        self.vectors, self.shape = nn.Parameter(vectors_PD), shape
        D = vectors_PD.shape[1]
        outputs = parts * layers * heads * head_width
        self.network = nn.Sequential(nn.Linear(D, width), nn.Tanh(), nn.Linear(width, outputs))

    def forward(self) -> Tensor:
        """(2 or 4, L, P, K, N)."""
        return self.network(self.vectors).view(-1, *self.shape).movedim(0, 2)  # type: ignore[no-any-return]


class Places(nn.Module):
    """The prompts or prefixes of one stack, by the adapters' names, of which one is active, or none."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name = nn.ModuleDict()
        self.active: str | None = None

    def forward(self, stack: Stack | None = None, dtype: torch.dtype = torch.float32) -> Any:
        """Of a stack that is given: the `LearnedPositions` before everything it reads. Else the prompt, (P, D).

        None where no adapter with any is active.
        """
        if self.active is None or self.active not in self.by_name:
            return None
        part = self.by_name[self.active]
        if isinstance(part, Prefix):
            return part.learned()
        return part() if stack is None else stack.read_before_all(part().to(dtype))


def install(model: LanguageModel, settings: VirtualSettings, name: str, seed: int, tokenizer: Any = None) -> None:
    """Put the learned positions of an adapter into its stacks, not active yet, in fp32.

    `tokenizer` encodes the text that a prompt begins as. UserError, with nothing changed, for what cannot be.
    """
    stacks = _stacks(model, settings)
    for each, stack in stacks.items():
        _refuse_long(each, stack, settings.virtual_tokens)
    made = {each: _part(model, each, stack, settings, seed, tokenizer) for each, stack in stacks.items()}
    for each, stack in stacks.items():
        kind = "prefix" if isinstance(settings, PrefixTuningSettings) or stack.causal else "prompt"
        if getattr(stack, kind) is None:
            setattr(stack, kind, Places())
        getattr(stack, kind).by_name[name] = made[each].to(model.device).train(stack.training)


def activate(model: nn.Module, name: str | None) -> None:
    """Make the learned positions of one adapter the active ones, or none."""
    for places in _places(model).values():
        places.active = name


def remove(model: nn.Module, name: str) -> None:
    """Take those of an adapter away; a stack without any is as it was."""
    for stack in [module for module in model.modules() if isinstance(module, Stack)]:
        for kind in ("prefix", "prompt"):
            places = getattr(stack, kind)
            if isinstance(places, Places) and name in places.by_name:
                del places.by_name[name]
                if not len(places.by_name):
                    setattr(stack, kind, None)


def parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """What an adapter trains: networks too, which are not saved."""
    return {
        f"{place}.{own}": parameter
        for place, part in _parts(model, name).items()
        for own, parameter in part.named_parameters()
    }


@torch.no_grad()
def state(model: nn.Module, name: str) -> dict[str, Tensor]:
    """What is saved of an adapter: `prompt` (P, D), or `<stack>.prefix_keys`, ... (L, P, K, N); networks left out."""
    found: dict[str, Tensor] = {}
    for part in _parts(model, name).values():
        found |= {key: value.detach().clone() for key, value in part.tensors().items()}
    return found


@torch.no_grad()
def load(model: nn.Module, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Give an adapter what `state` gave; a network that made it is dropped, since it cannot be found again.

    UserError for tensors that are missing, too many or of another shape.
    """
    expected = state(model, name)
    if missing := sorted(expected.keys() - tensors.keys()):
        raise UserError(f"adapter {name!r}: there is no tensor {missing[0]}")
    if unknown := sorted(tensors.keys() - expected.keys()):
        raise UserError(f"adapter {name!r}: {unknown[0]} has no place in it")
    for key, value in tensors.items():
        if value.shape != expected[key].shape:
            raise UserError(f"adapter {name!r}: {key} is {tuple(value.shape)}, not {tuple(expected[key].shape)}")
    for places in _places(model).values():
        if name in places.by_name:
            old = places.by_name[name]
            own = {key: tensors[key].to(expected[key]) for key in old.tensors()}  # type: ignore[operator]
            new = old.fixed(own).train(old.training)  # type: ignore[operator]
            learned = any(parameter.requires_grad for parameter in old.parameters())
            places.by_name[name] = new.requires_grad_(learned)


def _stacks(model: LanguageModel, settings: VirtualSettings) -> dict[str, Stack]:
    """The stacks that get learned positions, by name."""
    there = {name: child for name, child in model.named_children() if isinstance(child, Stack)}
    if not isinstance(settings, PrefixTuningSettings):
        return {name: stack for name, stack in there.items() if not stack.reads_source}
    if settings.stacks == "all":
        return there
    if not isinstance(model, EncoderDecoder):
        raise UserError(f"peft.stacks={settings.stacks}: this model has one stack; leave it out")
    return {settings.stacks: there[settings.stacks]}


def _refuse_long(name: str, stack: Stack, count: int) -> None:
    """UserError where the positions would leave no room for text."""
    known = stack.config.max_positions
    if stack.positions is not None and count >= known:
        raise UserError(f"peft.virtual_tokens={count}: the {name} has learned {known} positions: give fewer")


def _part(
    model: LanguageModel, each: str, stack: Stack, settings: VirtualSettings, seed: int, tokenizer: Any
) -> Prompt | Prefix:
    """What an adapter learns for one stack, at its start."""
    config, P = model.config, settings.virtual_tokens
    if isinstance(settings, PromptSettings):
        return Prompt(_start(model, settings, seed, tokenizer))
    if isinstance(settings, PTuningSettings):
        width = settings.width or config.width
        network = nn.Sequential(
            nn.Linear(config.width, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, config.width),
        )
        _draw(network, seed, "prompt.network")
        return Prompt(_normal((P, config.width), 1.0, seed, "prompt.vectors"), network)
    parts = 4 if stack.reads_source and settings.stacks == "all" else 2
    shape = (parts, len(stack.blocks), config.kv_heads, config.head_width)
    if settings.projection_width:
        made = Made(_normal((P, config.width), 1.0, seed, f"{each}.prefix.vectors"), settings.projection_width, shape)
        _draw(made.network, seed, f"{each}.prefix.network")
        return Prefix(each, None, made)
    full = (*shape[:2], P, *shape[2:])
    return Prefix(each, _normal(full, config.init_std, seed, f"{each}.prefix.keys_values"))


@torch.no_grad()
def _start(model: LanguageModel, settings: PromptSettings, seed: int, tokenizer: Any) -> Tensor:
    """(P, D) fp32: what a prompt begins as."""
    P, config = settings.virtual_tokens, model.config
    if settings.start == "random":
        return _normal((P, config.width), config.init_std, seed, "prompt.vectors")
    if settings.start == "vocabulary":
        ids = torch.randint(config.vocab_size, (P,), generator=_generator(seed, "prompt.ids"))
    else:
        if not settings.text or tokenizer is None:
            what = "peft.text, the text to begin as" if not settings.text else "the model's tokenizer"
            raise UserError(f"peft.start=text needs {what}; or choose start: vocabulary")
        text = list(tokenizer.encode(settings.text))
        if not text:
            raise UserError(f"peft.text={settings.text!r} has no tokens: give a longer text")
        ids = torch.tensor((text * (P // len(text) + 1))[:P])
    return model.embedding(ids[None].to(model.device))[0].detach().float().cpu().clone()  # type: ignore[no-any-return]


def _draw(network: nn.Module, seed: int, name: str) -> None:
    """Weights uniform in +-1/sqrt(in), biases 0."""
    for own, parameter in network.named_parameters():
        with torch.no_grad():
            if parameter.ndim == 1:
                parameter.zero_()
            else:
                bound = parameter.shape[1] ** -0.5
                parameter.uniform_(-bound, bound, generator=_generator(seed, f"{name}.{own}"))


def _normal(shape: tuple[int, ...], std: float, seed: int, name: str) -> Tensor:
    return torch.empty(shape, dtype=torch.float32).normal_(0.0, std, generator=_generator(seed, name))


def _generator(seed: int, name: str) -> torch.Generator:
    """Seeded by (seed, name), as those of a model's own weights."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def _places(model: nn.Module) -> dict[str, Places]:
    """All places for learned positions, by the names of their modules."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Places)}


def _parts(model: nn.Module, name: str) -> dict[str, Any]:
    """Those of one adapter, by the names of the places they are at."""
    return {place: places.by_name[name] for place, places in _places(model).items() if name in places.by_name}
