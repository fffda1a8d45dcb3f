"""How much memory this process may still take."""

import re
from contextlib import suppress
from pathlib import Path


def free_memory(system: Path = Path("/")) -> int | None:
    """Bytes left of the machine's memory and of the control groups' limits, which SLURM and containers set.

    Args:
        system: where /proc and /sys are.

    Returns:
        None where this is no Linux.
    """
    try:
        available = re.search(r"MemAvailable:\s+(\d+) kB", (system / "proc/meminfo").read_text())
        groups = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    found = [int(available[1]) * 1024] if available else []
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers in ("", "memory"):  # version 2, version 1
            root = system / "sys/fs/cgroup" / controllers
            inner = root / path.strip("/")
            found += [left for each in (inner, *inner.parents) if each.is_relative_to(root) for left in _left(each)]
    return min(found, default=None)


def _left(group: Path) -> list[int]:
    """Bytes left in a control group; none where it has no limit."""
    for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        with suppress(OSError, ValueError):
            left = int((group / limit).read_text()) - int((group / usage).read_text())
            cached = re.search(r"^(?:total_)?inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
            return [left + (int(cached[1]) if cached else 0)]  # cached files make room
    return []
