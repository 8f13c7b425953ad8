"""Detectors for vision-language models: the head's weights are embeddings of the class names."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from detectors.base import Batch, Detector
from detectors.catalogue import registry
from detectors.logits import log_odds_of_max
from detectors.numerics import unit
from detectors.options import is_integer, is_number, require, require_choice, require_percentile, require_temperature
from detectors.outputs import Outputs
from detectors.state import learned

# What a batch may hold in one array: 32 MiB.
_VALUES_AT_ONCE = 2**22
_WORDS_AT_ONCE = 1024


@registry.register
@dataclass(kw_only=True, eq=False)
class MCM(Detector):
    """Maximum softmax probability of the cosines between an image and the class names.

    Formula: S = log(p / (1 - p)), p = max_c softmax(s / T)_c, s_c = cos(h, t_c), t_c = text embedding of class c
    Paper: Y. Ming, Z. Cai, J. Gu, Y. Sun, W. Li, Y. Li, "Delving into Out-of-Distribution Detection with
        Vision-Language Representations", NeurIPS 2022, arXiv:2211.13445
    Options:
    - temperature: T, at least 0.000001. The published 1 is for plain cosines, which these are (a footnote's 100 is
        for logits that CLIP has multiplied by 100)
    Invariant to: logit shift, logit scale, class order, feature scale, feature rotation
    Deviations:
    - The text embeddings are the head's weights, of any length; its bias is not read.
    - The log-odds of the probability are returned, as in msp: the same order, but probabilities near 1 stay apart.
    - The zero vector, which has no direction, has the cosine 0 with everything.
    Verified:
    - plain loops written from the formula, 1e-6
    - pytorch-ood 0.4, 1e-5, which computes in single precision
    """

    id = "mcm"
    needs = frozenset({"features", "head", "text"})
    score_scale = 2  # 1: the logarithm of the probability, and in gl-mcm the sum of two probabilities
    temperature: float = 1.0
    text: Tensor = learned()

    def __post_init__(self) -> None:
        require_temperature(self.id, "temperature", self.temperature)

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        self.text = unit(head.weight)

    def _score(self, batch: Batch) -> Tensor:
        return log_odds_of_max(unit(batch.features) @ self.text.T / self.temperature)


@registry.register
@dataclass(kw_only=True, eq=False)
class GLMCM(MCM):
    """Maximum softmax probability of the whole image plus that of its best patch.

    Formula: S = log(P / (2 - P)), P = max_c softmax(s / T)_c + max_{i,c} softmax(s_i / T')_c, s_c = cos(h, t_c), s_ic =
        cos(h_i, t_c), h_i = feature of patch i, t_c = text embedding of class c
    Paper: A. Miyai, Q. Yu, G. Irie, K. Aizawa, "Zero-Shot In-Distribution Detection in Multi-Object Settings Using
        Vision-Language Foundation Models", 2023, arXiv:2304.04521
    Options:
    - temperature: T, at least 0.000001. The published 1 is for plain cosines, which these are (a footnote's 100 is
        for logits that CLIP has multiplied by 100)
    - local_temperature: T', at least 0.000001
    - form: 'code', the formula above, from which the published tables come; or 'printed', where the second term is
        max_c softmax(s' / T')_c with s'_c = max_i s_ic
    Invariant to: logit shift, logit scale, class order, feature scale, feature rotation
    Deviations:
    - The log-odds of half the sum P are returned: the same order, but sums near 2 stay apart. With a single class,
        where P is always 2, the score is 0.
    - The text embeddings are the head's weights, of any length; its bias is not read.
    - The local term has weight 1, as in the tables; a later version of the paper's code makes it an option.
    - The zero vector, which has no direction, has the cosine 0 with everything.
    Verified:
    - plain loops written from the formula, 1e-6
    """

    id = "gl-mcm"
    needs = frozenset({"features", "patches", "head", "text"})
    local_temperature: float = 1.0
    form: str = "code"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_temperature(self.id, "local_temperature", self.local_temperature)
        require_choice(self.id, "form", self.form, ("code", "printed"))

    def _rows_in_a_batch(self, outputs: Outputs) -> int:
        patches = math.prod(outputs.patches.shape[1:2]) if outputs.patches is not None else 1
        return _rows_at_once(self.batch_rows, patches * max(self.text.shape))

    def _score(self, batch: Batch) -> Tensor:
        odds = torch.stack([super()._score(batch), self._best_patch(batch.patches)])
        if len(self.text) == 1:
            return odds[0]
        return logsigmoid(odds).logsumexp(dim=0) - logsigmoid(-odds).logsumexp(dim=0)

    def _best_patch(self, patches: Tensor) -> Tensor:
        """The log-odds (n,) of the class that a patch matches best."""
        images, positions, width = patches.shape
        if width != self.text.shape[1]:
            raise ValueError(f"{self.id}: patches have {width} values each, but text embeddings {self.text.shape[1]}")
        cosines = unit(patches.reshape(-1, width)) @ self.text.T / self.local_temperature
        if self.form == "printed":
            return log_odds_of_max(cosines.view(images, positions, -1).amax(dim=1))
        return log_odds_of_max(cosines).view(images, positions).amax(dim=1)


@registry.register
@dataclass(kw_only=True, eq=False)
class NegLabel(Detector):
    """Softmax probability of the class names against many words that are far from all of them.

    Formula: S = log(P / (1 - P)), P = mean over groups g of sum_c exp(s_c / T) / (sum_c exp(s_c / T) + sum_{j in g}
        exp(s_j / T)), s = cosine of the image with the embedding of class c or negative word j; the negative words are
        the share `keep` of `words` whose cosines with the classes have the lowest percentile
    Paper: X. Jiang, F. Liu, Z. Fang, H. Chen, T. Liu, F. Zheng, B. Han, "Negative Label Guided OOD Detection with
        Pretrained Vision-Language Models", ICLR 2024, arXiv:2403.20078
    Options:
    - words: candidates for negative words, without the class names; at least one. The paper takes the nouns and
        adjectives of WordNet. Words that occur twice count once
    - keep: share of the words, above 0 and up to 1, rounded down to whole words, but at least one
    - percentile: of a word's cosines with all classes, from 0 to 100
    - groups: from 1 to the number of negative words. By default 100, or each word by itself where there are fewer;
        words that cannot be shared out evenly are left out, those nearest to the classes first
    - temperature: T, at least 0.000001
    Invariant to: logit shift, logit scale, class order, feature scale, feature rotation
    Deviations:
    - The log-odds of P are returned: same order, but values near 0 and 1 stay apart.
    - The text embeddings of the classes are the head's weights, of any length; its bias is not read.
    - The groups are dealt out in the order of the percentiles; the paper's code permutes the words at random.
    - All words are ranked together; the paper's code keeps its share of nouns and of adjectives apart, and has a prompt
        for each. Here the model's text_features decides how a word becomes a prompt.
    - A class name among the words stays among them if it is far from most other classes, as in the paper's code.
    - The zero vector, which has no direction, has the cosine 0 with everything.
    Verified:
    - plain loops written from the paper's code, 1e-6
    """

    id = "neglabel"
    needs = frozenset({"features", "head", "text", "model"})
    words: tuple[str, ...] = ()
    keep: float = 0.15
    percentile: float = 95.0
    groups: int | None = None
    temperature: float = 0.01
    text: Tensor = learned()
    negatives: Tensor = learned()  # (groups, words in a group, D)

    def __post_init__(self) -> None:
        ok = isinstance(self.words, tuple | list) and all(isinstance(word, str) and word.strip() for word in self.words)
        require(ok, self.id, "words", self.words, "a tuple of words, none of them blank")
        ok = is_number(self.keep) and 0 < self.keep <= 1
        require(ok, self.id, "keep", self.keep, "a number above 0 and up to 1")
        require_percentile(self.id, "percentile", self.percentile)
        ok = self.groups is None or (is_integer(self.groups) and self.groups >= 1)
        require(ok, self.id, "groups", self.groups, "an integer from 1, or None")
        require_temperature(self.id, "temperature", self.temperature)

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        words = list(dict.fromkeys(word.strip() for word in self.words))
        require(len(words) > 0, self.id, "words", self.words, "at least one word")
        self.text = unit(head.weight)
        candidates = torch.cat(
            [self._embeddings(words[i : i + _WORDS_AT_ONCE]) for i in range(0, len(words), _WORDS_AT_ONCE)]
        )
        nearness = torch.cat(
            [(part @ self.text.T).quantile(self.percentile / 100, dim=1) for part in candidates.split(_WORDS_AT_ONCE)]
        )
        kept = nearness.argsort(stable=True)[: max(1, math.floor(self.keep * len(words) + 1e-9))]
        groups = min(100, len(kept)) if self.groups is None else self.groups
        require(groups <= len(kept), self.id, "groups", groups, f"up to {len(kept)}, the number of negative words")
        dealt = candidates[kept[: len(kept) // groups * groups]].view(-1, groups, candidates.shape[1])
        self.negatives = dealt.transpose(0, 1).contiguous()

    def _embeddings(self, words: list[str]) -> Tensor:
        """Text embeddings (number of words, D) of length 1."""
        embeddings = torch.as_tensor(self._ask_model("text_features", words)).detach().cpu().double()
        expected = (len(words), self.text.shape[1])
        if tuple(embeddings.shape) != expected or not torch.isfinite(embeddings).all():
            raise ValueError(
                f"{self.id}: text_features(words) must be finite and of shape {expected}, got {tuple(embeddings.shape)}"
            )
        return unit(embeddings)

    def _rows_in_a_batch(self, outputs: Outputs) -> int:
        return _rows_at_once(self.batch_rows, self.negatives.shape[:2].numel())

    def _score(self, batch: Batch) -> Tensor:
        features = unit(batch.features) / self.temperature
        classes = (features @ self.text.T).logsumexp(dim=1, keepdim=True)
        cosines = features @ self.negatives.flatten(0, 1).T
        odds = classes - cosines.view(-1, *self.negatives.shape[:2]).logsumexp(dim=2)
        return logsigmoid(odds).logsumexp(dim=1) - logsigmoid(-odds).logsumexp(dim=1)


def _rows_at_once(most: int, values_a_row: int) -> int:
    return max(1, min(most, _VALUES_AT_ONCE // values_a_row))
