"""A pair in the tokens that training sees: what they are, what is wrong with them, and prompts made to fit.

    prompt, chosen, rejected, rest = tokenise("How?", " So.", " No.", tokenizer)
    facts = token_facts(prompt, chosen, rejected, tokenizer, max_length=1024)    # lengths, findings, a text about them
    reason = TemplateTrial(tokenizer).refusal(pair)                              # "System role not supported"
    prompt = shorten_prompt(prompt, tokenizer, max_tokens=512)

A prompt that is too long loses whole exchanges, the oldest first; then the start of the last user turn. The system turn
stays, and so does all that follows the last user turn (a tool call and its result). TRL had `max_prompt_length` for
this and cut tokens wherever they fell; it has nothing now.
"""

from ..common.chat import TEMPLATE_ERRORS, THOUGHTS, common_length, has_thought, template_ids
from ..common.errors import UserError
from ..common.safe_text import first_line


def tokenise(prompt, chosen, rejected, tokenizer, tools: str | None = None, kwargs: dict | None = None):
    """A pair in the tokens that TRL trains on: the answers begin where prompt and prompt with answer part.

    prompt, chosen, rejected: three strings or three lists of turns. tools: as JSON. kwargs: for the chat template.
    Returns (prompt, chosen, rejected, rest) as lists of ids; rest is the end of the prompt's own tokens that training
    leaves out, empty if all is well. Raises what the chat template raises.
    """

    def encode(answer) -> list[int]:
        if isinstance(prompt, str):
            ids = tokenizer(prompt if answer is None else prompt + answer)["input_ids"]
            return ids if answer is None or ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id]
        turns = prompt if answer is None else prompt + answer
        return template_ids(tokenizer, turns, tools, kwargs, add_generation_prompt=answer is None)

    alone, *whole = encode(None), encode(chosen), encode(rejected)
    length = min(common_length(alone, ids) for ids in whole)
    return alone[:length], whole[0][length:], whole[1][length:], alone[length:]


def token_facts(prompt, chosen, rejected, tokenizer, max_length: int | None = None, tools=None, kwargs=None) -> dict:
    """What training on a pair means in tokens: lengths of prompt, chosen, rejected, findings, and a text about them."""
    try:
        parts = tokenise(prompt, chosen, rejected, tokenizer, tools, kwargs)
    except UserError:  # it does not end
        raise
    except TEMPLATE_ERRORS as error:
        return {"lengths": [], "unknown": 0, "flags": ["template_error"], "text": first_line(error)}

    def drops_thought(answer, ids) -> bool:
        """Whether the template writes the same tokens without the thought that a turn carries."""
        if isinstance(answer, str) or not has_thought(answer):
            return False
        bare = [{key: value for key, value in turn.items() if key not in THOUGHTS} for turn in answer]
        return bare != answer and tokenise(prompt, bare, bare, tokenizer, tools, kwargs)[1][-len(ids) :] == ids

    start, *answers, rest = parts
    if answers[0] == answers[1]:
        text = "in tokens both answers are the same" if answers[0] else "it leaves the answers out"
        return {"lengths": [], "unknown": 0, "flags": ["template_error"], "text": text}
    lengths = [len(ids) for ids in parts[:3]]
    flags, text = [], ""
    if max_length is not None and lengths[0] >= max_length:
        flags.append("fills_max_length")
    elif max_length is not None and lengths[0] + max(lengths[1:]) > max_length:
        flags.append("answer_cut")
    if rest:
        flags.append("prompt_not_prefix")
        text = f"left out of the prompt: {tokenizer.decode(rest)!r}"
    if tokenizer.bos_token_id is not None and start[:2] == [tokenizer.bos_token_id] * 2:
        flags.append("doubled_bos")
    # some templates write a line break behind the EOS, hence the last three
    if any([tokenizer.eos_token_id] * 2 in (ids[-3:-1], ids[-2:]) for ids in answers):
        flags.append("doubled_eos")
    if any(tokenizer.eos_token_id not in ids[-3:] for ids in answers):
        flags.append("no_eos")
    if any(map(drops_thought, (chosen, rejected), answers)):
        flags.append("thought_left_out")
    unknown = 0
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id != tokenizer.eos_token_id:
        unknown = sum(ids.count(tokenizer.unk_token_id) for ids in parts[:3])
        flags += ["unknown_tokens"] if unknown else []
    return {"lengths": lengths, "unknown": unknown, "flags": flags, "text": text}


class TemplateTrial:
    """Whether a chat template takes a pair, tried once for each form of conversation: its roles, keys and kinds of cells.

    A template refuses a system turn or two questions in a row, whatever they say. So it need not write every pair, and
    no pair that it refuses comes as far as the trainer.
    """

    def __init__(self, tokenizer):
        self.tokenizer, self.taken = tokenizer, set()

    def refusal(self, pair: dict) -> str | None:
        """What the template says against a formatted pair, or None. Raises UserError where it does not end."""
        prompt, tools, kwargs = pair["prompt"], pair.get("tools"), pair.get("chat_template_kwargs")
        if isinstance(prompt, str):
            return None
        turns = (prompt, pair["chosen"], pair["rejected"])
        form = repr([[[(key, type(cell)) for key, cell in turn.items() if key != "role"] + [turn.get("role")] for turn in part]
                     for part in turns] + [bool(tools), kwargs])  # fmt: skip
        if form in self.taken:
            return None
        try:
            for answer in turns[1:]:
                template_ids(self.tokenizer, prompt + answer, tools, kwargs, tokenize=False)
            template_ids(self.tokenizer, prompt, tools, kwargs, tokenize=False, add_generation_prompt=True)
        except UserError:
            raise
        except TEMPLATE_ERRORS as error:
            return first_line(error)
        self.taken.add(form)
        return None


def end_of_turn(tokenizer) -> str | None:
    """The token by which the chat template ends an answer, where that is another than the tokenizer's EOS.

    Gemma's is <end_of_turn>: a reply ends there, and one that is sampled until <eos> would go on for ever.
    """
    if tokenizer.chat_template is None:
        return None
    turns = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So-it-ends"}]
    try:
        text = template_ids(tokenizer, turns, tokenize=False)
    except UserError:  # it does not end
        raise
    except Exception:  # what a template refuses is said where the pairs are read
        return None
    end = text.rpartition("So-it-ends")[2].strip()
    return end if end in tokenizer.get_added_vocab() else None


# --- Shorter ---------------------------------------------------------------------------------------------------------


def shorten_prompt(
    prompt: str | list[dict], tokenizer, max_tokens: int, tools=None, kwargs: dict | None = None
) -> str | list[dict]:
    """The prompt, shortened until with its template it has at most `max_tokens` tokens. Plain text loses its start.

    tools: as the chat template takes them, or as a JSON string. kwargs: for the chat template. Raises ValueError where
    shortening is not enough.
    """

    def fits(candidate: str | list[dict]) -> bool:
        if isinstance(candidate, str):
            return len(tokenizer(candidate)["input_ids"]) <= max_tokens
        return len(template_ids(tokenizer, candidate, tools, kwargs, add_generation_prompt=True)) <= max_tokens

    if fits(prompt):
        return prompt
    if isinstance(prompt, str):
        return cut_start(prompt, fits)

    head = [turn for turn in prompt[:1] if turn["role"] in ("system", "developer")]
    turns = prompt[len(head) :]
    # Whole exchanges, because many templates insist that user and assistant alternate.
    questions = [number for number, turn in enumerate(turns) if turn["role"] == "user"]
    for start in questions:
        if start > 0 and fits(head + turns[start:]):  # from 0 on it is the whole, which did not
            return head + turns[start:]
    if not questions or not isinstance(turns[questions[-1]]["content"], str):
        raise ValueError(f"the prompt cannot be shortened to {max_tokens} tokens: it has no user's text to cut")
    question, rest = turns[questions[-1]], turns[questions[-1] + 1 :]

    def with_text(text: str) -> list[dict]:
        return [*head, question | {"content": text}, *rest]

    return with_text(cut_start(question["content"], lambda text: fits(with_text(text))))


def cut_start(text: str, fits) -> str:
    """The longest end of a text for which `fits(end)` is true, found by bisection over its characters."""
    if not fits(""):
        raise ValueError("even without its question the prompt is longer than max_prompt_length")
    low, high = 0, len(text)  # text[high:] fits, text[low:] does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(text[middle:]) else (middle, high)
    return text[high:]
