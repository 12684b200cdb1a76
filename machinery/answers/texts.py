"""What models make of texts that have nothing to do with the training: the loss per token, before and after.

    texts = read_texts("my_texts.txt")                             # paragraphs, or the column "text" of a table
    windows = text_windows(texts, model, tokenizer, 1024)          # as sequence_logps takes them, and whose they are
    measured = text_losses(sums, ref_sums, windows)                # {"text_loss": (value, low, high), ...}

A model that has learnt its preferences and forgotten the rest shows it here.
"""

from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..common.bounds import check_file
from ..common.errors import UserError
from ..common.intervals import mean_interval
from ..data.files import open_splits
from ..data.limits import MOST_OF_A_ROW

COLUMN = "text"
MOST_TOKENS = 2048  # of a piece, where neither --max_length nor the model says


class Windows(NamedTuple):
    """Texts in tokens, cut into pieces that a model can hold."""

    rows: list[tuple[list[int], list[int]]]  # the first token of each, and those that follow
    text_of: np.ndarray  # the number of the text that a row is from
    count: int  # of texts

    @property
    def tokens(self) -> np.ndarray:
        """Predicted tokens of each text, (count,)."""
        return np.bincount(self.text_of, [len(ids) for _, ids in self.rows], self.count)


def read_texts(name: str | None, encoding: str = "utf-8") -> list[str] | None:
    """The paragraphs of a .txt file, or the column "text" of a file of rows; None for none. Raises UserError."""
    if name is None:
        return None
    path = Path(name)
    try:
        if path.suffix.lower() in (".txt", ".md", ".text"):
            check_file(path, MOST_OF_A_ROW)
            content = path.read_text(encoding=encoding).replace("\r\n", "\n")
            texts = [part.strip("\n") for part in content.split("\n\n")]
        else:
            rows = next(iter(open_splits(name, encoding=encoding).values()))
            texts = [_text_of(row) for row in rows]
    except (OSError, ValueError) as error:
        text = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise UserError(f"--texts {'' if name in text else f'{name}: '}{text}.") from error
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UserError(f"--texts {name}: there is no text in it.")
    return texts


def _text_of(row) -> str:
    if row.fault is not None:
        raise ValueError(f"{row.where}: {row.fault}")
    text = row.value.get(COLUMN) if isinstance(row.value, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"{row.where}: there is no text in a column called {COLUMN}")
    return text


def text_windows(texts: list[str] | None, model, tokenizer, max_length: int | None) -> Windows | None:
    """Texts in tokens, in pieces of max_length, or of what the model holds; None without texts or without a model.

    Of each piece the first token is not predicted. Raises UserError.
    """
    if texts is None or model is None:
        return None
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or MOST_TOKENS
    most = min(positions, max_length or MOST_TOKENS)
    rows, text_of = [], []
    for number, text in enumerate(texts):
        ids = iter(tokenizer(text)["input_ids"])
        while len(piece := list(islice(ids, most))) > 1:
            rows.append((piece[:1], piece[1:]))
            text_of.append(number)
    if not rows:
        raise UserError("--texts: no text has two tokens, so nothing in them can be predicted.")
    _, numbers = np.unique(text_of, return_inverse=True)  # texts of one token fall out
    return Windows(rows, numbers, int(numbers.max()) + 1)


def text_losses(sums: np.ndarray, ref_sums: np.ndarray, windows: Windows) -> dict[str, tuple[float, float, float]]:
    """The loss per token of policy and reference, and its change, each with a 95% interval over the texts.

    sums, ref_sums: log-probs of each row of the windows, summed over its tokens. The change is paired: how hard a text is
    falls out of it.
    """
    tokens = windows.tokens
    loss, ref_loss = (-np.bincount(windows.text_of, logps, windows.count) for logps in (sums, ref_sums))
    return {
        "text_loss": _ratio(loss, tokens),
        "text_loss_reference": _ratio(ref_loss, tokens),
        "text_loss_change": _ratio(loss - ref_loss, tokens),
    }


def _ratio(totals: np.ndarray, tokens: np.ndarray) -> tuple[float, float, float]:
    """Totals over tokens, with the interval of that ratio, linearised: long texts count for more."""
    ratio = float(totals.sum() / tokens.sum())
    _, low, high = mean_interval((totals - ratio * tokens) / tokens.mean())
    return ratio, ratio + low, ratio + high
