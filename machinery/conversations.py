"""Check and split the texts of preference pairs: plain strings and lists of turns.

    check_text([{"role": "user", "content": "Hello"}])                 # ValueError says what is wrong with it
    prompt, chosen, rejected = split_turns(chosen_conversation, rejected_conversation)
    prompt, chosen, rejected = split_text("The capital is Paris", "The capital is Panama")

A turn is a dictionary with a role and a content. Splitting serves data that has no prompt of its own.
"""


def check_text(value) -> None:
    """Accept a string or a non-empty list of turns. Raises ValueError that says what else it is."""
    if isinstance(value, str):
        return
    if not isinstance(value, list):
        kinds = {
            "NoneType": "null",
            "int": "a number",
            "float": "a number",
            "dict": "one object",
            "bool": "true or false",
        }
        kind = kinds.get(type(value).__name__, type(value).__name__)
        raise ValueError(f"is {kind}; text or a list of turns is needed")
    if not value:
        raise ValueError("is an empty list")
    for turn in value:
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise ValueError(f"holds {turn!r:.60}, which is no turn with a role and a content")
        if not isinstance(turn.get("content"), (str, list)) and not turn.get("tool_calls"):
            raise ValueError(f"has a turn of role {turn['role']!r} whose content is no text")


def split_turns(chosen: list[dict], rejected: list[dict]) -> tuple[list[dict], list[dict], list[dict]]:
    """Split two conversations where they part: before the last turn, or earlier if they differ earlier."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == 0:
        raise ValueError("chosen and rejected are conversations with no beginning in common, so there is no prompt")
    if chosen[shared]["role"] != "assistant" or rejected[shared]["role"] != "assistant":
        raise ValueError("chosen and rejected part at a turn that is not the assistant's")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split two texts where they part, but never inside a word ("Paris" and "Panama" part before the P)."""
    shared = next((n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), 0)
    while shared > 0 and not chosen[shared - 1].isspace():
        shared -= 1
    while shared > 0 and chosen[shared - 1].isspace():  # the space belongs to the word behind it, as tokenizers have it
        shared -= 1
    return chosen[:shared], chosen[shared:], rejected[shared:]
