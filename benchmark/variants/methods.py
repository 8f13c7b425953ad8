"""The methods by their ids. A new method needs a class in a file of this folder, and a line here."""

from benchmark.variants.low_rank_tuning import LoRA, SeTARFineTuning
from benchmark.variants.method import Method
from benchmark.variants.outliers import EnergyBounded, JensenShannonExposure, OutlierExposure
from benchmark.variants.setar import SeTAR
from benchmark.variants.unleashing_mask import UM, UMAP, LearnedPruning

METHODS: dict[str, type[Method]] = {
    method.id: method
    for method in (
        SeTAR,
        SeTARFineTuning,
        LoRA,
        UM,
        UMAP,
        LearnedPruning,
        OutlierExposure,
        JensenShannonExposure,
        EnergyBounded,
    )
}
