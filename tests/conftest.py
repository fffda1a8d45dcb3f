"""One server forks the processes of all tests that kill them: whoever starts it decides what it has imported."""

import multiprocessing
import shutil
import signal
from pathlib import Path

import forking
import pytest
from running import Trained, make_trained

multiprocessing.get_context("forkserver").set_forkserver_preload(
    [
        "pipeline.cli.app",
        "pipeline.cli.workflow",
        "pipeline.data.shards.writing",
        "torch.utils.tensorboard",
        "torchvision.io",
    ]
)
# A job in the background of a script is started deaf to Ctrl-C, and so would be all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A tiny run that is done, for tests that only read it."""
    return make_trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def bundle(trained: Trained, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(trained.bundle, tmp_path / "bundle"))


def pytest_sessionfinish() -> None:
    forking.kill_all()
