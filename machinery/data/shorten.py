"""Shorten a prompt to a number of tokens without touching what matters most in it.

    prompt = shorten_prompt(prompt, tokenizer, max_tokens=512)

Whole exchanges go first, the oldest before the others; then the start of the last user turn. The system turn stays,
and so does all that follows the last user turn (a tool call and its result). TRL had `max_prompt_length` for this and
cut tokens wherever they fell; it has nothing now.
"""

import json


def shorten_prompt(prompt: str | list[dict], tokenizer, max_tokens: int, tools=None) -> str | list[dict]:
    """The prompt, shortened until with its template it has at most `max_tokens` tokens. Plain text loses its start.

    tools: as the chat template takes them, or as a JSON string. Raises ValueError where shortening is not enough.
    """
    tools = json.loads(tools) if isinstance(tools, str) else tools

    def fits(candidate: str | list[dict]) -> bool:
        if isinstance(candidate, str):
            return len(tokenizer(candidate)["input_ids"]) <= max_tokens
        encoded = tokenizer.apply_chat_template(candidate, add_generation_prompt=True, tools=tools or None)
        return len(encoded["input_ids"]) <= max_tokens

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
