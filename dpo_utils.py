"""Chapter zero: what the scripts share, in the order in which the data flows. Read it from top to bottom.

    configuration      parse_args, run                        flags and recipes, exit codes
    loading            load_model, load_preferences           a policy, its tokenizer, its pairs
    formatting         format_pair, prompt_ids, show_pairs    a pair as text, as turns, as tokens
    generating         sample_completions, sample_at          what the model says
    log-probs          sequence_logps, sequence_kl            how likely that is, and how far the policy has moved
    during training    watch                                  a log line, a reply now and then, a word when it goes wrong
    after training     report_change                          the table of before and after

What refuses a user's mistake, settles defaults, repairs or recovers is in machinery/, by subjects; its README.md is the
map. docs/pieces.md says which functions can be taken into another project, and how.
"""

import json
import logging
import os
import sys
import warnings
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from itertools import islice, pairwise
from typing import Literal, NamedTuple

# TRL reports its use to the hub. Here nothing is sent unless the user asks for it (HF_HUB_DISABLE_TELEMETRY=0).
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Where the hub cannot be reached PEFT cannot look whether a vocabulary has grown. None grows here: what does not fit its
# tokenizer is refused.
warnings.filterwarnings("ignore", message=r"Could not find a config file in .* the vocabulary was not modified")
# TRL 1.16 itself uses these old names of Transformers, so the advice to change them is not for the reader.
warnings.filterwarnings("ignore", message=r"`\w*gradient_checkpointing\w*` is deprecated", category=FutureWarning)

import torch
from datasets import Dataset, IterableDataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import DatasetMixtureConfig, DPOConfig, ModelConfig, ScriptArguments

from machinery.command.flag_help import ADAPTER_FLAGS, FEWER_FLAGS, FLAGS, TRAINING_FLAGS
from machinery.command.outlets import lasting_outlets
from machinery.command.settings import settle
from machinery.common.chat import (
    Turns,
    check_template,
    has_thought,
    most_tokens,
    read_reply,
    reply_start,
    warn_of_cut_thoughts,
)
from machinery.common.errors import UserError
from machinery.common.for_a_while import in_mode
from machinery.common.intervals import mean_interval, with_interval
from machinery.common.safe_text import first_line, inert_record, make_libraries_inert, progress_bar, say, visible
from machinery.data.load import load_pairs
from machinery.data.tokens import end_of_turn, shorten_prompt, tokenise
from machinery.evaluation.metrics import kl_interval
from machinery.evaluation.true_reward import show_scores, show_true_rewards
from machinery.hardware.memory import give_back_freed_memory, keep_freed_memory
from machinery.models.adapters import base_of, load_adapter, noted_beside
from machinery.models.checks import FROM_SAFETENSORS, check_loaded, look_at, said_in_a_sentence
from machinery.models.generation import end_ids, neutral_generation, own_precision
from machinery.models.log_probs import at_hand, sum_over_completions
from machinery.models.sharded_weights import on_whole_weights, waits_for_shards
from machinery.runs.failures import end_together, exit_code, print_traceback
from machinery.runs.folder import close_output_dir
from machinery.runs.identity import keep_checkpoints
from machinery.runs.interrupts import SaveOnSignal, Stopped, signals_stop
from machinery.watching.log_lines import PreviewReply, show_log_lines
from machinery.watching.warning_list import WarningList
from machinery.watching.watcher import Watcher

Turn = dict  # {"role": "user", "content": "..."}
Prompt = str | list[Turn]  # and Turns where tools, keywords of the template or thoughts belong to it

logging.getLogger("dpo").addFilter(inert_record)
make_libraries_inert()
WarningList("dpo", "trl", "transformers")  # for warnings.jsonl


# --- Configuration ---------------------------------------------------------------------------------------------------


def _flag(name: str, **default):
    """A field that --help and --help_all describe in the same words."""
    return field(metadata={"help": FLAGS[name]}, **default)


@dataclass
class TutorialArguments(ScriptArguments):
    """TRL's script arguments (dataset_name and its splits), and those of this tutorial."""

    dataset_format: str = _flag("dataset_format", default="auto")
    columns: str | None = _flag("columns", default=None)
    verdict: str | None = _flag("verdict", default=None)
    encoding: str = _flag("encoding", default="utf-8")
    pairing: str = _flag("pairing", default="best_worst")
    min_margin: float = _flag("min_margin", default=0.0)
    held_out_share: float = _flag("held_out_share", default=0.0)
    skip_bad_rows: bool = _flag("skip_bad_rows", default=False)
    keep_findings: list[str] = field(default_factory=list, metadata={"help": FLAGS["keep_findings"]})
    keep_plain: bool = _flag("keep_plain", default=False)
    num_eval_prompts: int = _flag("num_eval_prompts", default=8)
    max_new_tokens: int | None = _flag("max_new_tokens", default=None)
    traceback: bool = _flag("traceback", default=False)
    # No flags: `parse_args` fills them in.
    source: str | DatasetMixtureConfig | None = field(default=None, init=False)  # the name, or a recipe's mixture
    data_kwargs: dict = field(default_factory=dict, init=False)  # what `load_preferences` takes
    model_kwargs: dict = field(default_factory=dict, init=False)  # what `load_model` takes
    is_model_given: bool = field(default=False, init=False)  # whether the user has named it
    is_data_given: bool = field(default=False, init=False)


@dataclass
class TutorialConfig(DPOConfig):
    """TRL's DPO configuration (beta, loss_type, learning_rate, max_length and a hundred more), and what TRL lacks."""

    max_prompt_length: int | None = _flag("max_prompt_length", default=None)
    shared_prompt: bool = _flag("shared_prompt", default=True)
    shared_prompt_attention: Literal["mask", "flex"] = field(
        default="mask",
        metadata={
            "help": "flex: FlexAttention for shared rows on a GPU (not yet tried on one); mask: a mask for SDPA."
        },
    )
    precompute_ref_log_probs: bool = _flag("precompute_ref_log_probs", default=True)
    max_tokens_per_batch: int | None = _flag("max_tokens_per_batch", default=None)
    reference_cache: str | None = field(
        default="runs/.cache/reference", metadata={"help": "Where precomputed reference log-probs are kept."}
    )
    overwrite_output_dir: bool = _flag("overwrite_output_dir", default=False)
    stop_on_warning: bool = _flag("stop_on_warning", default=False)
    # No flags: `parse_args` fills them in.
    is_output_dir_given: bool = field(default=False, init=False)
    is_output_dir_claimed: bool = field(default=False, init=False)
    reads: dict = field(default_factory=dict, init=False)  # the models, data and files that the run is given
    checkpointing_if_needed: bool = field(default=False, init=False)  # where the user left it open
    merges: bool = field(default=False, init=False)  # an adapter, in the end


def parse_args(
    description: str,
    demo: dict,
    argv: list[str] | None = None,
    arguments: type[TutorialArguments] = TutorialArguments,
    flags: dict[str, str] | None = None,
    rare: Collection[str] = (),
    takes_adapters: bool = False,
    **how,
) -> tuple[TutorialArguments, TutorialConfig, ModelConfig]:
    """Read flags and recipe with TRL's own names and parser.

    description: the script's docstring, printed by --help. demo: the settings that hold when the model is the demo's
    and the user says nothing else. argv: the command line, that of the process by default. arguments: the script's own
    flags besides those of all scripts. flags: what --help shows besides the script's own; those that matter in training
    by default. rare: the script's own that only --help_all shows. takes_adapters: whether the script knows what to do with
    --use_peft. how: defaults (the script's own for every model), losses, by_loss, needs_data; see
    machinery/command/settings.py. Raises UserError.
    """
    in_all = {*TutorialArguments.__dataclass_fields__, *rare}
    own = {f.name: f.metadata["help"] for f in fields(arguments) if f.name not in in_all}
    shown = own | (flags or (ADAPTER_FLAGS | FEWER_FLAGS if takes_adapters else TRAINING_FLAGS))
    argv = sys.argv[1:] if argv is None else argv
    dataclasses = (arguments, TutorialConfig, ModelConfig)
    return settle(dataclasses, description, shown, demo, list(argv), takes_adapters=takes_adapters, **how)


def run(main) -> None:
    """Run a script's main function: a user's mistake becomes one sentence and exit code 2, a failed training 1.

    A signal ends it with a sentence and 130, 143 or 129; output that nobody can read any more does not end it.
    """
    sys.excepthook = print_traceback
    is_finished = False
    with lasting_outlets():
        try:
            with signals_stop():
                main()
                end_together()
            is_finished = True
        except (Exception, KeyboardInterrupt, Stopped) as error:
            code = exit_code(error)
            if code is None:
                raise  # a fault of ours
            raise SystemExit(code) from None
        finally:
            close_output_dir(is_finished)


# --- Loading ---------------------------------------------------------------------------------------------------------


def load_model(
    name: str, tokenizer_from: str | None = None, **init_kwargs
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, with a pad token.

    name: a folder or a hub name. tokenizer_from: the folder of an adapter that has a tokenizer of its own. init_kwargs: for
    `from_pretrained` (revision, dtype, attn_implementation, ...).
    Only safetensors are read: other weight files can run code when they are loaded.
    Raises UserError where there is no such model, or it is not one that DPO can train.
    """
    hub_kwargs = {key: init_kwargs[key] for key in ("revision", "trust_remote_code") if key in init_kwargs}
    with said_in_a_sentence(name):
        config = look_at(name, **hub_kwargs)
        model, report = AutoModelForCausalLM.from_pretrained(name, config=config, **FROM_SAFETENSORS, **init_kwargs)
        tokenizer = load_tokenizer(tokenizer_from or name, **init_kwargs)
        check_loaded(model, report, tokenizer)
    keep_freed_memory(True)
    return model, tokenizer


def load_tokenizer(name: str, **init_kwargs) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer, with a pad token. Raises UserError where it has no EOS, or is not there."""
    hub_kwargs = {key: init_kwargs[key] for key in ("revision", "trust_remote_code") if key in init_kwargs}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **hub_kwargs)
    except Exception as error:  # a broken file makes the libraries fail anywhere
        raise UserError(f"{name}: its tokenizer cannot be loaded: {first_line(error)}.") from error
    check_template(tokenizer)
    if tokenizer.eos_token is None:
        raise UserError(f"{name}: its tokenizer has no EOS token, so the model could not learn to stop.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, so any token will do
    # It warns of the first long text only; `load_preferences` counts them all, and max_length cuts them.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    # Where a chat template ends an answer by a token of its own (Gemma's <end_of_turn>), a reply ends there.
    tokenizer.eos_token = end_of_turn(tokenizer) or tokenizer.eos_token
    return tokenizer


def load_any(name: str, **init_kwargs) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """Load a full model, or an adapter's folder as its base with the adapter merged into it, to be used and not trained.

    On a quantised base the adapter stays beside it: rounded weights are no place to add anything to.
    """
    base = base_of(name)
    if base is None:
        return load_model(name, **init_kwargs)
    model, tokenizer = load_model(base, **init_kwargs | noted_beside(name))
    adapted = load_adapter(model, name)
    return adapted if getattr(model, "is_quantized", False) else adapted.merge_and_unload(), tokenizer


def load_any_tokenizer(name: str, **init_kwargs) -> PreTrainedTokenizerBase:
    """The tokenizer that `load_any` gives, without the model."""
    base = base_of(name)
    own = {} if base is None else noted_beside(name)
    return load_tokenizer(own.pop("tokenizer_from", None) or base or name, **init_kwargs | own)


def load_reference(name: str, tokenizer: PreTrainedTokenizerBase, **init_kwargs) -> PreTrainedModel:
    """Load another model than the policy as its reference; tokenizer: the policy's, in whose tokens it is asked.

    Raises UserError where its own tokenizer gives one of these another number, or none.
    """
    reference, own = load_model(name, **init_kwargs)
    numbers = own.get_vocab()
    if any(numbers.get(token) != number for token, number in tokenizer.get_vocab().items()):
        raise UserError(
            f"--reference {name} has another tokenizer than the policy, so log-probs of the same tokens mean other words. "
            "Name a model of the same family."
        )
    return reference


def load_preferences(
    source: str | DatasetMixtureConfig, tokenizer: PreTrainedTokenizerBase | None, **how
) -> tuple[Dataset | IterableDataset | None, Dataset | IterableDataset | None, dict]:
    """Load preference data of any usual shape as the pairs that TRL trains on, without those that teach nothing.

    source: a file, folder or hub name, or a mixture as TRL's recipes describe it. tokenizer: gets a plain chat template
    if it has none and the pairs are conversations; None only examines the texts. how: dataset_format, columns,
    held_out_share and more, see `load_pairs` in machinery/data/load.py.
    Returns the training pairs, the held-out pairs (None where nothing is held out), both with a column "rows", and a
    report by split. Raises UserError that names the file and the row.
    """
    train_pairs, eval_pairs, reports, notes = load_pairs(source, tokenizer, format_pair, **how)
    for note in notes:
        say(note)
    return train_pairs, eval_pairs, reports


def pick_prompts(pairs: Dataset | IterableDataset, count: int) -> list[Prompt]:
    """The first `count` different prompts, each with the tools and the keywords that its pair is trained on with."""
    picked = {}
    for row in pairs:
        if len(picked) == count:
            break
        prompt = row["prompt"]
        if not isinstance(prompt, str):
            kwargs = row.get("chat_template_kwargs")
            thinks = any(has_thought(row[part]) for part in ("chosen", "rejected") if part in row)
            if "chosen" not in row:  # prompts alone can only ask for it
                thinks = bool(kwargs and kwargs.get("enable_thinking"))
            prompt = Turns(prompt, row.get("tools"), kwargs, thinks)
        picked.setdefault(json.dumps([prompt, row.get("tools")], sort_keys=True), prompt)
    if any(getattr(prompt, "thinks", False) for prompt in picked.values()):
        say("Answers begin with a thought here, and so do the replies; what is shown and judged comes after it.")
    return list(picked.values())


# --- Formatting ------------------------------------------------------------------------------------------------------


def format_pair(
    pair: dict, tokenizer: PreTrainedTokenizerBase, as_turns: bool = True, max_prompt_length: int | None = None
) -> dict:
    """One pair as this tokenizer needs it: prompt, chosen and rejected as three strings or three lists of turns.

    pair: strings or turns. as_turns: write strings as a user's and an assistant's turn, so that the chat template is
    used. max_prompt_length: shorten the prompt to so many tokens (see `shorten_prompt`); ValueError where that cannot
    be done.
    """
    prompt, chosen, rejected = pair["prompt"], pair["chosen"], pair["rejected"]
    if isinstance(prompt, str) and as_turns:
        prompt = [{"role": "user", "content": prompt}]
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    full = prompt
    if max_prompt_length is not None:
        kwargs = pair.get("chat_template_kwargs")
        prompt = shorten_prompt(prompt, tokenizer, max_prompt_length, pair.get("tools"), kwargs)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "is_shortened": prompt != full}


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """A prompt in tokens, as the model sees it before its reply: see `reply_start`."""
    return reply_start(tokenizer, prompt)


def pair_ids(row: dict, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int], list[int]]:
    """Prompt, chosen and rejected answer of a formatted pair in tokens, as TRL trains on them."""
    parts = (row["prompt"], row["chosen"], row["rejected"])
    return tokenise(*parts, tokenizer, row.get("tools"), row.get("chat_template_kwargs"))[:3]


MOST_TOKENS_SHOWN = 300


def show_pairs(pairs: Dataset, tokenizer: PreTrainedTokenizerBase, count: int, max_length: int | None = None) -> None:
    """Print pairs as the model sees them: every [token] in brackets is trained on, the rest is what it follows from.

    max_length: rows are cut to so many tokens, at their end.
    """
    for number, row in enumerate(islice(pairs, count)):
        prompt, *answers = pair_ids(row, tokenizer)
        say(f"\nPair {number}" + (f", from row {', '.join(map(str, row['rows']))}" if "rows" in row else ""))
        say(f"  {'prompt':<9}{visible(tokenizer.decode(prompt))}")
        for name, whole in zip(("chosen", "rejected"), answers, strict=True):
            ids = whole if max_length is None else whole[: max(0, max_length - len(prompt))]
            shown = prompt[-1:] + ids[:MOST_TOKENS_SHOWN]
            # decoded as they grow, because some tokenizers drop the space before a token that stands alone
            ends = [len(tokenizer.decode(shown[:end])) for end in range(1, len(shown) + 1)]
            text = tokenizer.decode(shown)
            tokens = "".join(f"[{visible(text[start:end])}]" for start, end in pairwise(ends))
            more = " ..." if len(ids) > MOST_TOKENS_SHOWN else ""
            cut = f", {len(whole) - len(ids)} are cut by --max_length {max_length}" if len(ids) < len(whole) else ""
            say(f"  {name:<9}{tokens}{more}  {len(ids)} tokens{cut}")


# --- Generating ------------------------------------------------------------------------------------------------------


class Completion(NamedTuple):
    """A sampled reply."""

    text: str
    prompt_ids: list[int]
    ids: list[int]  # with the EOS token, if it came
    is_finished: bool  # whether the model stopped by itself
    thought: str = ""  # what came before the text, where the answers of the pairs think


@torch.no_grad()
@on_whole_weights
def sample_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    *,
    max_new_tokens: int | None = None,
    temperature: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    progress: str | None = None,
) -> list[Completion]:
    """Sample one reply to each prompt from the model's own distribution: no top-k, no top-p, no repetition penalty.

    prompts: texts or turns; Turns that think are answered with a thought, which stands apart from the text.
    max_new_tokens: 256 by default, and 1,024 where there are thoughts. temperature: 1 samples what the KL is defined
    on; 0 takes the most likely token each time. progress: a label for a progress bar, and a word about thoughts that
    were cut off. A reply ends at any token by which the tokenizer or the model's configuration ends one. Draws from a
    generator of its own, so training goes on with the same bits.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    rows = [prompt_ids(tokenizer, prompt)[1 - positions :] for prompt in prompts]  # room for one token at least
    most = max_new_tokens or most_tokens(prompts)
    ends = end_ids(model, tokenizer)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))  # like lengths together: little padding
    completions: list[Completion | None] = [None] * len(rows)
    devices = [] if model.device.type == "cpu" else [model.device]
    bar = progress_bar(total=len(rows), desc=progress, disable=progress is None)
    with (
        in_mode(model, training=False),
        torch.random.fork_rng(devices),
        own_precision(model),
        neutral_generation(model),
        bar,
    ):
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            # The last prompt token is what the next one is predicted from, so padding goes to the left.
            batch = tokenizer.pad({"input_ids": [rows[n] for n in numbers]}, padding_side="left", return_tensors="pt")
            batch = batch.to(model.device)
            sampled = model.generate(
                **batch,
                max_new_tokens=min(most, positions - batch["input_ids"].shape[1]),
                do_sample=temperature > 0,
                temperature=temperature or None,
                top_k=0 if temperature > 0 else None,  # left alone it would be 50
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=ends,
            )
            for number, ids in zip(numbers, sampled[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                length = next((at + 1 for at, token in enumerate(ids) if token in ends), None)
                ids, is_finished = ids[:length], length is not None
                thought, text = read_reply(tokenizer, prompts[number], ids, is_finished)
                completions[number] = Completion(text, rows[number], ids, is_finished, thought)
            bar.update(len(numbers))
    if progress is not None:
        warn_of_cut_thoughts(progress, most, completions)
    return completions


# --- Log-probs -------------------------------------------------------------------------------------------------------


def sequence_logps(
    model: PreTrainedModel,
    rows: list[tuple[list[int], list[int]]],
    pad_token_id: int,
    batch_size: int = 32,
    progress: str | None = None,
) -> torch.Tensor:
    """The log-probability of each completion given its prompt: log pi(y|x), the SUM over the completion's tokens.

    rows: pairs of token lists (prompt, completion). progress: a label for a progress bar.
    Returns shape (len(rows),), float32, on the CPU.
    """

    def of_the_tokens(logps, batch):  # position t predicts token t + 1
        return logps.gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)

    return sum_over_completions(model, rows, pad_token_id, of_the_tokens, batch_size, progress)


def pair_logps(
    model: PreTrainedModel, pairs: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None
) -> tuple[torch.Tensor, ...]:
    """What a model makes of given pairs: log pi of the chosen and of the rejected answers, as TRL computes them.

    max_length: rows are cut to so many tokens, at their end. Returns chosen and rejected log-probs, and the lengths of
    both answers in tokens; each of shape (len(pairs),).
    """
    rows = []
    for row in pairs:
        prompt, *answers = pair_ids(row, tokenizer)
        room = None if max_length is None else max(0, max_length - len(prompt))
        rows.append([(prompt[:max_length], answer[:room]) for answer in answers])
    flat = [answer for answers in zip(*rows, strict=True) for answer in answers]  # all chosen, then all rejected
    logps = sequence_logps(model, flat, tokenizer.pad_token_id, progress="given answers")
    lengths = torch.tensor([len(answer) for _, answer in flat])
    return *logps.chunk(2), *lengths.chunk(2)


def describe_logp(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, row: dict, most: int = 5) -> str:
    """In words what the log-probability of a formatted pair's chosen answer is made of: that of each of its tokens.

    most: how many tokens are shown; the sum is that of all.
    """
    prompt, chosen, _ = pair_ids(row, tokenizer)
    steps = [(prompt + chosen[:at], [token]) for at, token in enumerate(chosen)]  # each given all that stands before it
    logps = sequence_logps(model, steps, tokenizer.pad_token_id)
    words = [visible(tokenizer.decode(token)).strip() for _, token in steps[:most]]
    shown = [f"{word} {logp:.2f}" for word, logp in zip(words, logps.tolist(), strict=False)]
    return f"{', '.join(shown)}, ... ({len(chosen)} tokens): {logps.sum():.2f}"


def sequence_kl(
    policy: PreTrainedModel, reference: PreTrainedModel | None, completions: list[Completion], pad_token_id: int
) -> tuple[float, float, float]:
    """How far the policy has moved: KL(policy || reference) over whole completions, in nats, with its 95% interval.

    See `sequence_kls`. Returns (mean, low, high).
    """
    rows = [(completion.prompt_ids, completion.ids) for completion in completions]
    return kl_interval(sequence_kls(policy, reference, rows, pad_token_id).tolist())


def sequence_kls(
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    rows: list[tuple[list[int], list[int]]],
    pad_token_id: int,
) -> torch.Tensor:
    """One estimate of KL(policy || reference) a completion, (len(rows),): over its tokens the sum of the exact KL
    between what both predict for the next one.

    reference: None where the policy is an adapter and its reference lies underneath. rows: (prompt, completion) in
    tokens, sampled from the policy at temperature 1. The mean of log policy(y|x) - log reference(y|x) is the same on
    average, and noisier: it takes of each step only the token that was drawn.
    """
    with at_hand(reference, policy) as of_reference:

        def of_the_steps(logps, batch):
            of_its = of_reference(batch).to(logps.device)
            # One may have more embeddings than the other, which pad it: no token has them.
            width = min(logps.shape[-1], of_its.shape[-1])
            # Row by row, as the vocabulary is large. Where neither gives a token any chance, as a mask of the vocabulary
            # does, there is nothing to differ in.
            of_rows = zip(logps[..., :width], of_its[..., :width], strict=True)
            kls = [(row.exp() * (row - ref)).nan_to_num(0.0, posinf=torch.inf).sum(-1) for row, ref in of_rows]
            return torch.stack(kls)

        return sum_over_completions(policy, rows, pad_token_id, of_the_steps)


# --- During training -------------------------------------------------------------------------------------------------


def watch(trainer, tokenizer: PreTrainedTokenizerBase, preview_prompt: Prompt, is_the_policy: bool = True) -> None:
    """Give a trainer a bar, short log lines, a reply now and then, a watcher, and checkpoints that a kill cannot spoil.

    preview_prompt: the most likely reply to it is printed after an eighth, a quarter and half of the training; the
    watcher samples others, unseen. It warns of what goes wrong, and with `stop_on_warning` in the trainer's arguments
    ends there. is_the_policy: whether the reference is meant to be the policy as it is now. Raises UserError where the
    run is to go on from a checkpoint of another one.
    """

    most = most_tokens([preview_prompt]) if getattr(preview_prompt, "thinks", False) else None

    def reply(model) -> str:
        [completion] = sample_completions(model, tokenizer, [preview_prompt], temperature=0, max_new_tokens=most or 64)
        return visible(completion.text or f"(thinks) {completion.thought}")

    def sample(model) -> list[tuple[list[int], bool]]:
        replies = sample_completions(model, tokenizer, [preview_prompt] * 8, max_new_tokens=most or 128)
        return [(reply.ids, reply.is_finished) for reply in replies]

    keep_checkpoints(trainer)
    show_log_lines(trainer)
    trainer.add_callback(PreviewReply(reply))
    trainer.add_callback(SaveOnSignal())
    has_reference = getattr(trainer, "needs_reference", True)
    stop_on_warning = getattr(trainer.args, "stop_on_warning", False)
    trainer.add_callback(Watcher(has_reference, stop_on_warning, sample, is_the_policy=is_the_policy))


# --- After training --------------------------------------------------------------------------------------------------


def sample_at(
    temperatures: tuple[float, ...], model, tokenizer, prompts: list[Prompt], **options
) -> dict[float, list[Completion]]:
    """Replies by temperature, each by `sample_completions`, which takes the rest of the arguments.

    Where FSDP has still to cut the model up they are empty: whole, it lies on a CPU, where sampling would take hours.
    """
    if waits_for_shards(model):
        say("Replies before training are not sampled: until FSDP shards it, the model is whole on a CPU.")
        return {t: [Completion("(not sampled)", [], [], False)] * len(prompts) for t in temperatures}
    sampled = {t: sample_completions(model, tokenizer, prompts, temperature=t, **options) for t in temperatures}
    give_back_freed_memory()  # caches of keys and values are of other sizes than what a training step needs
    return sampled


def report_change(
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    before: dict[float, list[Completion]],
    after: dict[float, list[Completion]],
    truth=None,
    judge=None,
) -> dict[str, float]:
    """Print what training changed in the replies to held-out prompts, and return it for metrics.json.

    reference: see `sequence_kl`. before, after: one reply a prompt, by temperature: 1 are the policy's samples before
    and after training, 0 its likeliest replies.
    truth: where the true reward of any reply is known, see Truth in demo/world.py. judge: one that scores replies.
    Returns kl, reply_tokens_before and reply_tokens_after (a sampled reply's length, EOS included) and, with a truth,
    rewards, win rates and garbled shares (see `show_true_rewards`), with a judge its scores and win rates; each with the ends of its 95% interval
    over prompts as name_ci_low and name_ci_high.
    """
    say("\nThe same prompts before and after")
    for prompt, old, new in list(zip(prompts, before[1], after[1], strict=True))[:3]:
        question = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        say(f"  prompt   {visible(str(question))}\n  before   {visible(old.text)}\n  after    {visible(new.text)}\n")

    measured = {"kl": sequence_kl(policy, reference, after[1], tokenizer.pad_token_id)}
    sampled = {"before": before[1], "after": after[1]} if any(reply.ids for reply in before[1]) else {"after": after[1]}
    for when, replies in sampled.items():
        measured[f"reply_tokens_{when}"] = mean_interval([float(len(reply.ids)) for reply in replies])
    if truth is not None and "before" in sampled:  # under FSDP there are no replies before training
        measured |= show_true_rewards(truth, prompts, before, after)
    if judge is not None and "before" in sampled:
        measured |= show_scores(judge, prompts, before, after)
    say(f"KL from the reference, nats a reply: {with_interval(measured['kl'])}")
    lengths = [with_interval(measured[f"reply_tokens_{when}"], 1) for when in sampled]
    say(f"Tokens a reply, {' and '.join(sampled)}: {', '.join(lengths)}")
    ends = ("", "_ci_low", "_ci_high")
    return {name + end: value for name, values in measured.items() for end, value in zip(ends, values, strict=True)}


if __name__ == "__main__":
    with lasting_outlets():
        say(__doc__)  # it is to be read and imported; the scripts are to be run
