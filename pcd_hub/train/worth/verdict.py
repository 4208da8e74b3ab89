"""One sentence on whether a start was worth it, from stated rules."""

from collections.abc import Mapping

from pcd_hub.train.lab.paired import Difference

RULES = (
    "Worth it: higher than the first model at one share of the labels or more, and lower at none. "
    "Not worth it: lower at one or more, and higher at none. Mixed: both. No gain shown: within "
    "noise at every share that is judged. No verdict: one seed, or a failed or missing run at "
    "every share. The verdict is on the first metric of the table."
)


def verdict(
    model: str, baseline: str, differences: Mapping[float, Difference | None], *, metric: str
) -> str:
    """Return the verdict on a model; the rules are :data:`RULES`.

    Args:
        model: The model.
        baseline: The model it is compared with.
        differences: Its difference from the baseline by share of the labels in percent; None if a
            run failed or is missing.
        metric: Name and unit of the scores.
    """
    judged = {
        share: found
        for share, found in sorted(differences.items())
        if found is not None and found.half_width is not None
    }
    if not judged:
        one_seed = any(found is not None for found in differences.values())
        why = "one seed says nothing about noise" if one_seed else "runs failed or are missing"
        return f"No verdict on {model} against {baseline}: {why}."
    kinds = {kind: _listed(judged, kind) for kind in ("higher", "lower", "within noise")}
    found = ", ".join(f"{kind} at {shares}" for kind, shares in kinds.items() if shares)
    missing = [f"{share:g} %" for share in sorted(differences) if share not in judged]
    left_out = f", not judged at {' and '.join(missing)}" if missing else ""
    facts = f"{metric} of {model} against {baseline} is {found} of the labels{left_out}"
    if kinds["higher"] and kinds["lower"]:
        return f"Mixed: {facts}."
    if kinds["higher"]:
        return f"Worth it: {facts}."
    if kinds["lower"]:
        return f"Not worth it: {facts}."
    return f"No gain shown: {facts}; more seeds narrow the intervals."


def _listed(judged: Mapping[float, Difference], kind: str) -> str:
    shares = [
        f"{share:g} % ({found.mean:+.1f})"
        for share, found in judged.items()
        if found.verdict == kind
    ]
    return " and ".join(filter(None, [", ".join(shares[:-1]), *shares[-1:]]))
