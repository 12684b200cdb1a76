"""Secrets that a user gave, in whatever flag, recipe or variable: found once, and shown nowhere.

remember_secrets(sys.argv, recipe)                      # from here on all that safe_text.py shows has *** in their place
command = " ".join(without_secrets(sys.argv))           # --hub_token *** --model_init_kwargs {"token": ***}
masked("https://me:pw@host/v1?api_key=sk-1")            # https://***@host/v1?api_key=***
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from urllib.parse import unquote

# A keyword names a secret if one of its words is of the first kind, or ends in one of the second: apiKey, hub_token,
# AWS_SECRET_ACCESS_KEY. The rest are parts of texts, and what is counted in them.
WORDS = "key auth pwd pat cookie".split()
ENDINGS = tuple("token secret secrets password passwd passphrase apikey credential credentials authorization".split())
NO_SECRETS = re.compile(
    r".*(pad|eos|bos|unk|sep|cls|mask|image|audio|video|start|end|stop|mean)_token(_\w+)?|key_?error|sort_key|token_budget"
)
KEYWORD = re.compile(r"""(?<![\w.-])([\w.-]+)\\*["']?\s*[:=]\s*""")  # as in JSON, YAML, Python, a flag or an address
# In YAML behind an anchor or a tag, as a list or a block of lines; quoted; to where a bracket is closed; or one word.
VALUE = re.compile(
    r"""(?:[&!]\S*\s+)*(?:-\s[^\n]*(?:\n\s*-\s[^\n]*)*|[|>][-+\d]*(?:\n[ \t]+[^\n]*)+"""
    r"""|(\\*)(["']).*?(?:(?<!\\)\1\2|$)|[\[{]|(?:(?:bearer|basic|token)\s+)?[^\s,;&"'\]})]+)""",
    re.IGNORECASE | re.DOTALL,
)
IN_ADDRESS = re.compile(r"(?<=://)[^/\s@\"']+(?=@)")  # a user's name and password, or a token in their place
SHORTEST, LONGEST_WORD = 6, 12

_secrets: set[str] = set()


def remember_secrets(words: Iterable[str], recipe: dict | None = None) -> None:
    """Find the secrets of a command line, of a recipe and of the environment, so that no text shows them any more."""
    found = [*_in_words(list(words)), *_in_values(recipe or {})]
    found += [value for name, value in os.environ.items() if names_secret(name) and not os.path.exists(value)]
    _secrets.update(form for value in found for form in (value, unquote(value)) if not _may_be_a_word(form))


def _may_be_a_word(text: str) -> bool:
    """Whether a secret is so plain that texts hold it by chance, as "another": it is masked beside its keyword only."""
    return len(text) < SHORTEST or (len(text) < LONGEST_WORD and text.isalpha() and text[1:].islower())


def names_secret(keyword: str) -> bool:
    """Whether a keyword of a flag, a file or the environment stands before a secret."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", keyword).lower()
    words = snake.split("_")
    return not NO_SECRETS.fullmatch(snake) and any(word in WORDS or word.endswith(ENDINGS) for word in words)


def masked(text: str) -> str:
    """A text with *** for what a keyword or an address in it says to be secret, and for all secrets that are known."""
    text, parts, done = IN_ADDRESS.sub("***", text), [], 0
    for start, end in _secret_values(text):
        parts += [text[done:start], "***"]
        done = end
    return without_known("".join(parts) + text[done:])


def without_secrets(words: list[str]) -> list[str]:
    """A command line to be shown, with *** in the place of secrets."""
    shown = []
    for flag, word in zip(["", *words], words, strict=False):
        name, equals, _ = word.partition("=")
        if flag.startswith("--") and names_secret(flag) and not word.startswith("--"):
            shown.append("***")
        else:
            is_whole = word.startswith("--") and equals and names_secret(name)
            shown.append(f"{name}=***" if is_whole else masked(word))
    return shown


def without_known(text: str) -> str:
    """A text with *** for all secrets that are known."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _secret_values(text: str) -> Iterator[tuple[int, int]]:
    """Where the values of secret keywords stand in a text, which may be JSON, broken JSON, an address, or a=b,c=d."""
    place = 0
    while keyword := KEYWORD.search(text, place):
        place = keyword.end()
        if not names_secret(keyword[1]) or not (value := VALUE.match(text, place)):
            continue
        start, place = place, value.end()
        if value[0].endswith(("{", "[")):  # to where it is closed, or to the end
            depth = 1
            while depth and place < len(text):
                depth += (text[place] in "{[") - (text[place] in "}]")
                place += 1
        yield start, place


def _in_words(words: list[str]) -> Iterator[str]:
    for flag, word in zip(["", *words], words, strict=False):
        name, equals, value = word.partition("=")
        if flag.startswith("--") and names_secret(flag):
            yield word
        elif name.startswith("--") and equals and names_secret(name):
            yield value
        yield from _in_text(word)


def _in_text(text: str) -> Iterator[str]:
    """Secrets in one value of a flag."""
    for user in IN_ADDRESS.findall(text):
        yield from (user, user.partition(":")[2])
    try:
        yield from _in_values(json.loads(text))
    except (ValueError, RecursionError):
        for start, end in _secret_values(text):
            yield text[start:end].strip("\\\"'[]{} ")
            if "\n" in text[start:end]:  # a list or a block of YAML
                yield from (line.strip("\\\"'[]{}-|> ") for line in text[start:end].splitlines())


def _in_values(values) -> Iterator[str]:
    """All values below a keyword that names a secret, and the secrets in the others."""
    for keyword, value in leaves(values):
        if keyword is not None:
            yield str(value)
        elif isinstance(value, str):
            yield from _in_text(value)


def leaves(values) -> Iterator[tuple[str | None, object]]:
    """What nested lists and dictionaries hold, each with the keyword above it that names a secret, or None.

    A part is looked at once, so that one that holds itself, as YAML can write it, has an end.
    """
    waiting, seen = [(None, values)], set()
    while waiting:
        keyword, value = waiting.pop()
        if not isinstance(value, (dict, list)):
            yield keyword, value
        elif (keyword, id(value)) not in seen:
            seen.add((keyword, id(value)))
            parts = value.items() if isinstance(value, dict) else ((None, part) for part in value)
            waiting += [
                (keyword or (name if isinstance(name, str) and names_secret(name) else None), part)
                for name, part in parts
            ]
