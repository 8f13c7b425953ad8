"""The time that UMAP takes on a network of the digits suite.

    python tests/speed/unleashing_mask.py [MODEL]

Prints the seconds of the estimate of the loss target and 20 epochs of mask learning. Exits 1 above 120 s.
"""

import sys
import time

import torch

from benchmark.images.image_set import load_image_set
from benchmark.models.loading import load_model
from benchmark.suites.loading import load_suite
from benchmark.training.data import TrainingSet
from benchmark.training.from_scratch import THREADS
from benchmark.training.optimisation import Progress, Schedule
from benchmark.variants.method import TrainingData
from benchmark.variants.unleashing_mask import UMAP

LIMIT_S = 120.0


def main() -> None:
    torch.set_num_threads(THREADS)
    model_id = sys.argv[1] if len(sys.argv) > 1 else "digits-resnet"
    train_set = load_image_set("digits-train")
    model = load_model(model_id, load_suite("digits").known_models, torch.device("cpu"), train_set.class_names)
    data = TrainingData(TrainingSet(model, train_set))
    method = UMAP(augmentation="affine", schedule=Schedule(epochs=20, batch=64, learning_rate=0.1))
    started = time.perf_counter()
    method.make_edit(model, data, Progress(None, {}))
    seconds = time.perf_counter() - started
    print(f"{model_id}: UMAP of 20 epochs in {seconds:.0f} s (limit {LIMIT_S:.0f} s)")
    sys.exit(seconds > LIMIT_S)


if __name__ == "__main__":
    main()
