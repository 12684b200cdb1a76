"""A message that is not so is taken away; the same message about something else is not."""

import logging
from types import SimpleNamespace

import pytest
from conftest import make_llama

from machinery.watching.untrue_alarms import CHANGED, MISSING, UntrueAlarms, drop_untrue_alarms


@pytest.fixture
def heard(caplog):
    """What is heard of a message of Transformers while a model is trained for 186 steps; None: nothing."""
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)

    def hear(text: str, ties: bool = True, module: str = "trainer") -> str | None:
        model, state = make_llama(tie_word_embeddings=ties), SimpleNamespace(max_steps=186)
        drop_untrue_alarms(SimpleNamespace(model=model, state=state))
        caplog.clear()
        logging.getLogger(f"transformers.{module}").warning(text)
        return caplog.messages[0] if caplog.messages else None

    yield hear
    library.removeHandler(caplog.handler)
    for logger in (logging.getLogger(f"transformers.{name}") for name in ("trainer", "trainer_utils")):
        logger.filters[:] = [filter for filter in logger.filters if not isinstance(filter, UntrueAlarms)]


def test_tied_weights_are_not_called_missing(heard):
    assert heard(f"{MISSING} ['lm_head.weight'].") is None


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
    assert heard(text) == text


def test_a_model_that_ties_nothing_is_told_of_its_missing_head(heard):
    assert heard(f"{MISSING} ['lm_head.weight'].", ties=False)


SHARE = "\n\teval_steps: 0.2 (from args) != 38 (from trainer_state.json)"
OTHERS = [
    "\n\tsave_steps: 0.2 (from args) != 37 (from trainer_state.json)",
    "\n\tlogging_steps: 10 (from args) != 5 (from trainer_state.json)",
    "\n\tper_device_train_batch_size: 4 (from args) != 8 (from trainer_state.json)",
]


def test_steps_given_as_a_share_are_not_called_changed_and_what_is_changed_is(heard):
    start = f"{CHANGED} within the checkpoint directory: "
    assert heard(start + SHARE, module="trainer_utils") is None
    for other in OTHERS:
        assert heard(start + SHARE + other, module="trainer_utils") == start + other
