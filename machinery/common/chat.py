"""One route from a conversation to tokens: training, sampling and judging write it by the same call of its template.

    prompt = Turns([{"role": "user", "content": "Hello"}], tools=row["tools"])   # a list of turns, and what goes with it
    ids = template_ids(tokenizer, prompt, prompt.tools, prompt.template_kwargs)
    ids = reply_start(tokenizer, prompt)              # what a reply follows, as in the pairs that were trained on
    thought, text = read_reply(tokenizer, prompt, reply_ids)

A chat template is called with more than turns: with the tools that may be used, with keywords of its own
(`enable_thinking`), and answers may carry a thought. All of it changes the tokens, so it has to be the same everywhere.
"""

import json
import logging
import re
from itertools import pairwise

import jinja2

from .bounds import ends_within, fits_within
from .errors import UserError

# A template is a program that came with a model: it can fail in any of these ways.
TEMPLATE_ERRORS = (
    jinja2.TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError
)  # fmt: skip
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # where a turn keeps its thought, by the template's family
MARKS = ("<think>", "</think>")  # around it, unless a template has others
MOST_TOKENS = {"plain": 256, "thinking": 1024}  # of a reply, where nothing else is said
SECONDS = 10  # for a template and a row, which take less than a thousandth of one
SECONDS_TRIED = 5  # for a template and some short conversations
MOST_CHARACTERS = 10**6  # of a template, and of what it writes about a conversation of a few words
THOUGHT, ANSWER = "Let-me-see", "So-it-is"  # of no template, so that they are found again


class Turns(list):
    """The turns of a prompt, with what its template takes besides.

    tools: as JSON, or None. template_kwargs: keywords for the template. thinks: whether the pairs' answers to it begin
    with a thought.
    """

    def __init__(self, turns=(), tools: str | None = None, template_kwargs: dict | None = None, thinks: bool = False):
        super().__init__(turns)
        self.tools, self.template_kwargs, self.thinks = tools, template_kwargs, thinks


def as_text(prompt: str | list[dict]) -> str:
    """A prompt for people and judges to read, each turn under its role, and first the tools that may be used."""
    if isinstance(prompt, str):
        return prompt
    tools = getattr(prompt, "tools", None)
    return "\n\n".join(
        [f"tools: {tools}"] * bool(tools) + [f"{turn['role']}: {turn.get('content') or ''}" for turn in prompt]
    )


def template_ids(tokenizer, turns: list[dict], tools: str | list | None = None, kwargs: dict | None = None, **how):
    """Turns in tokens. tools: as JSON or as a list. how: more for `apply_chat_template`. Raises what the template raises."""
    given = json.loads(tools) if isinstance(tools, str) and tools else tools or None
    how = dict(tokenize=True, return_dict=True) | how
    with template_ends(tokenizer):
        encoded = tokenizer.apply_chat_template(list(turns), tools=given, **how, **(kwargs or {}))
    return encoded["input_ids"] if how["tokenize"] else encoded


def template_ends(tokenizer, seconds: float = SECONDS):
    """For a block: UserError where the tokenizer's chat template runs without end, see `ends_within`."""
    return ends_within(seconds, f"{tokenizer.name_or_path or 'The tokenizer'}: its chat template")


def check_template(tokenizer) -> None:
    """Try a chat template on short conversations, before it meets data. Raises UserError that names the tokenizer.

    A template is a program. Refused are those that run without end, that take gigabytes, and that write a million
    characters about a few words; also those that raise to a power, since nothing can interrupt 9 ** 9 ** 9, and whose
    names lead out of the folder in which `save_pretrained` writes each under its own. What it makes of rows that it was
    not tried on is bounded in time alone. That it refuses a conversation is said where the data are read.
    """
    templates = tokenizer.chat_template or {}
    templates = templates if isinstance(templates, dict) else {"default": templates}
    name = tokenizer.name_or_path or "The tokenizer"
    for title, template in templates.items():
        if not isinstance(title, str) or not re.fullmatch(r"[\w-][\w .-]{0,99}", title):
            raise UserError(f"{name}: a chat template is called {str(title)[:100]!r}, which is no name of a file.")
        if not isinstance(template, str):
            raise UserError(f"{name}: its chat template {title} is no text.")
        if len(template) > MOST_CHARACTERS:
            raise UserError(f"{name}: its chat template {title} has {len(template):,} characters; that is no template.")
    question, answer = {"role": "user", "content": "How?"}, {"role": "assistant", "content": ANSWER}
    system = {"role": "system", "content": "Be kind."}
    tried = [question], [question, answer], [system, question, answer, question, answer]
    with template_ends(tokenizer, SECONDS_TRIED), fits_within(2**31, f"{name}: its chat template"):
        for template in templates.values():
            if _raises_to_a_power(template):
                raise UserError(
                    f"{name}: its chat template raises to a power (**), which can take hours: write the number."
                )
            for turns in tried:
                try:
                    text = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
                except UserError:
                    raise
                except TEMPLATE_ERRORS:
                    continue
                if len(text) > MOST_CHARACTERS:
                    raise UserError(
                        f"{name}: its chat template writes {len(text):,} characters about {len(turns)} short turns."
                    )


def _raises_to_a_power(template: str) -> bool:
    """Whether ** stands between two values; behind ( and , it hands over keywords."""
    try:
        found = [(kind, word) for _, kind, word in jinja2.Environment().lex(template) if kind != "whitespace"]
    except jinja2.TemplateError:
        return False  # it does not compile either
    return any(
        word == "**" and kind == "operator" and before[1] not in "(," for before, (kind, word) in pairwise(found)
    )


def reply_start(tokenizer, prompt: str | list[dict]) -> list[int]:
    """The tokens that a reply follows: those in which answers of the pairs are trained on, up to their own first word.

    A template may write more before an answer than behind a prompt, an empty thought for one: a reply follows that too.
    Where answers of the pairs think (`prompt.thinks`), the reply begins with its own thought.
    """
    if isinstance(prompt, str):
        ids, eos = tokenizer(prompt)["input_ids"], tokenizer.eos_token_id
        if len(ids) > 1 and ids[-1] == eos and not prompt.endswith(tokenizer.eos_token):
            ids = ids[:-1]  # some tokenizers end every text by it
        return ids or [eos if tokenizer.bos_token_id is None else tokenizer.bos_token_id]
    how = getattr(prompt, "tools", None), getattr(prompt, "template_kwargs", None)
    asked = template_ids(tokenizer, prompt, *how, add_generation_prompt=True)
    thinks = getattr(prompt, "thinks", False)
    thought = dict.fromkeys(THOUGHTS, THOUGHT) if thinks else {}
    try:
        one, other = (
            template_ids(tokenizer, [*prompt, {"role": "assistant", "content": answer} | thought], *how)
            for answer in (ANSWER, "Well")
        )
    except UserError:  # it does not end
        raise
    except TEMPLATE_ERRORS:  # it may take no answer without more
        return asked
    start = asked[: common_length(asked, one)] if thinks else one[: common_length(one, other)]
    return start if start and one != other else asked


def has_thought(answer: str | list[dict]) -> bool:
    """Whether an answer of a pair thinks before it speaks."""
    turns = [{"content": answer}] if isinstance(answer, str) else answer
    return any(any(turn.get(key) for key in THOUGHTS) or "</think>" in str(turn.get("content") or "") for turn in turns)


def most_tokens(prompts: list) -> int:
    """How many tokens a reply may have where nothing else is said: more where replies think."""
    return MOST_TOKENS["thinking" if any(getattr(prompt, "thinks", False) for prompt in prompts) else "plain"]


def read_reply(tokenizer, prompt: str | list[dict], ids: list[int], is_finished: bool = True) -> tuple[str, str]:
    """A reply's thought, "" where it has none, and its text. ids: its tokens, with the EOS."""
    if not getattr(prompt, "thinks", False):  # it may think all the same, as some models always do
        return split_thought(tokenizer.decode(ids, skip_special_tokens=True), *MARKS, is_finished)
    marks = thought_marks(tokenizer, prompt.template_kwargs)
    thought, text = split_thought(tokenizer.decode(ids), *marks, is_finished)  # the marks may be special tokens
    for token in tokenizer.all_special_tokens:
        text = text.replace(token, "")
    return thought, text


def warn_of_cut_thoughts(name: str, most: int, replies: list) -> None:
    """Say how many replies ended inside their thought. replies: with thought, text and is_finished. most: their bound."""
    cut = sum(bool(reply.thought) and not reply.is_finished and not reply.text for reply in replies)
    if cut:
        logging.getLogger("dpo").warning(
            f"{name}: {cut} of {len(replies)} ended inside their thought and have no answer: raise --max_new_tokens {most}."
        )


def thought_marks(tokenizer, kwargs: dict | None = None) -> tuple[str, str]:
    """What the template writes before a thought and between it and the answer, such as <think> and </think>."""
    turns = [{"role": "user", "content": "How?"}]
    answer = {"role": "assistant", "content": ANSWER} | dict.fromkeys(THOUGHTS, THOUGHT)
    if not tokenizer.chat_template:
        return MARKS
    try:
        asked = template_ids(tokenizer, turns, None, kwargs, add_generation_prompt=True, tokenize=False)
        whole = template_ids(tokenizer, [*turns, answer], None, kwargs, tokenize=False)
    except UserError:
        raise
    except TEMPLATE_ERRORS:
        return MARKS
    before, found, rest = whole.partition(THOUGHT)
    if not found or ANSWER not in rest:
        return MARKS
    return before[common_length(before, asked) :].strip(), rest.partition(ANSWER)[0].strip()


def split_thought(text: str, opening: str, closing: str, is_finished: bool = True) -> tuple[str, str]:
    """A reply's thought and its answer. A thought that was cut off has no answer; a reply may do without a thought."""
    thought, found, answer = text.rpartition(closing)
    if found:
        return thought.strip().removeprefix(opening).strip(), answer.strip()
    if is_finished or not text.strip().startswith(opening):  # an empty opening stands in the prompt already
        return "", text
    return text.strip().removeprefix(opening).strip(), ""


def common_length(first, second) -> int:
    """How many items two sequences have in common at their beginning."""
    low, high = 0, min(len(first), len(second))
    while low < high:  # by bisection: slices are compared at once, items one by one
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle - 1)
    return low
