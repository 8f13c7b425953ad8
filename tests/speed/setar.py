"""How long SeTAR's search on the digits CLIP takes, against one that computes everything anew for every candidate.

    python tests/speed/setar.py

Both run in turns, by one thread, and the fastest round of each counts, so that other work on the machine does not. They
must come to the same ratios and losses. Exits 1 where they do not, where keeping makes the search less than twice as
fast, or where it takes more than two minutes.
"""

import sys
from pathlib import Path
from time import perf_counter

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmark.images.image_set import load_image_set
from benchmark.models.loading import load_model
from benchmark.suites.loading import load_suite
from benchmark.training.data import TrainingSet, images_of_each_class
from benchmark.training.optimisation import Progress
from benchmark.variants.making import method_of
from benchmark.variants.method import TrainingData
from benchmark.variants.setar import SeTAR
from tests.references.setar import plain_search

VARIANT = "digits-clip+setar"
ROUNDS = 5
LOWEST_RATIO = 2.0
LIMIT_S = 120.0


@torch.no_grad()
def main() -> int:
    suite = load_suite("digits")
    method = method_of(VARIANT, suite)
    assert isinstance(method, SeTAR)
    train = load_image_set(suite.entry.in_distribution.train, suite.image_sets)
    base = load_model("digits-clip", suite.known_models, torch.device("cpu"), train.class_names)
    data = TrainingSet(base, train)
    assert data.labels is not None
    rows = images_of_each_class(data.labels, base.classes, method.images_per_class, method.seed)
    images, labels = data.images(rows), data.labels[rows]
    search_s, plain_s = [], []
    for _ in range(ROUNDS):
        started = perf_counter()
        about = method.make_edit(base, TrainingData(data), Progress(None, {})).about
        search_s.append(perf_counter() - started)
        started = perf_counter()
        decisions, evaluations = plain_search(method, base, images, labels, about["ood_weight"], about["rank"])
        plain_s.append(perf_counter() - started)
    found = [(step["tower"], step["layer"], step["ratio"], step["total"]) for step in about["trace"]]
    alike = found == decisions
    ratio = min(plain_s) / min(search_s)
    print(f"search {min(search_s):.2f} s, plain search {min(plain_s):.2f} s: {ratio:.1f} times as fast")
    print(f"{evaluations} evaluations each, {'the same' if alike else 'OTHER'} ratios and losses")
    return int(not alike or ratio < LOWEST_RATIO or min(search_s) > LIMIT_S)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
