"""What a model says by itself: in its own precision, by no rule but its probabilities, up to any of its ends.

with own_precision(model), neutral_generation(model):
    sampled = model.generate(**batch, eos_token_id=end_ids(model, tokenizer))
"""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All tokens that end a reply: the tokenizer's EOS, and those of the model's configurations, which may have several."""
    configs = (model.generation_config, model.config.get_text_config())
    named = [tokenizer.eos_token_id, *(getattr(config, "eos_token_id", None) for config in configs)]
    listed = [ends if isinstance(ends, list) else [ends] for ends in named]
    return list(dict.fromkeys(end for ends in listed for end in ends if end is not None))


@contextmanager
def own_precision(model: PreTrainedModel) -> Iterator[None]:
    """Without the autocast that a training leaves around a model: as before it, and as when it is loaded again."""
    trained, own = vars(model).get("forward"), vars(model).get("_original_forward")  # where accelerate keeps it
    try:
        if own is not None:
            model.forward = own
        yield
    finally:
        if own is not None:
            model.forward = trained


@contextmanager
def neutral_generation(model: PreTrainedModel) -> Iterator[None]:
    """None of the penalties and cuts of a generation_config.json: they make replies that are not the model's own."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # under an adapter
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
