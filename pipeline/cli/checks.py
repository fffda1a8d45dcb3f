"""One thing that `doctor` has looked at, and how it is told."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from pipeline.common.errors import UserError


@dataclass(frozen=True)
class Check:
    what: str
    state: str
    fix: str = ""
    """Empty where there is nothing to mend."""
    note: str = ""
    """What stands in the way of no run, but is good to know."""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def as_text(checks: list[Check]) -> str:
    """One line per check, and its fix or note under it."""
    width = max(len(check.what) for check in checks)
    lines = []
    for check in checks:
        mark = "FIX" if check.fix else "note" if check.note else "ok"
        lines.append(f"{mark:<4} {check.what:<{width}}  {check.state}")
        lines += [f"{'':<{width + 7}}-> {advice}" for advice in (check.fix, check.note) if advice]
    return "\n".join(lines)


def refusal(what: str, state: str, check: Callable[[], object]) -> Check:
    """`state`, and the message of the UserError that `check` raises, if it does."""
    try:
        check()
    except UserError as error:
        return Check(what, state, str(error))
    return Check(what, state)
