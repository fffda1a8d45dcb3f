"""An evaluation as Markdown."""

from typing import Any

_ROWS = (
    *(("reconstruction", name, f"reconstruction {name}") for name in ("L1", "MSE", "PSNR", "SSIM", "LPIPS")),
    ("reconstruction", "LPIPS_style", "reconstruction LPIPS-style"),
    ("reconstruction", "sharpness", "reconstruction sharpness (1: as the photographs)"),
    ("realism", "FID_fused_over_floor", "FID of C at lambda = 0.5 over FID of A'"),
    ("half_way", "detour", "lambda = 0.5: detour (1: straight)"),
    ("path", "spearman_all", "path Spearman, all elements (1: steady)"),
    ("path", "spearman_elements", "path Spearman, each element"),
    ("path", "spearman_start_elements", "path Spearman to A' in place of A, each"),
    ("path", "largest_step_all", "path largest step over mean, all (1: even)"),
    ("path", "largest_step_elements", "path largest step over mean, each"),
    ("path_pixels", "spearman_all", "path in pixels Spearman, all"),
    ("path_pixels", "spearman_elements", "path in pixels Spearman, each element"),
    ("effects", "weakest", "weakest element's largest effect"),
    ("effects", "own_share", "own share (chance 0.20)"),
    ("effects", "leakage", "leakage (chance 0.80)"),
    ("effects", "block_style", "style block (chance 0.60)"),
    ("effects", "block_content", "content block (chance 0.40)"),
    ("shapley", "own_share", "own share, Shapley (chance 0.20)"),
    ("regions", "leak", "regions leak (0: none, 1: everywhere alike)"),
    ("regions", "reached", "regions reached inside (1: as B')"),
    *(("factors", name, f"factors {name}") for name in ("disentanglement", "completeness", "informativeness")),
)
"""Section, name and label of each line."""
_POSE = ("reconstruction MSE", "half_way detour", "half_way sharpness", "path_pixels spearman_all")
"""Tables and metrics whose ratio far over near is shown."""


def as_table(result: dict[str, Any]) -> str:
    """The numbers of `metrics.json` that decide, with their intervals, and the effect matrix."""
    lines = ["| metric | value | 95 % interval |", "|---|---|---|"]
    exactness = result["exactness"]
    for which, key in (("lambda = 1 against A'", "lambda_1"), ("lambda = 0 against B'", "lambda_0")):
        same = "equal bits" if exactness[key] == 0 else f"largest difference {exactness[key]:.3g}"
        lines.append(f"| {which} | {same} | |")
    for section, name, label in _ROWS:
        if name in result.get(section, {}):
            lines.append(_line(label, result[section], name))
    for table, name in map(str.split, _POSE):
        if table in result["pose"]:
            label = f"far over near in yaw: {table} {name}"
            lines.append(_line(label, result["pose"][table], f"{name}_far_over_near"))
    effects = result["effects"]
    dead = ", ".join(map(str, effects["dead_elements"])) or "none"
    lines.append(f"| dead elements (no effect above 0.05) | {dead} | |")
    sections = {name: each for name, each in sorted(result.items()) if isinstance(each, dict)}
    counts = [f"{name} {each['count']}" for name, each in sections.items() if "count" in each]
    lines += ["", f"Images or pairs: {', '.join(counts)}. Perceptual network: {result['perceptual']}."]
    lines.append(f"LPIPS: {result['reconstruction']['LPIPS_net']}.")
    left_out = {name: each["left_out"] for name, each in sections.items() if "left_out" in each}
    lines += [f"{name} is left out: {why}." for name, why in left_out.items()]
    if "net" in result["realism"]:
        lines.append(f"FID and KID: {result['realism']['net']}.")
    if "FID_left_out" in result["realism"]:
        lines.append(f"FID is left out: {result['realism']['FID_left_out']}.")
    lines += ["", "What lies between two faces, and what it is compared with:", "", *_mixes(result)]
    lines += ["", "Effect of flipping one element, relative to all:", ""]
    lines += _matrix(effects["matrix"], result["layers"])
    return "\n".join(lines) + "\n"


_MIXES = {
    "photographs": "photographs",
    "floor": "A', reconstructions",
    "fused_25": "C at lambda = 0.25",
    "fused": "C at lambda = 0.5",
    "fused_75": "C at lambda = 0.75",
    "mean_reconstructions": "pixels' mean of A' and B'",
    "mean_photographs": "pixels' mean of A and B",
    "morph": "landmark morph of A and B",
}


def _mixes(result: dict[str, Any]) -> list[str]:
    """A row for each kind of picture; detectability also of single elements."""
    lines = ["| | detectability (0.5: a face) | | FID | KID | sharpness (1: as A', B') | ghost (1: double exposure) |"]
    lines.append("|---" * 7 + "|")
    told, realism = result.get("detectability", {}), result["realism"]
    flips = {name: f"element {name.split('_')[1]} alone flipped" for name in told if name.startswith("element_")}
    for name, label in (_MIXES | flips).items():
        half = result.get("half_way" if name == "fused" else f"half_way.{name}", {})
        cells = [number(told.get(name)), interval(told.get("interval", {}).get(name))]
        cells += [number(realism.get(f"{metric}_{name}")) for metric in ("FID", "KID")]
        cells += [number(half.get(metric)) for metric in ("sharpness", "ghost")]
        if set(cells) - {"-", ""}:
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def _line(label: str, section: dict[str, Any], name: str) -> str:
    value, ends = section[name], section.get("interval", {}).get(name)
    if isinstance(value, list):
        return f"| {label} | {', '.join(number(each) for each in value)} | |"
    return f"| {label} | {number(value)} | {interval(ends)} |"


def _matrix(matrix: list[list[float]], layers: list[str]) -> list[str]:
    lines = ["| | " + " | ".join(layers) + " |", "|---" * (1 + len(layers)) + "|"]
    for element, row in enumerate(matrix, 1):
        lines.append(f"| element {element} | " + " | ".join(f"{value:.3f}" for value in row) + " |")
    return lines


def number(value: float | None) -> str:
    """Four digits after the point, or as many significant ones; `-` for what could not be measured."""
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) >= 0.01 or value == 0 else f"{value:.3g}"


def interval(ends: list[float | None] | None) -> str:
    """`low to high`, or nothing where it is not known."""
    return f"{number(ends[0])} to {number(ends[1])}" if ends and None not in ends else ""
