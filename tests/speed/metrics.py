"""How long FPR@95 and AUROC of 1 million + 1 million scores take, against one `numpy.sort` of them all.

    python tests/speed/metrics.py

Both are timed in turns in one run, so that a busy machine slows both. Exits 1 above the allowed ratio. Scores that were
float32 once, a million of which hold many ties, are timed for information.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from turns import medians_s

from benchmark.metrics import auroc, fpr_at_tpr, measure

IMAGES = 1_000_000
ROUNDS = 25
ALLOWED_RATIO = 2.0


def main() -> int:
    generator = np.random.default_rng(0)
    id_scores, ood_scores = generator.normal(2, 1, IMAGES), generator.normal(0, 1, IMAGES)
    ratio = compare("float64 scores", id_scores, ood_scores)
    compare("once float32", *(scores.astype(np.float32).astype(np.float64) for scores in (id_scores, ood_scores)))
    (measure_s,) = medians_s(ROUNDS, lambda: measure(id_scores[:450], ood_scores[:400]))
    print(f"measure, 450 + 400 scores: {measure_s * 1e3:.2f} ms")
    return int(ratio > ALLOWED_RATIO)


def compare(title: str, id_scores: np.ndarray, ood_scores: np.ndarray) -> float:
    everything = np.concatenate([id_scores, ood_scores])
    sort_s, metrics_s = medians_s(
        ROUNDS, lambda: np.sort(everything), lambda: (fpr_at_tpr(id_scores, ood_scores), auroc(id_scores, ood_scores))
    )
    ratio = metrics_s / sort_s
    print(
        f"{title}: FPR@95 and AUROC {metrics_s * 1e3:.1f} ms, numpy.sort {sort_s * 1e3:.1f} ms, "
        f"ratio {ratio:.2f} (at most {ALLOWED_RATIO})"
    )
    return ratio


if __name__ == "__main__":
    sys.exit(main())
