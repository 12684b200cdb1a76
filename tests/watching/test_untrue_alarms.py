"""A message that is not so is taken away; the same message about something else is not."""

import logging

import pytest
from conftest import make_llama

from machinery.watching.untrue_alarms import CHANGED, LOGGERS, MISSING, drop_untrue_alarms


@pytest.fixture
def heard(caplog):
    """Whether a message of Transformers is heard while a model is trained."""
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)

    def hear(text: str, ties: bool = True) -> bool:
        drop_untrue_alarms(make_llama(tie_word_embeddings=ties))
        caplog.clear()
        for logger in LOGGERS:
            logger.warning(text)
        return bool(caplog.records)

    yield hear
    library.removeHandler(caplog.handler)
    drop_untrue_alarms(None)


def test_tied_weights_are_not_called_missing(heard):
    assert not heard(f"{MISSING} ['lm_head.weight'].")


@pytest.mark.parametrize(
    "text",
    [
        f"{MISSING} ['lm_head.weight', 'model.norm.weight'].",
        f"{MISSING} ['lm_head.weight', 'model.embed_tokens.weight'].",  # neither is in the file
        f"{MISSING} ['model.norm.weight'].",
        "There were unexpected keys in the checkpoint model loaded: ['lm_head.weight'].",
    ],
)
def test_whatever_else_is_missing_is_said(heard, text):
    assert heard(text)


def test_a_model_that_ties_nothing_is_told_of_its_missing_head(heard):
    assert heard(f"{MISSING} ['lm_head.weight'].", ties=False)


def test_what_may_change_between_two_runs_is_no_alarm(heard):
    assert not heard(f"{CHANGED}: \n\teval_steps: 0.2 (from args) != 38 (from trainer_state.json)")
