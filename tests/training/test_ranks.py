"""What one rank does alone; several processes are in integration/test_lost_ranks.py and test_preemption.py."""

import os
import signal
from pathlib import Path

import pytest

from pipeline.common import signals
from pipeline.common.errors import Interrupted, UserError
from pipeline.training.ranks import Ranks


@pytest.fixture
def ranks() -> Ranks:
    return Ranks(0, 1)


def test_alone_there_is_nothing_to_agree_on(ranks: Ranks, tmp_path: Path) -> None:
    with ranks.watched(tmp_path, lambda _: None):
        ranks.agree()
        assert ranks.together(lambda: 3) == ranks.on_main(lambda: 3) == 3
        for go in (ranks.together, ranks.on_main):
            with pytest.raises(ZeroDivisionError):
                go(lambda: 1 // 0)
        with pytest.raises(UserError, match="a bad image"):
            ranks.agree(UserError("a bad image"))


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_waits_for_the_agreement(ranks: Ranks, tmp_path: Path, number: int) -> None:
    with ranks.watched(tmp_path, lambda _: None):
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted, match=signal.Signals(number).name):
            ranks.agree()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_error_of_our_own_is_no_lost_rank(ranks: Ranks, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"), ranks.watched(tmp_path, lambda _: None):
        raise RuntimeError("shapes do not fit")
