"""The two files of pinned packages say the same, and what pyproject.toml asks for."""

import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = ("https://files.pythonhosted.org/", "https://pypi.org/simple")
LOCKED: list[dict[str, Any]] = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
AGAIN = "make both anew, as the top of requirements.lock says"


def pins(name: str) -> dict[str, set[str]]:
    """Package -> versions; more than one where it depends on Python's."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / name).read_text().splitlines():
        if not line.startswith("#"):
            package, version = line.split(" ;")[0].strip().split("==")
            found.setdefault(package, set()).add(version)
    return found


def test_both_locks_pin_the_same_versions() -> None:
    locked: dict[str, set[str]] = {}
    for each in LOCKED:
        locked.setdefault(each["name"], set()).add(each["version"])
    driver = {"playwright", "greenlet", "pyee"}  # of the browser in `make test-web`; not the package's
    for name in ("requirements.lock", "requirements-web.lock"):
        for package, versions in pins(name).items():
            assert package in driver or versions <= locked[package], f"{name}: {package}: {AGAIN}"
    assert pins("requirements.lock")["torch"] == {"2.10.0"}, "the last release with kernels for V100s"


def test_the_lock_is_of_this_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    (ours,) = (package for package in LOCKED if package["name"] == project["name"])
    told = {(each["name"], each.get("specifier", "")) for each in ours["metadata"]["requires-dist"]}

    def canonical(specifier: str) -> frozenset[str]:
        return frozenset(filter(None, specifier.split(",")))

    names = {(name, canonical(specifier)) for name, specifier in told}
    for text in wanted:
        requirement = Requirement(text)
        key = requirement.name.lower(), canonical(str(requirement.specifier))
        assert key in names, f"{text}: not what uv.lock was made of; {AGAIN}"


def test_files_come_from_the_public_index_with_a_hash() -> None:
    for package in LOCKED:
        if package["name"] == "latentfuse":
            continue
        assert package["source"] == {"registry": PUBLIC[1]}
        for each in [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]:
            assert each["url"].startswith(PUBLIC[0]) and each["hash"].startswith("sha256:"), each["url"]
