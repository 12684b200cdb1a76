"""Answers on disk as they come, so that none is sampled or paid for twice.

    kept = KeptAnswers("http://localhost:8000 my-model")           # or kept_for(model, tokenizer), by its weights
    answers = kept.get(key)                                        # None where there are none, or damaged ones
    kept.put(key, answers)                                         # one line, with its checksum

    sample_kept(sample_completions, model, tokenizer, prompts, seed=42, batch_size=64)      # each process its share

A batch is drawn with a seed of its own, so it comes out the same whatever was sampled before it and by which process.
"""

import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from peft.tuners.tuners_utils import BaseTunerLayer

from ..common import chat
from ..common.kept_files import KeptLines, forget_oldest, going_on_without
from ..common.safe_text import progress_bar, say
from ..common.token_rows import hash_weights

FOLDER = Path("runs/.cache/answers")
MOST_BYTES = 2_000_000_000
# A model's weights are hashed once, until something has written to them. What writes through `.data` is not seen.
_by_model: WeakKeyDictionary = WeakKeyDictionary()


def digest_of(*parts) -> str:
    """One hash of values that JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


class KeptAnswers:
    """A file of JSON lines for one model, in one folder with those of others."""

    def __init__(self, owner: str, folder: Path = FOLDER):
        """owner: all that decides its answers, besides what is in a key."""
        self.file = folder / f"{digest_of(owner)[:32]}.jsonl"
        self._lines, self._is_said = KeptLines(self.file, "The answers"), False
        with going_on_without("The answers", self.file):
            forget_oldest(folder, f"{'[0-9a-f]' * 32}.jsonl", MOST_BYTES, but=self.file)
        self._found = self._lines.read()

    def get(self, key: str):
        """What was put under this key, or None."""
        found = self._found.get(key, {}).get("answers")
        if found is not None and not self._is_said:
            say(f"Answers that were kept are used again; without {self.file} they are made anew.")
            self._is_said = True
        return found

    def put(self, key: str, answers) -> None:
        """Keep what JSON can write. A full disk ends no evaluation."""
        self._lines.put(key, answers=answers)


def kept_for(model, tokenizer) -> KeptAnswers:
    """What this very model has answered: by its weights, its tokenizer, and what computes with them."""
    now = _as_it_is_now(model, tokenizer)
    then, kept = _by_model.get(model, (None, None))
    if kept is None or then != now:  # new, trained since, or with other adapters switched on
        digest = hashlib.sha256()
        hash_weights(model.state_dict(), digest)
        config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
        about = [digest.hexdigest(), config, model.config._attn_implementation, model.device.type, *now[1:]]
        about += [torch.__version__, transformers.__version__, model.generation_config.eos_token_id]
        kept = KeptAnswers(digest_of(about))
        _by_model[model] = now, kept
    return kept


def _as_it_is_now(model, tokenizer) -> tuple:
    """What can change while a process runs: how often weights were written to, adapters that are on, the tokenizer."""
    written_to = sum(weight._version for weight in model.parameters() if not weight.is_inference())
    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    adapters = sorted({repr((layer.disable_adapters, layer.active_adapters)) for layer in layers})
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else f"{tokenizer.name_or_path} {len(tokenizer)}"
    return written_to, adapters, words, tokenizer.chat_template, tokenizer.eos_token


def share_of(count: int) -> range:
    """The numbers below `count` that this process is to do: every one for a process by itself."""
    state = PartialState()
    return range(state.process_index, count, state.num_processes)


def from_all(done: dict) -> dict:
    """What all processes have done, by number."""
    if PartialState().num_processes == 1:
        return done
    return dict(item for part in gather_object([list(done.items())]) for item in part)


def from_the_first(value):
    """A value as the first process has it, so that all go on alike."""
    return broadcast_object_list([value])[0] if PartialState().num_processes > 1 else value


def sample_kept(
    sample: Callable,
    model,
    tokenizer,
    prompts: list,
    *,
    seed: int,
    batch_size: int,
    progress: str | None = None,
    **settings,
) -> list:
    """One answer to each prompt, as `sample` gives them or, where they were kept, as lists of the same fields.

    sample(model, tokenizer, prompts, seed, batch_size, **settings): an answer a prompt, as tuples that JSON can write.
    """
    kept = kept_for(model, tokenizer)
    code = [inspect.getsource(sample), Path(chat.__file__).read_text(encoding="utf-8")]
    written = [json.dumps([prompt, getattr(prompt, "__dict__", None)]) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda number: (len(written[number]), number))  # like lengths together
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    mine, done = share_of(len(batches)), {}
    for number in progress_bar(mine, desc=progress, disable=progress is None or mine.start > 0):
        own_seed = int(digest_of(seed, number)[:8], 16)
        key = digest_of([written[n] for n in batches[number]], settings, own_seed, code)
        answers = kept.get(key)
        if answers is None:
            asked = [prompts[n] for n in batches[number]]
            answers = sample(model, tokenizer, asked, seed=own_seed, batch_size=batch_size, **settings)
            kept.put(key, answers)
        done |= dict(zip(batches[number], answers, strict=True))
    done = from_all(done)
    return [done[number] for number in range(len(prompts))]
