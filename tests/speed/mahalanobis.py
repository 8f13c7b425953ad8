"""Mahalanobis scoring against its two float64 matrix products, at the size of an ImageNet ResNet-50.

    python tests/speed/mahalanobis.py

Whitening (rows x D) @ (D x D) and class distances (rows x D) @ (D x C) are the work that no implementation can avoid;
checking the input, centring, and taking the nearest class is the rest. Both are timed in turn in the same run, so that
a busy machine slows both, and the medians are compared. Exits with 1 above the target ratio.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from detectors import Outputs, create

CLASSES, DIMENSIONS, ROWS, ROUNDS, TARGET_RATIO = 1000, 2048, 4096, 9, 2.0


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> int:
    random = torch.Generator().manual_seed(0)
    train = Outputs(
        features=torch.randn(3 * CLASSES, DIMENSIONS, generator=random), labels=torch.arange(3 * CLASSES) % CLASSES
    )
    features = torch.randn(ROWS, DIMENSIONS, generator=random, dtype=torch.float64)
    whitening = torch.randn(DIMENSIONS, DIMENSIONS, generator=random, dtype=torch.float64)
    means = torch.randn(CLASSES, DIMENSIONS, generator=random, dtype=torch.float64)
    detector = create("mahalanobis").fit(train, None)
    outputs = Outputs(features=features)

    def products() -> None:
        features @ whitening @ means.T

    detector.score(outputs)
    products()
    score_s, products_s = zip(
        *((seconds(lambda: detector.score(outputs)), seconds(products)) for _ in range(ROUNDS)), strict=True
    )
    ratio = median(score_s) / median(products_s)
    print(
        f"mahalanobis, {ROWS} rows, C={CLASSES}, D={DIMENSIONS}, float64, {torch.get_num_threads()} threads: "
        f"score {median(score_s):.3f} s, two matrix products {median(products_s):.3f} s, "
        f"ratio {ratio:.2f} (target <= {TARGET_RATIO})"
    )
    return int(ratio > TARGET_RATIO)


if __name__ == "__main__":
    raise SystemExit(main())
