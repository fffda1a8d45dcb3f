"""`python -m pipeline`, `latentfuse`, and what `accelerate launch -m pipeline` wants: a command from its first instant.

Nothing else may be imported before signals are heeded: all other imports take a third of a second.
"""

import atexit
import os

from pipeline.common import signals

signals.leave_at_once()
atexit.register(signals.ignore)  # the first to be registered is the last to run
# Where ranks do not meet or one is lost, torch prints pages of C++ frames; one line says it. Read as torch is imported.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")


def main() -> None:
    """Entry point."""
    from pipeline.cli import app

    app.main()


if __name__ == "__main__":
    main()
