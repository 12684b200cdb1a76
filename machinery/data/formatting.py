"""Pairs in the form of their tokenizer: turns or plain text, prompts shortened, and what each pair is in tokens.

    as_turns, notes = form_for(tokenizer, {"turns"}, "pairs.csv")
    pairs, facts = format_pairs(rows, key, "pairs.csv", {"turns"}, tokenizer, format_pair, as_turns, max_length=1024)

What was formatted is kept on disk, under a hash of all that it depends on and with a checksum of its own.
"""

import inspect
import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import datasets
import transformers
from accelerate import PartialState
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher, get_temporary_cache_files_directory
from filelock import FileLock

from ..common import chat
from ..common.chat import TEMPLATE_ERRORS, template_ends
from ..common.errors import UserError
from ..common.kept_files import forget_damaged, forget_oldest, forget_untouched, going_on_without, seal
from ..common.safe_text import first_line
from . import store, tokens
from .tokens import TemplateTrial, token_facts

logger = logging.getLogger("dpo")

MOST_BYTES = 2_000_000_000  # of formatted pairs that are kept on disk
HEX = "[0-9a-f]" * 16  # a key, with which the names of what is kept begin

# For base models: no token is added, because its embedding would be random. The EOS ends what is trained on.
PLAIN_CHAT_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    "{{ message['role'] | capitalize + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)


def form_for(tokenizer, kinds: set[str], name: str, keep_plain: bool = False) -> tuple[bool, list[str]]:
    """Whether pairs are to be turns, and what is to be said; gives the tokenizer a template where it lacks one.

    kinds: what was seen among the pairs of the split `name`: "text", "turns", "rich turns".
    """
    has_turns = bool(kinds & {"turns", "rich turns"})
    if has_turns and tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
        logger.warning("The tokenizer has no chat template: turns are written as 'User: ...' and 'Assistant: ...'.")
    if has_turns or tokenizer.chat_template is None:
        why = "there are turns among the pairs" if has_turns else "the tokenizer has no chat template"
        return has_turns, [f"{name}: --keep_plain does nothing: {why}."] if keep_plain else []
    if keep_plain:
        return False, []
    how = "plain strings become a user's and an assistant's turn (--keep_plain leaves them plain)"
    return True, [f"{name}: {how}."]


def format_pairs(
    found: Dataset,
    key: list,
    name: str,
    kinds: set[str],
    tokenizer,
    format_pair: Callable,
    as_turns: bool,
    step: int = 1,
    num_proc: int | None = None,
    max_prompt_length: int | None = None,
    max_length: int | None = None,
) -> tuple[Dataset, list[dict]]:
    """Pairs from JSON to the columns that TRL reads, and what `token_facts` says of every `step`th.

    found: from `store.spool`. key: what they depend on. name: for the bar. format_pair(pair, tokenizer, as_turns,
    max_prompt_length): returns prompt, chosen, rejected and is_shortened; raises ValueError where the prompt cannot be
    shortened so far.
    """
    facts = {"lengths": List(Value("int64")), "unknown": Value("int64"), "flags": List(Value("string"))}
    features = Features(
        store.pair_features(kinds, as_turns) | {"facts": facts | {"text": Value("string"), "where": Value("string")}}
    )
    how = {"as_turns": as_turns, "step": step, "columns": list(features)}
    how |= {"max_prompt_length": max_prompt_length, "max_length": max_length}
    code = [Path(file).read_bytes() for file in (__file__, store.__file__, tokens.__file__, chat.__file__)]
    try:
        code.append(inspect.getsource(format_pair))
    except (OSError, TypeError):  # typed into a session
        code += [format_pair.__code__.co_code, repr(format_pair.__code__.co_consts)]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else [tokenizer.name_or_path, len(tokenizer)]
    versions = [datasets.__version__, transformers.__version__]
    key = Hasher.hash([*key, how, code, versions, words, tokenizer.chat_template, tokenizer.eos_token])
    make = partial(
        found.map,
        format_row,
        with_indices=True,
        fn_kwargs={"tokenizer": tokenizer, "format_pair": format_pair, "trial": TemplateTrial(tokenizer), **how},
        features=features,
        remove_columns=["pair"],
        num_proc=num_proc if num_proc and len(found) >= 1000 else None,
        new_fingerprint=key,
        desc=f"formatting {name}",
    )
    formatted, folder = None, Path(datasets.config.HF_DATASETS_CACHE) / "dpo_pairs"
    with PartialState().main_process_first(), going_on_without("Formatted pairs", folder):
        formatted = _kept_or_made(make, folder / f"{key}.arrow")
    if formatted is None:  # a process for itself, where nothing is left behind
        formatted = make(cache_file_name=str(Path(get_temporary_cache_files_directory(), f"{key}.arrow")))
    return formatted.remove_columns("facts"), formatted["facts"]


def _kept_or_made(make: Callable[..., Dataset], kept: Path) -> Dataset:
    """What make(cache_file_name) returns, from disk where it is kept as it was written. Raises OSError."""
    is_main = PartialState().is_main_process
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(kept.with_suffix(".lock")):  # two runs at once: the second waits, and finds them made
        if is_main:
            with suppress(FileNotFoundError):
                os.utime(kept)  # what is used is not old
            forget_oldest(kept.parent, f"{HEX}*.arrow", MOST_BYTES)
            forget_untouched(kept.parent.glob("tmp*"))  # as `datasets` calls what it is still writing
            forget_damaged(_files(kept))
        intact = _files(kept)
        made = make(cache_file_name=str(kept))
        if is_main:
            for file in _files(kept):
                if file not in intact:
                    seal(file)
    return made


def _files(kept: Path) -> list[Path]:
    """The file, or one for each process."""
    return sorted(kept.parent.glob(f"{kept.stem}*.arrow"))


def format_row(row, index, tokenizer, **how) -> dict:
    """One row of `format_pairs`, under one clock for all that a template does with it."""
    with template_ends(tokenizer):
        return _format_row(row, index, tokenizer, **how)


def _format_row(
    row, index, tokenizer, format_pair, trial, as_turns, step, max_prompt_length, max_length, columns
) -> dict:
    pair = json.loads(row["pair"])
    facts = {"lengths": [], "flags": [], "text": "", "unknown": 0}
    if not store.survives(pair):
        facts["flags"].append("number_changed")
    try:
        formatted = format_pair(pair, tokenizer, as_turns, max_prompt_length)
    except UserError:  # the template does not end
        raise
    except TEMPLATE_ERRORS as error:
        formatted = format_pair(pair, tokenizer, as_turns)
        flag = "prompt_too_long" if isinstance(error, ValueError) else "template_error"
        facts |= {"flags": [*facts["flags"], flag], "text": first_line(error)}
    if index % step == 0 and not facts["flags"]:
        texts = [formatted[part] for part in ("prompt", "chosen", "rejected")]
        facts = token_facts(*texts, tokenizer, max_length, pair.get("tools"), pair.get("chat_template_kwargs"))
    elif not facts["flags"] and (refusal := trial.refusal(pair | formatted)):
        facts |= {"flags": ["template_error"], "text": refusal}
    if formatted.pop("is_shortened"):
        facts["flags"].append("prompt_shortened")
    made = {"chat_template_kwargs": {}} | pair | formatted | {"facts": facts | {"where": pair["where"]}}
    return {name: made.get(name) for name in columns}
