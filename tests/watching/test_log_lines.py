"""The lines of a training: what is no number ends it before anything is saved."""

import math
from types import SimpleNamespace

import pytest

from machinery.watching.log_lines import LogLine, NonFiniteLoss


@pytest.mark.parametrize("loss", [math.nan, math.inf])
@pytest.mark.parametrize("prefix", ["", "eval_"])
def test_a_loss_that_is_no_number_ends_the_training(prefix, loss):
    state = SimpleNamespace(global_step=3, max_steps=9, is_world_process_zero=True)
    LogLine().on_log(None, state, None, logs={f"{prefix}loss": 0.7})
    with pytest.raises(NonFiniteLoss, match="at step 3"):
        LogLine().on_log(None, state, None, logs={f"{prefix}loss": loss})
