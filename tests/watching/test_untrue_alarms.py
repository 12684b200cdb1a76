"""A message that is not so is taken away; the same message about something else is not."""

import logging

import pytest
from conftest import make_llama

from machinery.watching.untrue_alarms import SAYS, drop_untrue_alarms


@pytest.fixture
def heard(caplog):
    """Whether a message of Transformers' trainer is heard while a model with tied weights is trained."""
    logger = logging.getLogger("transformers.trainer")
    logging.getLogger("transformers").addHandler(caplog.handler)
    drop_untrue_alarms(make_llama(tie_word_embeddings=True))

    def hear(text: str) -> bool:
        caplog.clear()
        logger.warning(text)
        return bool(caplog.records)

    yield hear
    logging.getLogger("transformers").removeHandler(caplog.handler)
    drop_untrue_alarms(None)


def test_tied_weights_are_not_called_missing(heard):
    assert not heard(f"{SAYS} ['lm_head.weight'].")


@pytest.mark.parametrize(
    "text",
    [
        f"{SAYS} ['lm_head.weight', 'model.norm.weight'].",
        f"{SAYS} ['lm_head.weight', 'model.embed_tokens.weight'].",  # neither is in the file
        f"{SAYS} ['model.norm.weight'].",
        "There were unexpected keys in the checkpoint model loaded: ['lm_head.weight'].",
    ],
)
def test_whatever_else_is_missing_is_said(heard, text):
    assert heard(text)


def test_a_model_that_ties_nothing_is_told_of_its_missing_head(heard):
    drop_untrue_alarms(make_llama())
    assert heard(f"{SAYS} ['lm_head.weight'].")
