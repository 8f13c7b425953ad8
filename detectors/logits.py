"""Detectors that read the logits alone."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detectors.base import Batch, Detector
from detectors.catalogue import registry
from detectors.numerics import class_means, unit
from detectors.options import is_integer, is_number, require, require_choice, require_temperature
from detectors.state import learned


@registry.register
@dataclass(kw_only=True, eq=False)
class MSP(Detector):
    """Maximum softmax probability.

    Formula: S = log(p / (1 - p)) = -log sum_{c != m} exp(o_c - o_m), p = max_c softmax(o)_c, m = argmax_c o_c
    Paper: D. Hendrycks, K. Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural
        Networks", ICLR 2017, arXiv:1610.02136
    Invariant to: logit shift, class order, feature unit, feature scale, feature shift, feature rotation
    Deviations:
    - The log-odds of the probability are returned: the same order, but probabilities near 1 stay apart. With a single
        class, whose probability is always 1, the score is 0.
    Verified:
    - the formula in extended precision, 1e-6
    - pytorch-ood 0.4, 1e-6
    """

    id = "msp"
    needs = frozenset({"logits"})
    score_scale = 2  # 1: the logarithm of the probability

    def _score(self, batch: Batch) -> Tensor:
        return log_odds_of_max(batch.logits)


def log_odds_of_max(logits: Tensor) -> Tensor:
    """log(p / (1 - p)) (n,), p = max_c softmax(o)_c, of logits (n, C). It grows with p, and never saturates.

    With one class, where p is 1, it is 0.
    """
    if logits.shape[1] == 1:
        return logits.new_zeros(len(logits))
    return -_gaps_to_the_top(logits).logsumexp(dim=1)


def _gaps_to_the_top(logits: Tensor) -> Tensor:
    """o_c - max_k o_k (n, C), and -inf at the class of the maximum (the first one of several)."""
    top, predicted = logits.max(dim=1, keepdim=True)
    return (logits - top).scatter_(1, predicted, -torch.inf)


@registry.register
@dataclass(kw_only=True, eq=False)
class MaxLogit(Detector):
    """The largest logit.

    Formula: S = max_c o_c
    Paper: D. Hendrycks, S. Basart, M. Mazeika, A. Zou, J. Kwon, M. Mostajabi, J. Steinhardt, D. Song, "Scaling
        Out-of-Distribution Detection for Real-World Settings", ICML 2022, arXiv:1911.11132
    Invariant to: logit shift, logit scale, class order, feature unit, feature scale, feature shift, feature rotation
    Verified:
    - plain loops written from the formula, 1e-6
    - pytorch-ood 0.4, 1e-6
    """

    id = "max-logit"
    needs = frozenset({"logits"})

    def _score(self, batch: Batch) -> Tensor:
        return batch.logits.amax(dim=1)


@registry.register
@dataclass(kw_only=True, eq=False)
class Energy(Detector):
    """Negative free energy of the logits.

    Formula: S = T log sum_c exp(o_c / T)
    Paper: W. Liu, X. Wang, J. D. Owens, Y. Li, "Energy-based Out-of-distribution Detection", NeurIPS 2020,
        arXiv:2010.03759
    Options:
    - temperature: T, at least 0.000001
    Invariant to: logit shift, class order, feature unit, feature scale, feature shift, feature rotation
    Verified:
    - plain loops written from the formula, 1e-6
    - pytorch-ood 0.4, 1e-6
    """

    id = "energy"
    needs = frozenset({"logits"})
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require_temperature(self.id, "temperature", self.temperature)

    def _score(self, batch: Batch) -> Tensor:
        return self.temperature * (batch.logits / self.temperature).logsumexp(dim=1)


@registry.register
@dataclass(kw_only=True, eq=False)
class Entropy(Detector):
    """Negative logarithm of the Shannon entropy of the predicted distribution.

    Formula: S = -log H, H = -sum_c p_c log p_c, p = softmax(o)
    Paper: R. Chan, M. Rottmann, H. Gottschalk, "Entropy Maximization and Meta Classification for Out-of-Distribution
        Detection in Semantic Segmentation", ICCV 2021, arXiv:2012.06575
    Invariant to: logit shift, class order, feature unit, feature scale, feature shift, feature rotation
    Deviations:
    - The score alone, on a network as it is: the paper also trains for a high entropy on outliers.
    - The logarithm of the entropy is returned: the same order, but entropies near 0 stay apart. With a single class,
        whose entropy is always 0, the score is 0.
    Verified:
    - the formula in extended precision, 1e-6
    - pytorch-ood 0.4, 1e-6, where no probability is below its floor of 1e-7
    """

    id = "entropy"
    needs = frozenset({"logits"})
    score_scale = 2  # 1: the entropy itself

    def _score(self, batch: Batch) -> Tensor:
        if batch.logits.shape[1] == 1:
            return batch.logits.new_zeros(len(batch.logits))
        # H = log(1 + r) + sum_c e_c (-g_c) / (1 + r), g = gaps, e = exp(g), r = sum_{c != m} e_c: no term is negative.
        log_rest = _gaps_to_the_top(batch.logits).logsumexp(dim=1)
        log_total = log_rest.exp().log1p_()
        # log log(1 + r) is log r, to all digits, where r is small; further down r is 0 to exp.
        first = torch.where(log_rest < -40, log_rest, log_total.log())
        gaps = batch.logits - batch.logits.amax(dim=1, keepdim=True)
        second = gaps.neg().log_().add_(gaps).logsumexp(dim=1) - log_total
        return -torch.logaddexp(first, second)


@registry.register
@dataclass(kw_only=True, eq=False)
class GEN(Detector):
    """Negative logarithm of the generalised entropy of the largest predicted probabilities.

    Formula: S = -log sum_{m <= M} p_(m)^gamma (1 - p_(m))^gamma, p_(1) >= p_(2) >= ... = softmax(o) in descending order
    Paper: X. Liu, Y. Lochman, C. Zach, "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection",
        CVPR 2023, not on arXiv
    Options:
    - gamma: above 0; the paper takes it from 0 to 1
    - top: M, at least 1; all classes where there are fewer. The paper takes a tenth of the classes on ImageNet (100)
    Invariant to: logit shift, class order, feature unit, feature scale, feature shift, feature rotation
    Deviations:
    - The logarithm is returned: the same order, but entropies near 0 stay apart. With a single class, whose entropy is
        always 0, the score is 0.
    Verified:
    - the formula in extended precision, 1e-6
    - pytorch-ood 0.4, 1e-6, where no probability is within 1e-7 of 0 or 1; it divides by M
    """

    id = "gen"
    needs = frozenset({"logits"})
    score_scale = 2  # 1: the generalised entropy itself
    gamma: float = 0.1
    top: int = 100

    def __post_init__(self) -> None:
        require(is_number(self.gamma) and self.gamma > 0, self.id, "gamma", self.gamma, "a number above 0")
        require(is_integer(self.top) and self.top >= 1, self.id, "top", self.top, "an integer from 1")

    def _score(self, batch: Batch) -> Tensor:
        if batch.logits.shape[1] == 1:
            return batch.logits.new_zeros(len(batch.logits))
        gaps = _gaps_to_the_top(batch.logits)
        log_rest = gaps.logsumexp(dim=1)
        log_total = log_rest.exp().log1p_()  # of exp(o - max o)
        if self.top < gaps.shape[1]:
            gaps = gaps.topk(self.top - 1, dim=1, sorted=False).values
        log_p = gaps.sub_(log_total[:, None])
        # The others' probabilities are at most 1/2, so that 1 - p keeps its digits; that of the largest is their sum.
        others = log_p.exp().neg_().log1p_().add_(log_p).mul_(self.gamma)
        largest = self.gamma * (log_rest - 2 * log_total)
        return -torch.cat([largest[:, None], others], dim=1).logsumexp(dim=1)


@registry.register
@dataclass(kw_only=True, eq=False)
class KLMatching(Detector):
    """Divergence of the predicted distribution from the nearest class template.

    Formula: S = -min_c KL(p || d_c), p = softmax(o), d_c = mean of p over the training images of class c
    Paper: D. Hendrycks, S. Basart, M. Mazeika, A. Zou, J. Kwon, M. Mostajabi, J. Steinhardt, D. Song, "Scaling
        Out-of-Distribution Detection for Real-World Settings", ICML 2022, arXiv:1911.11132
    Options:
    - classes: what puts a training image into class c: 'predicted' (its largest logit) or 'true' (its label)
    Invariant to: logit shift, class order, feature unit, feature scale, feature shift, feature rotation
    Deviations:
    - The templates come from the training set, as in NINCO (arXiv:2306.00826); the paper takes a validation split.
    - A template's probability below 2.2e-308 counts as that, so that the divergence stays finite.
    - A class without a training image has no template.
    Verified:
    - plain loops written from the formula, 1e-6
    - pytorch-ood 0.4, 1e-6, by predicted class
    """

    id = "kl-matching"
    needs = frozenset({"logits", "train"})
    classes: str = "predicted"
    log_templates: Tensor = learned()

    def __post_init__(self) -> None:
        require_choice(self.id, "classes", self.classes, ("predicted", "true"))

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        classes = next(self._stream(train)).logits.shape[1]
        if self.classes == "true":
            batches = self._stream(train, self._labels(train, head))
            rows = ((batch.logits.softmax(dim=1), batch.labels) for batch in batches)
        else:
            rows = ((batch.logits.softmax(dim=1), batch.logits.argmax(dim=1)) for batch in self._stream(train))
        sizes, templates = class_means(rows, classes)
        self.log_templates = templates[sizes > 0].clamp_min(torch.finfo(templates.dtype).tiny).log()

    def _score(self, batch: Batch) -> Tensor:
        log_p = batch.logits.log_softmax(dim=1)
        p = log_p.exp()
        return (p @ self.log_templates.T).amax(dim=1) - (p * log_p).sum(dim=1)


@registry.register
@dataclass(kw_only=True, eq=False)
class TemperatureScaling(Detector):
    """Maximum softmax probability at the temperature that calibrates the network on held-out images.

    Formula: S = log(p / (1 - p)), p = max_c softmax(o / T)_c, T = argmin_T sum_i -log softmax(o_i / T)_{y_i} over the
        val images
    Paper: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On Calibration of Modern Neural Networks", ICML 2017,
        arXiv:1706.04599
    Invariant to: logit shift, logit scale, class order, feature unit, feature scale, feature shift, feature rotation
    Deviations:
    - T is sought from 1/100 to 100 times the mean of max_c o_c - mean_c o_c over the val images. It is the lower bound
        where the network gets every val image right, the upper one where it is no better than chance, and 1 where the
        logits of every image are constant: the sum has no minimum then.
    - The minimum is found to 1e-12: the sum is convex in 1 / T. OpenOOD and pytorch-ood stop after 50 steps of L-BFGS.
    - The log-odds of the probability are returned, as in msp: the same order, but probabilities near 1 stay apart.
    Verified:
    - scipy.optimize.minimize_scalar on the sum of plain loops, which it never beats by 1e-12
    - pytorch-ood 0.4, 5e-3, fitted again and again, because it stops short of the minimum
    """

    id = "temperature-scaling"
    needs = frozenset({"logits", "val"})
    score_scale = 2  # 1: the logarithm of the probability
    temperature: float = learned()

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        labels = self._labels(val, None)
        # Differences first: they are exactly 0 where the logits of an image are constant.
        depths = (batch.logits.amax(dim=1, keepdim=True) - batch.logits for batch in self._stream(val))
        height = sum(float(rows.mean(dim=1).sum()) for rows in depths) / len(val)
        if height == 0:
            self.temperature = 1.0
            return

        def slope(log_inverse: float) -> float:
            """The derivative in 1 / T, at the logarithm of 1 / T: it rises with it."""
            total = 0.0
            for batch in self._stream(val, labels):
                gaps = batch.logits - batch.logits.amax(dim=1, keepdim=True)
                mean = (gaps * math.exp(log_inverse)).softmax(dim=1).mul_(gaps).sum(dim=1)
                total += float((mean - gaps.gather(1, batch.labels[:, None])[:, 0]).sum())
            return total

        lower, upper = -math.log(100 * height), -math.log(height / 100)
        if slope(upper) <= 0:
            log_inverse = upper
        elif slope(lower) >= 0:
            log_inverse = lower
        else:
            from scipy.optimize import brentq  # here, since it is slow to import

            log_inverse = brentq(slope, lower, upper, xtol=1e-13)
        self.temperature = math.exp(-log_inverse)

    def _score(self, batch: Batch) -> Tensor:
        return log_odds_of_max(batch.logits / self.temperature)


@dataclass(frozen=True, eq=False)
class Weibulls:
    """Weibull distributions of the largest distances of each of K classes.

        shift: what is added to a distance, so that its logarithm exists.
        smallest: (K,), the smallest of the distances of a class.
        log_scale: (K,), the logarithm of the distribution's scale.
        shape: (K,), the distribution's shape.

    log(1 + (distance - smallest) / shift) has the distribution of log x, x ~ Weibull(shape, exp(log_scale)).
    """

    shift: float
    smallest: Tensor
    log_scale: Tensor
    shape: Tensor

    @classmethod
    def of(cls, tails: Tensor, shift: float, round_off: Tensor) -> "Weibulls":
        """Maximum-likelihood fits to tails (K, tail) of distances, in descending order and padded with -inf.

        Where the distances of a class differ by no more than `round_off` (K,), the distribution is a step just above
        them; a class without distances gives no distance a probability.
        """
        present = tails.isfinite()
        sizes = present.double().sum(dim=1)
        smallest = tails.where(present, torch.inf).amin(dim=1).nan_to_num(posinf=0.0)
        logs = ((tails - smallest[:, None]) / shift).log1p()
        width = logs[:, 0].clamp_min(torch.finfo(logs.dtype).tiny)
        logs = (logs / width[:, None] - 1).where(present, -torch.inf)  # from -1 to 0
        shape = _likeliest_shapes(logs, sizes)
        log_scale = 1 + ((shape[:, None] * logs).logsumexp(dim=1) - sizes.log()) / shape
        # 50 steps above the tail, so that the distribution is still 0 (exp(-48)) at the tail and its round-off.
        step = (round_off / shift).log1p()
        narrow = tails[:, 0] - smallest <= round_off
        return cls(
            shift,
            smallest,
            torch.where(narrow, 50 * step, width * log_scale).where(sizes > 0, torch.inf),
            torch.where(narrow, 1 / step, shape / width),
        )

    def probability(self, distances: Tensor, classes: Tensor) -> Tensor:
        """The distribution functions of the given classes (n,) at distances (n,)."""
        logs = ((distances - self.smallest[classes]) / self.shift).clamp_min_(-1.0).log1p_()
        return -logs.sub_(self.log_scale[classes]).mul_(self.shape[classes]).exp_().neg_().expm1_()


def _likeliest_shapes(logs: Tensor, sizes: Tensor) -> Tensor:
    """The maximum-likelihood shapes (K,) of Weibull variables from their logarithms (K, tail), from -1 to 0.

    -inf marks what is missing. The likelihood is highest where 1 / k + mean(log x) - sum(x^k log x) / sum(x^k) is 0.
    """
    finite = logs.nan_to_num(neginf=0.0)
    means = finite.sum(dim=1) / sizes
    lower = torch.zeros_like(means)  # of log k
    upper = (sizes * (1 + (sizes - 1) / math.e)).clamp_min(1).log()
    for _ in range(64):
        middle = (lower + upper) / 2
        weights = (logs * middle.exp()[:, None]).exp_()
        too_low = (-middle).exp() + means > (weights * finite).sum(dim=1) / weights.sum(dim=1)
        lower, upper = torch.where(too_low, middle, lower), torch.where(too_low, upper, middle)
    return upper.exp()


@registry.register
@dataclass(kw_only=True, eq=False)
class OpenMax(Detector):
    """Odds of the known classes against an unknown one, to which logits far from their class mean give way.

    Formula: S = log sum_c exp(v_c) - v_0, v_c = o_c (1 - w_c), v_0 = sum_c o_c w_c; for the class c whose logit is the
        i-th largest, i <= alpha: w_c = (alpha - i + 1) / alpha * F_c(|o - m_c|), and 0 for the others; m_c = mean
        logits of the training images of class c that are classified correctly, F_c = distribution function of a Weibull
        variable, fitted by maximum likelihood to their `tail` largest distances d: of 1 + (d - min d) / shift
    Paper: A. Bendale, T. E. Boult, "Towards Open Set Deep Networks", CVPR 2016, arXiv:1511.06233
    Options:
    - tail: how many of a class's largest distances, at least 1; all of them where it has fewer. By default 20, as in
        the paper, but no more than a tenth of the class (rounded up): else its typical images would count as extreme
    - alpha: how many of the largest logits are revised, from 1 to the number of classes. By default 3, as in OpenOOD,
        or all where there are fewer; the paper takes 10 on ImageNet
    - distance: 'euclidean', as in OpenOOD, or 'eucos', as in the paper's code: Euclidean / 200 + 1 - cosine
    - shift: at least 0.000001. Today's libmr takes 1; that of the paper took 10000
    Invariant to: class order, feature unit, feature scale, feature shift, feature rotation
    Deviations:
    - The log-odds of the known classes are returned: the same order as minus the probability of the unknown class,
        exp(v_0) / sum_{c >= 0} exp(v_c), which ties at 0 and 1.
    - The paper's algorithm prints w_c = (alpha - i) / alpha * (1 - F_c), less for a farther image; this is its code's.
    - alpha and distance are OpenOOD's, and so is tail for classes of more than 190 images: from there the
        CIFAR tables of Mahalanobis++ (arXiv:2505.18032) come.
    - Training fixes the logits up to a number that is the same for all of them. The share of a logit that an
        image gives up depends on it, as in the paper: large logits are meant to be positive.
    - Where the distances of a class do not differ, libmr refuses to fit: F_c is 0 up to them and 1 beyond. The logit of
        a class without a correctly classified training image is not revised.
    Verified:
    - plain loops written from the paper's code with a root search by scipy, 1e-6
    - scipy.stats.weibull_min.fit, 1e-3
    - pytorch-ood 0.4, 2e-3, at alpha = 1 and shift = 10000, on correctly classified images: it fits to all images, and
        its answers for a larger alpha depend on the other images of the batch
    """

    id = "openmax"
    needs = frozenset({"logits", "train"})
    tail: int | None = None
    alpha: int | None = None
    distance: str = "euclidean"
    shift: float = 1.0
    means: Tensor = learned()
    weibulls: Weibulls = learned()

    def __post_init__(self) -> None:
        ok = self.tail is None or (is_integer(self.tail) and self.tail >= 1)
        require(ok, self.id, "tail", self.tail, "an integer from 1, or None")
        ok = self.alpha is None or (is_integer(self.alpha) and self.alpha >= 1)
        require(ok, self.id, "alpha", self.alpha, "an integer from 1, or None")
        require_choice(self.id, "distance", self.distance, ("euclidean", "eucos"))
        require(is_number(self.shift) and self.shift >= 1e-6, self.id, "shift", self.shift, "a number from 0.000001")

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        labels = self._labels(train, head)
        classes = next(self._stream(train)).logits.shape[1]
        ok = self.alpha is None or self.alpha <= classes
        require(ok, self.id, "alpha", self.alpha, f"up to {classes}, the number of classes")

        def correct() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in self._stream(train, labels):
                right = batch.logits.argmax(dim=1) == batch.labels
                yield batch.logits[right], batch.labels[right]

        sizes, means = class_means(correct(), classes)
        self.means = means.nan_to_num_(0.0)
        distances = ((self._distances(logits, labels), labels) for logits, labels in correct())
        tail = (sizes / 10).ceil().clamp_max(20) if self.tail is None else sizes.clamp_max(self.tail)
        tails = largest_of_each_class(distances, tail)
        size = torch.linalg.vector_norm(self.means, dim=1)
        round_off = (1e-12 * torch.maximum(size, tails[:, 0])).clamp_min(1e-200)
        self.weibulls = Weibulls.of(tails, self.shift, round_off)

    def _score(self, batch: Batch) -> Tensor:
        alpha = min(3, batch.logits.shape[1]) if self.alpha is None else self.alpha
        values, ranked = batch.logits.topk(alpha, dim=1)
        given_up = torch.empty_like(values)
        for i in range(alpha):
            classes = ranked[:, i]
            outlying = self.weibulls.probability(self._distances(batch.logits, classes), classes)
            given_up[:, i] = values[:, i] * outlying * ((alpha - i) / alpha)
        known = batch.logits.scatter_add(1, ranked, -given_up)
        return known.logsumexp(dim=1) - given_up.sum(dim=1)

    def _distances(self, logits: Tensor, classes: Tensor) -> Tensor:
        """The distances (n,) of logits (n, C) from the means of their classes (n,)."""
        means = self.means[classes]
        euclidean = torch.linalg.vector_norm(logits - means, dim=1)
        if self.distance == "euclidean":
            return euclidean
        return euclidean / 200 + 1 - (unit(logits) * unit(means)).sum(dim=1)


def largest_of_each_class(rows: Iterable[tuple[Tensor, Tensor]], counts: Tensor) -> Tensor:
    """The `counts` (K,) largest values of K classes, in descending order, from batches of (values (n,), classes (n,)).

    They are (K, largest count); -inf fills up.
    """
    classes, count = len(counts), max(1, int(counts.max()))
    largest = torch.full((classes, count), -torch.inf, dtype=torch.float64)
    owners = torch.arange(classes).repeat_interleave(count)
    for values, labels in rows:
        values, labels = torch.cat([largest.flatten(), values]), torch.cat([owners, labels])
        order = values.argsort(descending=True)
        order = order[labels[order].argsort(stable=True)]
        sizes = labels.bincount()
        firsts = sizes.cumsum(dim=0) - sizes
        largest = values[order[firsts[:, None] + torch.arange(count)]]
    return largest.masked_fill_(torch.arange(count) >= counts[:, None], -torch.inf)
