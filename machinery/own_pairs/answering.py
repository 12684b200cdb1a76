"""Several answers to each prompt, by the policy or by others; sampled once, and kept as they come.

splits, are_texts = prompts_by_split(args, seed, tokenizer, dpo_utils)
answers = several_answers(splits, "demo/model", policy, tokenizer, args, training_args, dpo_utils)
answers["train"][0][2].text, answers["train"][0][2].is_finished          # the third answer to the first prompt

`utils` is the module dpo_utils, which a room is handed and does not import.
"""

import random
from typing import NamedTuple

from ..answers.kept import sample_kept
from ..answers.prompts import all_prompts
from ..answers.server import server_from_flags
from ..answers.written import Answer
from ..common.chat import most_tokens
from ..common.errors import UserError
from ..data.store import cleaned_files
from ..models.adapters import base_of
from ..models.sharded_weights import check_whole

MOST_AT_ONCE = 64  # answers in a batch; more are hardly faster, and a kill costs a batch


class Sampled(NamedTuple):
    """An answer, and who wrote it."""

    text: str
    model: str
    is_finished: bool


def prompts_by_split(args, seed: int, tokenizer, utils) -> tuple[dict[str, list], bool]:
    """The different prompts of each split, of those to train on --num_prompts; and whether the data have them as texts.

    Raises UserError. Pairs count for their prompts: what is chosen and rejected is sampled anew.
    """
    rows, are_texts = all_prompts(args.source, tokenizer, utils.load_preferences, utils.format_pair, **args.data_kwargs)
    splits = {split: utils.pick_prompts(some, len(some)) for split, some in rows.items()}
    for split in splits if args.save_cleaned else ():
        cleaned_files(args.save_cleaned, split, "train")  # refused now, and not after all have answered
    if any(getattr(prompt, "thinks", False) for some in splits.values() for prompt in some):
        raise UserError(
            f"{args.dataset_name or 'datasets'}: answers to its prompts begin with a thought, and --sample_answers samples none."
        )
    prompts = splits["train"]
    order = random.Random(f"{seed} prompts").sample(range(len(prompts)), len(prompts))
    if args.num_prompts is None:
        drawn = sorted(order[args.skip_prompts :])
    else:  # a later round begins again where there are no others left
        some = range(args.skip_prompts, args.skip_prompts + min(args.num_prompts, len(order)))
        drawn = sorted(order[number % len(order)] for number in some)
    if not drawn:
        raise UserError(f"--skip_prompts {args.skip_prompts} leaves none of {len(prompts)} prompts.")
    return splits | {"train": [prompts[number] for number in drawn]}, are_texts


def held_out(splits: dict[str, list], count: int) -> list:
    """The first prompts of the last split, which no round is trained on; where nothing is held out, of those that are."""
    return list(splits.values())[-1][:count]


def several_answers(
    splits: dict[str, list], name: str, policy, tokenizer, args, training_args, utils
) -> dict[str, list[list[Sampled]]]:
    """For each prompt of each split, --sample_answers answers of each who answers: the policy, or --sample_from, or a server.

    name: of the policy. Raises UserError.
    """
    check_whole("--sample_answers")
    for who in args.sample_from:
        base_of(who)  # refuses what cannot be loaded: better now than after the first has answered
    most = {split: args.max_new_tokens or most_tokens(prompts) for split, prompts in splits.items()}
    how, count = dict(temperature=args.temperature, seed=training_args.seed), args.sample_answers
    found = {split: [] for split in splits}
    # A pair that is evaluated takes the logits of all its tokens, an answer that is sampled those of one at a time.
    at_once = min(MOST_AT_ONCE, 8 * training_args.per_device_eval_batch_size)
    for who in args.sample_from or [name] * (args.answers_url is None):
        model, own = (policy, tokenizer) if who == name else utils.load_any(who, **args.model_kwargs)
        model.to(training_args.device)
        own.chat_template = own.chat_template or tokenizer.chat_template
        for split, prompts in splits.items():
            repeated = [prompt for prompt in prompts for _ in range(count)]
            how_many = dict(batch_size=at_once, max_new_tokens=most[split], progress=f"{who} answers, {split}")
            flat = sample_kept(utils.sample_completions, model, own, repeated, **how, **how_many)
            texts = [Sampled(text, who, is_finished) for text, _, _, is_finished, _ in flat]
            found[split].append([texts[start : start + count] for start in range(0, len(texts), count)])
    if args.answers_url:
        for split, prompts in splits.items():
            found[split].append(_of_a_server(prompts, args, max_tokens=most[split], **how))
    return {
        split: [[answer for row in rows for answer in row] for rows in zip(*parts, strict=True)]
        for split, parts in found.items()
    }


def _of_a_server(prompts: list, args, **settings) -> list[list[Sampled]]:
    """None to a prompt that the server has refused."""
    server = server_from_flags(args)
    asked = server.ask(prompts, args.sample_answers, progress=f"{server.name} answers", **settings)
    failed = [row for row in asked if isinstance(row, str)]
    if len(failed) == len(asked):
        raise UserError(f"{server.name} answered no prompt: {failed[0]}.")
    # A thought that the server has left in the text is no part of the answer, as those of models here have none.
    read = [[] if isinstance(row, str) else [Answer.of(a["text"], a["finish_reason"]) for a in row] for row in asked]
    return [[Sampled(a.text, server.name, a.is_finished is not False) for a in row] for row in read]
