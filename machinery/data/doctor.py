"""Examine preference pairs: what is wrong with which row, what has to go, and what to look at.

    checkup = Checkup()
    for made in pairs_and_faults:           # {"prompt", "chosen", "rejected", "rows", "where"}, or a "fault" for the texts
        checkup.see(made)
    sound = checkup.sound()                 # which pairs are to be trained on
    report = checkup.report()               # counts, shares, the first rows of each finding, lengths, a verdict

It keeps numbers and hashes, not texts, so memory grows by some 300 bytes a pair, whatever their length. A finding drops
a pair if it teaches nothing or the wrong thing for certain; otherwise it is only reported. `tokens.token_facts`
adds what only the model's own tokenizer can tell.
"""

import array
import hashlib
import json
import re
from collections import Counter
from collections.abc import Container
from typing import NamedTuple

import numpy as np

from ..common.intervals import one_a_prompt, rate
from .report import verdict
from .store import OPTIONAL, SURROGATE


class Finding(NamedTuple):
    """A kind of finding: whether it drops the pair, what it is, what it means for training."""

    drops: bool
    title: str
    meaning: str


FINDINGS = {
    "unreadable": Finding(True, "rows that cannot be read", "Mend the file at the lines named."),
    "missing_field": Finding(True, "a field is missing or null", "Look where the rows come from."),
    "wrong_type": Finding(
        True, "a field of the wrong type", "A number, an image or an object where text should be, say."
    ),
    "unknown_verdict": Finding(
        True, "a verdict or label that the reading does not know", "Say what it means by --verdict VALUE=..."
    ),
    "names_a_column": Finding(True, "an answer that only names a column", "The text it stands for is in that column."),
    "broken_turns": Finding(
        True, "turns that are cut off, or written as Python writes them", "Write the column as JSON, whole."
    ),
    "other_form": Finding(True, "a cell written otherwise than its column", "Turns among texts, or texts among turns."),
    "converter_failed": Finding(True, "your converter failed", "Run it on the row named."),
    "invalid_unicode": Finding(True, "half a character (a lone surrogate)", "A text was cut inside a character."),
    "no_prompt": Finding(True, "no prompt can be found", "Name its column by --columns prompt=..."),
    "different_prompts": Finding(True, "chosen and rejected answer different prompts", "They cannot be compared."),
    "roles": Finding(True, "roles out of order", "Templates refuse these turns, or write nonsense."),
    "tie": Finding(True, "ties", "No answer is preferred, so there is nothing to learn."),
    "no_partner": Finding(
        True,
        "answers without a partner",
        "DPO needs two answers to one prompt. TRL's KTOTrainer learns from unpaired labels.",
    ),
    "not_chosen": Finding(
        True, "answers that the pairing left out", "--pairing all uses more of them, a lower --min_margin too."
    ),
    "cut_off": Finding(True, "a preferred answer that was cut off", "It would teach to stop in the middle."),
    "empty_answer": Finding(True, "an answer is empty or white space", "It teaches to say nothing."),
    "null_word": Finding(True, "an answer is only nan, null or None", "A missing value was written as a word."),
    "identical": Finding(True, "chosen and rejected are identical", "Their gradients cancel."),
    "answer_is_prompt": Finding(True, "an answer repeats the prompt", "It is a copying mistake, or an echo."),
    "opposite_label": Finding(
        True, "the same two answers with opposite labels", "One of the labels is wrong, and nobody can tell which."
    ),
    "duplicate": Finding(True, "exact duplicates of an earlier pair", "They count twice for no reason."),
    "in_test_split": Finding(True, "the prompt stands in the test split too", "Held-out figures would flatter."),
    "number_changed": Finding(
        True, "a number in a tool call cannot be stored exactly", "Write it as text, or shorter."
    ),
    "template_error": Finding(True, "the chat template refuses the turns", "See the first error below the table."),
    "fills_max_length": Finding(True, "the prompt alone fills max_length", "Raise --max_length, or shorten prompts."),
    "prompt_too_long": Finding(True, "the prompt cannot be shortened to max_prompt_length", "Raise it."),
    "near_duplicate": Finding(
        False, "near duplicates: equal but for case, space, punctuation", "Copies weigh more than other pairs."
    ),
    "empty_prompt": Finding(False, "the prompt is empty", "Is a column missing?"),
    "control_characters": Finding(False, "control characters", "Left over from a conversion?"),
    "replacement_characters": Finding(False, "replacement characters (U+FFFD)", "A text was decoded wrongly."),
    "nearly_alike": Finding(
        False,
        "pairs so alike that both answers may lose probability",
        "See likelihood displacement, arXiv:2410.08847. Watch the chosen log-prob.",
    ),
    "shared_beginning": Finding(
        False,
        "pairs that begin with the same 20 characters or more",
        "Harmless here; a split at the common prefix would take it for the prompt.",
    ),
    "chat_marks": Finding(
        False,
        "chat marks or turns of a transcript inside a text",
        "A chat template writes such marks a second time: take them out, or leave texts as they are by --keep_plain.",
    ),
    "scores_contradict": Finding(
        False, "the rejected answer has the higher score", "Either the scores or the labels are turned around."
    ),
    "few_prompts": Finding(False, "few distinct prompts", "Is the column of the prompt another one?"),
    "few_chosen": Finding(False, "few distinct chosen answers", "Are they labels or names, and the answers elsewhere?"),
    "few_rejected": Finding(
        False, "few distinct rejected answers", "Are they labels or names, and the answers elsewhere?"
    ),
    "answer_cut": Finding(False, "max_length cuts an answer", "The cut answer never ends: its EOS is lost."),
    "prompt_repeated": Finding(
        False,
        "both answers begin with the prompt",
        "It would be read twice: cut it off the answers, or out of the prompt.",
    ),
    "prompt_shortened": Finding(False, "max_prompt_length shortens the prompt", "The oldest turns go first."),
    "prompt_not_prefix": Finding(
        False,
        "the prompt's tokens are not the beginning of prompt and answer",
        "Trained on another context than is met when generating. See the tail below the table.",
    ),
    "doubled_bos": Finding(False, "two BOS tokens", "The template and the tokenizer both add one."),
    "doubled_eos": Finding(False, "two EOS tokens at the end", "The template writes one, and the text another."),
    "no_eos": Finding(False, "no EOS at the end of what is trained on", "The model will not learn to stop."),
    "thought_left_out": Finding(
        False,
        "the chat template leaves a thought out",
        "The answers are trained on without it. Does the model think, and its template know the turns' key?",
    ),
    "unknown_tokens": Finding(False, "texts with unknown tokens", "The tokenizer cannot write this text."),
}
KEEPABLE = ("empty_answer", "null_word", "identical", "answer_is_prompt", "opposite_label", "duplicate",
            "in_test_split")  # fmt: skip
ALIKE = 0.9  # share of words in common (Dice) from which a pair counts as nearly alike; a rule of thumb
SHARED_BEGINNING = 20  # characters
FIRST_ROWS = 10  # how many row numbers a finding names
PARTS = ("prompt", "chosen", "rejected")
NULL_WORDS = {"nan", "NaN", "NAN", "null", "NULL", "None", "<NA>", "#N/A", "undefined"}
CHAT_MARKS = re.compile(
    r"<[|\uff5c]\w+[|\uff5c]>|\[/?INST\]|<<SYS>>|<(start|end)_of_turn>|</s>|### (Response|Instruction|Assistant|Human):"
    r"|\n(Human|User|Assistant|ASSISTANT):| ASSISTANT:"
)
# Each such mark has one of these in it, which are quicker to rule out.
IN_CHAT_MARKS = (
    "<|",
    "INST]",
    "<<SYS>>",
    "_of_turn>",
    "\uff5c",
    "</s>",
    "### ",
    "\nHuman:",
    "\nUser:",
    "\nAssistant:",
    "ASSISTANT:",
)
CONTRADICTING = 0.3  # share of scores against the labels; noise in the labels, or two judges, may well give less
FEW = 20  # so many pairs to one text, or more, are many
MOST_COUNTED = 5000  # different texts; more are not few


CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# Letters keep their marks.
SPACE_AND_PUNCTUATION = re.compile("[\\s!-/:-@\\[-`{-~\u2000-\u206f\u3000-\u303f\uff01-\uff0f]+")
# For texts in ASCII: ten times as fast.
WITHOUT_THEM = dict.fromkeys(code for code in range(128) if SPACE_AND_PUNCTUATION.match(chr(code)))
WORD = re.compile(r"\w+")


class Checkup:
    """Sees every pair and fault of one split, and remembers what it found."""

    def __init__(self, elsewhere: Container[int] = (), keep: Container[str] = (), is_plain: bool = False):
        """elsewhere: prompt hashes of the test split. keep: findings of KEEPABLE that are to drop nothing. is_plain: no
        chat template will be written, so that marks in the texts are as they should be."""
        self.elsewhere, self.keep, self.is_plain = elsewhere, keep, is_plain
        self._distinct = {part: set() for part in PARTS}  # hashes, up to MOST_COUNTED
        self._are_words = dict.fromkeys(PARTS, True)  # whether all are single words
        self.counts: Counter[str] = Counter()
        self._rows_with: dict[str, set[int]] = {}  # by finding: a row may make several pairs
        self.firsts: dict[
            str, dict
        ] = {}  # of each finding: its first rows, where the first stands, what was seen there
        self.row_faults: dict[int, str] = {}  # rows that gave no pair
        self.rows_of: list[tuple[int, ...]] = []  # by pair
        self.fate: list[str | None] = []  # by pair: the finding that drops it
        self.prompts: set[int] = set()  # hashes, to be held against another split
        self.prompt_of = array.array("q")  # by pair: equal for prompts that say the same, so that none is on both sides
        self._exact_prompts: set[int] = set()
        self._exact: dict[int, int] = {}  # hash of the pair -> its number
        self._copies: dict[int, list[int]] = {}  # by that number, those of the pairs that are equal to it
        self._contradicted: set[int] = set()
        self._loose: dict[int, int] = {}
        self._lengths = {part: array.array("Q") for part in PARTS}
        self._tokens = {part: array.array("Q") for part in PARTS}
        self.scored = 0  # pairs with a score of both answers
        self.unknown = self.most_turns = self.with_system_turn = 0
        self.scores: Counter[float] = Counter()  # of answers that stand one in a row
        self.kinds: set[str] = set()  # "text", "turns", "rich turns", and the extra columns

    def see(self, made: dict) -> bool:
        """Take note of a pair or a fault. Returns whether it is a pair, so that the caller keeps it."""
        rows = tuple(made["rows"])
        self.scores.update(made.pop("scores", ()))
        if "fault" in made:
            for row in rows:
                self.row_faults.setdefault(row, made["fault"])
            self._note(made["fault"], rows, made["where"], made["text"])
            return False
        number = len(self.fate)
        self.rows_of.append(rows)
        self.fate.append(None)
        for name in self._look(made, number):
            self._find(name, number, made["where"])
        return True

    def _note(self, name: str, rows: tuple[int, ...], where: str, detail: str = "") -> None:
        self.counts[name] += 1
        self._rows_with.setdefault(name, set()).update(rows)
        named = self.firsts.setdefault(name, {"rows": [], "first": where, "detail": detail})["rows"]
        named.extend(row for row in rows[: FIRST_ROWS - len(named)] if row not in named)

    def _find(self, name: str, number: int, where: str, detail: str = "") -> None:
        """Note a finding on a pair, and drop the pair where that is what it does."""
        self._note(name, self.rows_of[number], where, detail)
        if FINDINGS[name].drops and name not in self.keep and self.fate[number] is None:
            self.fate[number] = name

    def _look(self, made: dict, number: int) -> list[str]:
        prompt, chosen, rejected = words = [_words_of(made[part]) for part in PARTS]
        for part, text in zip(PARTS, (_with_calls(made[part]) for part in PARTS), strict=True):
            self._lengths[part].append(len(text))
            if len(self._distinct[part]) < MOST_COUNTED:
                self._distinct[part].add(hash(text))
                self._are_words[part] = self._are_words[part] and len(text) < 60 and " " not in text
        is_scored = "score_chosen" in made and "score_rejected" in made
        self.scored += is_scored
        self._note_form(made)
        texts = "".join(words) + made.get("category", "")
        if "rich turns" in self.kinds:
            texts += "".join(_said(made[part]) for part in PARTS)
        question, is_identical = _last_question(made["prompt"]), made["chosen"] == made["rejected"]
        begin_alike = chosen[:SHARED_BEGINNING] == rejected[:SHARED_BEGINNING]
        begin_with_prompt = chosen.startswith(prompt) and rejected.startswith(prompt)
        checks = {
            "invalid_unicode": not texts.isascii() and SURROGATE.search(texts),
            "replacement_characters": "\ufffd" in texts,
            "control_characters": CONTROL.search(texts),
            "empty_answer": _is_empty(made["chosen"], chosen) or _is_empty(made["rejected"], rejected),
            "null_word": chosen.strip() in NULL_WORDS or rejected.strip() in NULL_WORDS,
            "chat_marks": _has_chat_marks(texts) and not (self.is_plain and isinstance(made["prompt"], str)),
            "scores_contradict": is_scored and made["score_chosen"] < made["score_rejected"],
            "empty_prompt": not prompt.strip(),
            "answer_is_prompt": prompt.strip() and (prompt in words[1:] or question in words[1:]),
            "prompt_repeated": begin_with_prompt and len(prompt.strip()) >= SHARED_BEGINNING,
            "identical": is_identical,
            "nearly_alike": not is_identical and _share_in_common(chosen, rejected) >= ALIKE,
            "shared_beginning": begin_alike and len(chosen) >= SHARED_BEGINNING,
        }
        return [name for name, is_found in checks.items() if is_found] + self._compare(made, number, prompt)

    def _note_form(self, made: dict) -> None:
        if isinstance(made["prompt"], str):
            self.kinds.add("text")
        else:
            turns = made["prompt"] + made["chosen"] + made["rejected"]
            self.kinds.add("turns" if all(len(turn) == 2 for turn in turns) else "rich turns")
            self.most_turns = max(self.most_turns, len(made["prompt"]))
            self.with_system_turn += made["prompt"][0]["role"] in ("system", "developer")
        self.kinds |= made.keys() & OPTIONAL.keys()

    def _compare(self, made: dict, number: int, prompt: str) -> list[str]:
        """Hold the pair against all before it and against the prompts of the test split.

        What drops a pair is equal to the letter; a prompt is in the test split too where it differs from one there in
        case, in space around it, or in that one is a text and the other a user's turn.
        """
        beside = str(made.get("tools")) + str(made.get("chat_template_kwargs"))
        asked, *said = (_said(made[part]) for part in PARTS)
        whole = hash((_asked(made["prompt"]), beside))
        self.prompts.add(whole)
        self.prompt_of.append(prompt_key(prompt))
        exact_prompt = hash((asked, beside))
        self._exact_prompts.add(exact_prompt)
        found = ["in_test_split"] if whole in self.elsewhere else []
        opposite = self._exact.get(hash((exact_prompt, *reversed(said))))
        before = self._exact.setdefault(hash((exact_prompt, *said)), number)
        if before != number:
            found.append("duplicate")
            if opposite is None:
                self._copies.setdefault(before, []).append(number)
        else:
            loose = hash((_loose(asked), beside, *map(_loose, said)))
            if self._loose.setdefault(loose, number) != number:
                found.append("near_duplicate")
        if opposite is not None and said[0] != said[1]:
            found.append("opposite_label")
            if opposite not in self._contradicted:
                self._contradicted.add(opposite)
                for earlier in (opposite, *self._copies.pop(opposite, ())):
                    if self.fate[earlier] not in ("opposite_label", "duplicate"):
                        self._find("opposite_label", earlier, made["where"])
        return found

    def see_tokens(self, number: int, facts: dict) -> None:
        """Take note of the `token_facts` of one pair."""
        for name in facts["flags"]:
            self._find(name, number, facts["where"], facts["text"])
        if facts["lengths"]:
            for part, length in zip(PARTS, facts["lengths"], strict=True):
                self._tokens[part].append(length)
            self.unknown += facts["unknown"]

    def sound(self) -> list[int]:
        """The numbers of the pairs to train on."""
        return [number for number, fate in enumerate(self.fate) if fate is None]

    def dropped_rows(self) -> dict[int, str]:
        """Why each row that is in no sound pair was dropped, by its number."""
        used = {row for number in self.sound() for row in self.rows_of[number]}
        reasons = dict(self.row_faults)
        for rows, fate in zip(self.rows_of, self.fate, strict=True):
            for row in rows:
                reasons.setdefault(row, fate)
        return {row: reason for row, reason in reasons.items() if row not in used}

    def report(self, left_behind: dict | None = None) -> dict:
        """What was found, ready for JSON. Shares of findings are of all rows read. left_behind: columns not read."""
        self._note_whole()
        dropped = self.dropped_rows()
        rows = len(self.row_faults.keys() | {row for rows in self.rows_of for row in rows})
        tokens = sum(map(sum, self._tokens.values()))
        report = {
            "rows_read": rows,
            "rows_used": rows - len(dropped),
            "rows_dropped": len(dropped),
            "pairs_made": len(self.fate),
            "pairs": len(self.sound()),
            "distinct_prompts": len(self._exact_prompts),
            "most_turns_in_a_prompt": self.most_turns,
            "prompts_with_system_turn": self.with_system_turn,
            "scores": {f"{score:g}": count for score, count in sorted(self.scores.items())[:20]},
            "dropped_by_reason": dict(Counter(dropped.values()).most_common()),
            "findings": {
                name: {
                    "count": self.counts[name],
                    "share": len(self._rows_with[name]) / max(rows, 1) if name in self._rows_with else 1.0,
                    "drops": finding.drops and name not in self.keep,
                    **self.firsts[name],
                    "title": finding.title,
                    "meaning": finding.meaning,
                }
                for name, finding in FINDINGS.items()
                if self.counts[name]
            },
            "characters": self._describe(self._lengths),
            "tokens": self._describe(self._tokens) | {"pairs_looked_at": len(self._tokens["prompt"])},
            "unknown_token_share": self.unknown / tokens if tokens else None,
            "longer_is_chosen": self._longer_is_chosen(),
            "histograms": self._histograms(),
        }
        report |= left_behind or {}
        return report | {"verdict": verdict(report)}

    def _note_whole(self) -> None:
        """Note what only all pairs together show: few different texts for so many pairs, more than noise in the labels."""
        pairs = min(len(self.fate), len({row for rows in self.rows_of for row in rows}))
        if self.counts["scores_contradict"] <= self.scored * CONTRADICTING:
            del self.counts["scores_contradict"]
        for part, texts in self._distinct.items():
            few = len(texts) * FEW <= pairs or (len(texts) == 1 and pairs >= 5)
            names = part != "prompt" and self._are_words[part] and pairs >= 4 and len(texts) * 2 <= pairs
            if (few or names) and len(texts) < MOST_COUNTED:
                name = "few_prompts" if part == "prompt" else f"few_{part}"
                self.counts[name] = pairs
                self.firsts[name] = {"rows": [], "first": "all", "detail": f"{len(texts):,} different ones"}

    def _describe(self, lengths: dict) -> dict:
        described = {}
        for part, values in lengths.items():
            if values:
                middle, most, longest = np.quantile(np.asarray(values), [0.5, 0.95, 1.0])
                described[part] = {"median": float(middle), "p95": float(most), "longest": int(longest)}
        return described

    def _longer_is_chosen(self) -> dict | None:
        """How often a judge that prefers the longer answer agrees with the labels, ties half, with Wilson's interval."""
        chosen, rejected = (np.asarray(self._lengths[part]) for part in ("chosen", "rejected"))
        if not len(chosen):
            return None
        share, low, high = rate(one_a_prompt((chosen > rejected) + 0.5 * (chosen == rejected), self.prompt_of))
        return {"accuracy": share, "ci_low": low, "ci_high": high}

    def _histograms(self) -> dict:
        """Counts of lengths in 40 bins, in tokens of the pairs that were tokenised, or of all in characters."""
        unit, lengths = ("tokens", self._tokens) if self._tokens["prompt"] else ("characters", self._lengths)
        if not lengths["prompt"]:
            return {}
        values = {part: np.asarray(numbers).astype(int) for part, numbers in lengths.items()}
        most = max(1, *(np.quantile(numbers, 0.99) for numbers in values.values()))
        edges = np.linspace(0, most, 41)
        drawn = {part: np.histogram(np.minimum(numbers, most), edges)[0].tolist() for part, numbers in values.items()}
        difference = values["chosen"] - values["rejected"]
        reach = max(1, np.quantile(np.abs(difference), 0.99))
        sides = np.linspace(-reach, reach, 42)
        drawn["difference"] = np.histogram(np.clip(difference, -reach, reach), sides)[0].tolist()
        return {"unit": unit, "edges": edges.tolist(), "difference_edges": sides.tolist(), **drawn}


def what_fails(report: dict) -> str:
    """The most frequent finding that drops pairs, and the way out, for data of which nothing is left."""
    name, finding = max(report["findings"].items(), key=lambda found: found[1]["count"] * found[1]["drops"])
    first = finding["first"] + (f": {finding['detail']}" if finding["detail"] else "")
    way_out = f" --keep_findings {name} would keep them." if name in KEEPABLE else ""
    return f"{finding['count']:,} x {finding['title']}; the first is {first}. {finding['meaning']}{way_out}"


def _said(text: str | list[dict]) -> str:
    """What tells two texts apart: the words, who says them, and what a turn carries besides."""
    return text if isinstance(text, str) else json.dumps(text, sort_keys=True, ensure_ascii=False)


def _asked(prompt: str | list[dict]) -> str:
    """What a prompt asks, without case and space around its turns; a text is what a user says."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    turns = [turn | {"content": turn["content"].strip()} for turn in turns]
    return json.dumps(turns, sort_keys=True, ensure_ascii=False).casefold()


def _words_of(text: str | list[dict]) -> str:
    return text if isinstance(text, str) else "\n".join([turn["content"] for turn in text])


def _with_calls(text: str | list[dict]) -> str:
    """The words, and the tool calls that stand beside them or in their place."""
    if isinstance(text, str):
        return text
    calls = (json.dumps(turn["tool_calls"]) if turn.get("tool_calls") else "" for turn in text)
    return "\n".join(turn["content"] + called for turn, called in zip(text, calls, strict=True))


def _has_chat_marks(text: str) -> bool:
    return any(part in text for part in IN_CHAT_MARKS) and CHAT_MARKS.search(text) is not None


def _last_question(prompt: str | list[dict]) -> str | None:
    if isinstance(prompt, str) or prompt[-1]["role"] != "user":
        return None
    return prompt[-1]["content"] or None


def _is_empty(answer: str | list[dict], words: str) -> bool:
    return not words.strip() and not (isinstance(answer, list) and any("tool_calls" in turn for turn in answer))


def prompt_key(words: str) -> int:
    """A number that is equal for prompts that say the same; the same in every process, unlike hash()."""
    digest = hashlib.blake2b(_loose(words).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _loose(text: str) -> str:
    """A text without case, space and punctuation; one of nothing else stays as it is."""
    bare = text.translate(WITHOUT_THEM) if text.isascii() else SPACE_AND_PUNCTUATION.sub("", text)
    return bare.casefold() or text


def _share_in_common(first: str, second: str) -> float:
    """Words in common, as a share of all words of both (Dice's coefficient on counted words)."""
    if not 0.8 < (len(first) + 1) / (len(second) + 1) < 1.25:
        return 0.0  # too different in length to reach ALIKE
    ours, theirs = Counter(WORD.findall(first)), Counter(WORD.findall(second))
    total = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / total if total else 0.0
