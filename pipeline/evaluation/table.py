"""An evaluation as Markdown."""

from typing import Any


def as_table(result: dict[str, Any]) -> str:
    """The numbers of `metrics.json` that decide, with their intervals, and the effect matrix."""
    lines = ["| metric | value | 95 % interval |", "|---|---|---|"]
    exactness = result["exactness"]
    for which, key in (("lambda = 1 against A'", "lambda_1"), ("lambda = 0 against B'", "lambda_0")):
        same = "equal bits" if exactness[key] == 0 else f"largest difference {exactness[key]:.3g}"
        lines.append(f"| {which} | {same} | |")
    for section, label, names in _ROWS:
        found = result.get(section, {})
        lines += [_line(f"{label}{text}", found, name) for name, text in names.items() if name in found]
    lines += _pose_lines(result["pose"])
    effects = result["effects"]
    lines.append(f"| dead elements (no effect above 0.05) | {_listed(effects['dead_elements'])} | |")
    sections = {name: each for name, each in sorted(result.items()) if isinstance(each, dict)}
    counts = [f"{name} {each['count']}" for name, each in sections.items() if "count" in each]
    lines += ["", f"Images or pairs: {', '.join(counts)}. Perceptual network: {result['perceptual']}."]
    lines.append(f"LPIPS: {result['reconstruction']['LPIPS_net']}.")
    left_out = {name: each["left_out"] for name, each in sections.items() if "left_out" in each}
    lines += [f"{name} is left out: {why}." for name, why in left_out.items()]
    if "net" in result["realism"]:
        lines.append(f"FID and KID: {result['realism']['net']}.")
    lines += ["", "Effect of flipping one element, relative to all:", ""]
    lines += _matrix(effects["matrix"], result["layers"])
    return "\n".join(lines) + "\n"


_ROWS: tuple[tuple[str, str, dict[str, str]], ...] = (
    (
        "reconstruction",
        "reconstruction ",
        {name: name for name in ("L1", "MSE", "PSNR", "SSIM", "LPIPS")}
        | {"LPIPS_style": "LPIPS-style", "sharpness": "sharpness (1: as the photographs)"},
    ),
    (
        "realism",
        "",
        {
            "FID_fused": "FID of C at lambda = 0.5",
            "FID_floor": "FID of A' (floor)",
            "KID_fused": "KID of C at lambda = 0.5",
            "KID_floor": "KID of A' (floor)",
        },
    ),
    (
        "half_way",
        "lambda = 0.5: ",
        {
            "detour": "detour (1: straight)",
            "sharpness": "sharpness (1: as A', B')",
            "sharpness_photographs": "sharpness (1: as A, B)",
            "ghost": "ghost (1: double exposure)",
        },
    ),
    (
        "path",
        "path ",
        {
            "spearman_all": "Spearman, all elements (1: steady)",
            "spearman_elements": "Spearman, each element",
            "spearman_start_elements": "Spearman to A' in place of A, each",
            "largest_step_all": "largest step over mean, all (1: even)",
            "largest_step_elements": "largest step over mean, each",
        },
    ),
    (
        "path_pixels",
        "path in pixels ",
        {"spearman_all": "Spearman, all", "spearman_elements": "Spearman, each element"},
    ),
    (
        "effects",
        "",
        {
            "weakest": "weakest element's largest effect",
            "own_share": "own share (chance 0.20)",
            "leakage": "leakage (chance 0.80)",
            "block_style": "style block (chance 0.60)",
            "block_content": "content block (chance 0.40)",
        },
    ),
    ("shapley", "", {"own_share": "own share, Shapley (chance 0.20)"}),
    ("regions", "regions ", {"leak": "leak (0: none, 1: everywhere alike)", "reached": "reached inside (1: as B')"}),
    (
        "factors",
        "factors ",
        {"disentanglement": "disentanglement", "completeness": "completeness", "informativeness": "informativeness"},
    ),
)
_POSE = (("reconstruction", "MSE"), ("half_way", "detour"), ("half_way", "sharpness"), ("path_pixels", "spearman_all"))


def _line(label: str, section: dict[str, Any], name: str) -> str:
    value, ends = section[name], section.get("interval", {}).get(name)
    if isinstance(value, list):
        return f"| {label} | {', '.join(number(each) for each in value)} | |"
    return f"| {label} | {number(value)} | {interval(ends)} |"


def _pose_lines(pose: dict[str, Any]) -> list[str]:
    return [
        _line(f"far over near in yaw: {table} {name}", pose[table], f"{name}_far_over_near")
        for table, name in _POSE
        if table in pose
    ]


def _listed(elements: list[int]) -> str:
    return ", ".join(map(str, elements)) or "none"


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
