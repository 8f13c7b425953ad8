"""Trials: what a network makes of a few fixed images tells code that computes otherwise from a machine that rounds."""

import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark.models.trial import SIZES, TOLERANCE, same_outcome, trial, trial_images, trial_sha256, trial_sizes


class Parts(nn.Module):
    """A network with timm's interface, whose features and logits can be set apart from each other."""

    def __init__(self, features: float = 1.0, logits: float = 1.0) -> None:
        super().__init__()
        self.factors = features, logits

    def forward_features(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))

    def forward_head(self, hidden: Tensor, pre_logits: bool) -> Tensor:
        assert pre_logits
        return self.factors[0] * hidden

    def forward(self, images: Tensor) -> Tensor:
        return self.factors[1] * torch.stack([images.amax(dim=(1, 2, 3)), images[:, 0, 0, 0]], dim=1)


def small(image: object) -> Tensor:
    return torch.from_numpy(np.asarray(image)[:8, :8].copy()).permute(2, 0, 1) / 255


def test_features_and_logits_are_in_a_trial() -> None:
    outcome = trial(Parts(), small)
    assert outcome.shape == (2, 5)
    assert outcome.dtype == torch.float64
    images = torch.stack([small(image) for image in trial_images()])
    torch.testing.assert_close(outcome[:, :3], images.mean(dim=(2, 3)).double())
    torch.testing.assert_close(outcome[:, 3:], Parts()(images).double())
    hashes = {trial_sha256(trial(Parts(*factors), small)) for factors in ((1, 1), (1.1, 1), (1, 1.1), (2, 2))}
    assert len(hashes) == 4  # the last of which differs by its scale alone


def test_images_and_hashes_of_trials_stay_as_they_are() -> None:
    """They are in keys: others would make all outputs of user's networks anew."""
    images = trial_images()
    assert [image.size for image in images] == [(width, height) for height, width in SIZES] == [(64, 96), (80, 50)]
    pixels = hashlib.sha256(b"".join(np.asarray(image).tobytes() for image in images)).hexdigest()
    assert pixels == "86b608d949ef19264a76db7373d23e753a2aff47568224d1911add89e1d65d78"
    outcome = torch.tensor([[0.5, -2.0], [0.25, 1.0]], dtype=torch.float64)
    text = "2.00e+00 [[250, -1000], [125, 500]]"
    assert trial_sha256(outcome) == hashlib.sha256(text.encode()).hexdigest()
    assert len(trial_sha256(torch.zeros(2, 3, dtype=torch.float64))) == 64


def test_a_network_for_images_of_one_size_is_tried_on_that_size() -> None:
    assert trial_sizes({"image_size": [20, 30]}) == ((20, 30), (20, 30))
    assert [image.size for image in trial_images(trial_sizes({"image_size": [20, 30]}))] == [(30, 20)] * 2
    assert trial_sizes({}) == SIZES


@pytest.mark.parametrize(
    ("others", "same"),
    [
        ([2.0, -1.0, 0.5], True),
        ([2.0, -1.0, 0.5 + 1e-5], True),  # as another processor rounds
        ([2.0, -1.0, 0.5 - 1.9 * TOLERANCE], True),  # relative to the largest, which is 2
        ([2.0, -1.0, 0.5 + 2.1 * TOLERANCE], False),
        ([2.0, -1.0 - 2.1 * TOLERANCE, 0.5 + 2.1 * TOLERANCE], False),  # which cancel out on average
        ([2.0, -1.0], False),
        ([2.0, -1.0, 0.5, 0.0], False),
        ([], False),
        ([2.0, -1.0, float("nan")], False),
    ],
)
def test_outcomes_are_the_same_but_for_rounding(others: list[float], same: bool) -> None:
    assert same_outcome([2.0, -1.0, 0.5], others) == same
    assert 1e-4 < TOLERANCE < 1e-2  # above what processors differ by, below what moves a figure
    assert same_outcome([0.0, 0.0], [0.0, 0.0])
