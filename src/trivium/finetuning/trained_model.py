"""The model of a fine-tuning run: opened, given the task's head and the method's weights, and saved again.

What is only read may be packed or in 16 bits (`base`); what is trained is in fp32. A head that is new to the model is
always trained beside the method.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trivium.checkpoints.adapters import save_adapter_directory
from trivium.checkpoints.bundle import Bundle, load
from trivium.checkpoints.config_files import read_config
from trivium.checkpoints.gguf_reading import plan_reading, tokenizer_of
from trivium.checkpoints.resolve import resolve_model
from trivium.errors import UserError
from trivium.finetuning.prepared import PreparedTask
from trivium.finetuning.recipe import FinetuneRecipe
from trivium.models.build import Model
from trivium.models.config import ModelConfig
from trivium.models.counts import num_parameters
from trivium.peft.apply import Adapter, add_adapter, remove_adapter
from trivium.peft.settings import ADDED, PeftSettings
from trivium.progress import Progress
from trivium.quantization.quantize import refuse_quantized
from trivium.quantization.schemes import scheme_for
from trivium.tokenizer.bpe import Tokenizer


def tokenizer_and_config(name: str) -> tuple[Tokenizer, ModelConfig]:
    """Of the model to start from. UserError for adapters, which are to be merged first."""
    try:
        path = resolve_model(name)
        if (path / "adapter_config.json").is_file():
            raise UserError(f"{name} is an adapter: make a model of it first (trivium merge {name} --out DIR)")
        if path.is_dir():
            return Tokenizer.load(path), read_config(path)[1]
        plan = plan_reading(path)
        return tokenizer_of(plan, str(path)), plan.config
    except UserError as error:
        raise UserError(f"start_from: {error}") from None


def trainable_model(recipe: FinetuneRecipe, task: PreparedTask, progress: Progress) -> tuple[Bundle, Adapter]:
    """The model of the recipe with the task's head and the method's weights, only these trainable."""
    packed = recipe.base not in ("fp32", "bf16", "fp16")
    _, config = tokenizer_and_config(recipe.start_from)
    wanted = task.head != config.head or (task.labels not in ((), config.labels))
    bundle = load(
        recipe.start_from,
        dtype="fp32" if packed else recipe.base,
        quantize=scheme_for(recipe.base) if packed else None,
        head=task.head if wanted else None,
        labels=task.labels if wanted else (),
    )
    for note in bundle.notes:
        progress.note(note)
    if recipe.peft.method not in ADDED:
        refuse_quantized(bundle.model, f"trained by peft={recipe.peft.method}, which changes its own weights")
    if task.chat_template is not None:
        bundle = replace(bundle, tokenizer=bundle.tokenizer.with_chat_template(task.chat_template))
    settings: PeftSettings = recipe.peft
    if wanted:  # a head that nobody has trained yet
        settings = settings.model_copy(update={"also_train": (*settings.also_train, "head")})
    adapter = add_adapter(bundle.model, settings, seed=recipe.seed, tokenizer=bundle.tokenizer)
    return replace(bundle, model=bundle.model.train()), adapter


def save_result(place: Path, bundle: Bundle, adapter: Adapter, recipe: FinetuneRecipe) -> None:
    """Write the adapter, or the model as a whole."""
    if recipe.peft.method in ADDED:
        save_adapter_directory(
            place, bundle.model, adapter.name, base=recipe.start_from, tokenizer=bundle.tokenizer, family=bundle.family
        )
    else:
        remove_adapter(bundle.model, adapter.name)  # its weights are the model's own
        replace(bundle, eos_ids=ends_of(bundle)).save(place)


def ends_of(bundle: Bundle) -> tuple[int, ...]:
    """The ids that end what the model writes: those it came with, and the one that ends a turn of its template."""
    tokenizer = bundle.tokenizer
    ends = [*(bundle.eos_ids or (tokenizer.eos_id,)), None if tokenizer.chat is None else tokenizer.chat.end_of_turn_id]
    return tuple(dict.fromkeys(end for end in ends if end is not None))


def num_weights(model: Model, adapter: Adapter) -> int:
    """All parameters, packed ones by the numbers they stand for, those that the method adds included."""
    added = adapter.added_parameters(model).values()
    return num_parameters(model.config) + sum(parameter.numel() for parameter in added)


def num_trainable(model: Model) -> int:
    """Parameters that are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
