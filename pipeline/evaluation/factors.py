"""Which element carries which factor of a painted face: linear probes, and DCI's scores of what they find."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.statistics import plain
from pipeline.measures.effects import Array

PAINTED_ONLY = {"Dark_Skin", "Facing_Left", "Facing_Right", "Light_From_Left", "Light_From_Right"}
"""Attributes that `synth` writes and CelebA does not know: where they are, attributes are true factors."""
FEWEST = 20
"""Faces that must have a factor, and that must not, for it to be probed."""
FOLDS = 5
PENALTIES = tuple(10.0**power for power in range(0, 6))


def factor_table(metadata: list[dict[str, Any]]) -> tuple[list[str], NDArray[np.bool_]]:
    """Names of the factors that can be probed, and which face has which, (n, K); none unless the faces are painted."""
    found = [each.get("attributes") for each in metadata]
    attributes = [each if isinstance(each, dict) else {} for each in found]  # shards of others may hold anything
    names = sorted(set.intersection(*(set(each) for each in attributes)))
    if not set(names) >= PAINTED_ONLY:
        return [], np.zeros((len(metadata), 0), dtype=bool)
    table = np.array([[each[name] > 0 for name in names] for each in attributes])
    present = table.sum(axis=0)
    kept = (present >= FEWEST) & (len(table) - present >= FEWEST)
    return [name for name, keep in zip(names, kept, strict=True) if keep], table[:, kept]


def probe(latents: Array, table: NDArray[np.bool_], seed: int) -> Array:
    """How well each factor is read off a part of the latent, by a ridge regression that has not seen the face.

    Args:
        latents: (n, D). table: (n, K).

    Returns:
        (K,) 2 AUC - 1, not below 0: 0 is guessing, 1 is certain.
    """
    from sklearn.linear_model import RidgeCV  # takes a second, and only painted faces need it
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES))
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    predicted = cross_val_predict(model, latents, table.astype(np.float64), cv=folds).reshape(table.shape)
    areas: list[float] = [roc_auc_score(truth, guess) for truth, guess in zip(table.T, predicted.T, strict=True)]
    scores: Array = np.maximum(2 * np.array(areas) - 1, 0)
    return scores


def dci(importance: Array) -> dict[str, float]:
    """Disentanglement and completeness (Eastwood and Williams, 2018) of importances (N elements, K factors).

    Both are 1 less an entropy in base K or N: 0 where every element carries every factor alike. Disentanglement is 1
    where no element carries two factors (elements weighted by what they carry), completeness where no factor is
    carried by two elements.
    """

    def order(parts: Array) -> Array:
        """One less the entropy of each row, in the base of its length: (M, L) -> (M,)."""
        shares = parts / parts.sum(axis=1, keepdims=True).clip(min=1e-12)
        logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
        entropy: Array = -(shares * logs).sum(axis=1) / np.log(parts.shape[1])
        ordered: Array = np.where(parts.sum(axis=1) > 0, 1 - entropy, 0)
        return ordered

    total = importance.sum()
    if total == 0 or min(importance.shape) < 2:
        return {"disentanglement": 0.0, "completeness": 0.0}
    return {
        "disentanglement": float((order(importance) * importance.sum(axis=1)).sum() / total),
        "completeness": float(order(importance.T).mean()),
    }


def factors(parts: list[Array], names: list[str], table: NDArray[np.bool_], seed: int) -> dict[str, Any]:
    """Probes of every element alone and of all together.

    Args:
        parts: one (n, D_n) per element.
        names, table: as `factor_table` gives.

    Returns:
        matrix: (N, K) of `probe`, its columns `names`; carrier: factor -> element, from 1; the scores of `dci`;
        informativeness: mean over factors of the probe of all elements together.
    """
    matrix = np.stack([probe(part, table, seed) for part in parts])
    together = probe(np.concatenate(parts, axis=1), table, seed)
    return {
        "count": len(table),
        "names": names,
        "matrix": plain(matrix),
        "carrier": {name: int(column.argmax()) + 1 for name, column in zip(names, matrix.T, strict=True)},
        "informativeness": plain(together.mean()),
        **{name: plain(value) for name, value in dci(matrix).items()},
    }
