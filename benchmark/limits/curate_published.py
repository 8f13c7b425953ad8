"""Makes `benchmark/limits/published/*.csv` from transcripts of the papers' tables. The transcripts are not part of this
project.

    python -m benchmark.limits.curate_published FOLDER_OF_TRANSCRIPTS

An FPR@95 is taken where our models, detectors and image sets should give the same figure. The following is left out:

* Figures that the transcripts mark as doubtful (SUSPECT, CONFLICT, CAUTION), and figures in a damaged text that no
  printed mean confirms.
* Networks without published weights that can be loaded here: HIMPLoS's ResNet-18, the fine-tuned networks of Unleashing
  Mask and SeTAR, the supervised-contrastive ResNet-50 of Mahalanobis++.
* Detectors whose options are not stated: OPNP; BATS; LAPS on CIFAR; HIMPLoS and LINe on MobileNetV2.
* Detectors that have the name of another method here. Mahalanobis in the CIFAR papers combines several layers by a
  regression. Cosine on CLIP takes the cosine to texts.
* NINCO's "full" samples of 400 images, since our images are not the same; and its unit tests, since its files are not
  our arrays.

A tolerance is the sum of the following, in percentage points:

* half a unit of the last digit that is printed;
* where the paper drew its images by chance and ours are others, the sampling error at 95 % of the difference of two
  samples: 1.96 sqrt(2 p (1 - p) / n); of a mean of k sets the root of the sum of their squares, over k, at the mean's
  p. Where the images are the same, nothing;
* where the checkpoint is another training of the same network, or may be one, 1.96 sqrt(2) standard deviations of
  such trainings: the one printed for the cell, and at least the root mean square of those that Unleashing Mask prints
  for MSP, ODIN and Energy (Tables 2, 10, 20 and 24: 2.3 of a set, 0.9 of a mean);
* a margin of 2 for what moves a few images across the threshold: other releases of timm, torch and the image decoder,
  a threshold at the nearest recall instead of at least 95 %, the arithmetic of a GPU. NINCO and Mahalanobis++ print 63
  cells of the same networks, detectors and images: 95 of 100 of them lie within 1.9 of each other, two above 2.1;
* 1 more for detectors that draw training images by chance (NNGuide);
* 4 more, our choice too, where an option is not stated or the network saw images of another size than it sees here.

Whose network ours is, and how we know:

* HIMPLoS on CIFAR-100: the authors' own. All 596 tensors of the file in their repository (sunzh18/HIMPLoS at 7a01249)
  equal those of DICE's (deeplearning-wisc/dice at 8acfb8d) and ours, although the paper says that it trained its
  networks. The means of MSP and Energy that ITP copies from earlier papers are within 0.1 points of HIMPLoS's.
* HIMPLoS on CIFAR-10: we do not know. Their file could not be had. The same two means lie 1.3 and 1.7 points apart, so
  the tolerance stays that of another training.
* ITP on CIFAR: the authors' own. All 596 tensors of both files in their repository (njustkmg/AAAI25-ITP at ecb581a)
  equal ours. We do not know whether the earlier papers from which it copies baselines used this network.
* Unleashing Mask: others. Its figures are means of several trainings, and the batch norms of its configurations have no
  weights, where ours have some. The files of networks in its repository (at 1640ce6) could not be had.
* ResNet-50 on ImageNet-1k: ITP's authors name the file that timm loads, resnet50-0676ba61. HIMPLoS's code names an
  older one of torchvision's first weights, resnet50-19c8e357, and we do not know whether its values are the same.
* MobileNetV2: HIMPLoS's code names the file that torchvision loads, mobilenet_v2-b0353104.
* NINCO, Mahalanobis++, SeTAR: by the names that the papers or their authors' code give; no file was compared. The
  accuracies that Mahalanobis++ prints are timm's to 0.02 points. NINCO's names are those of timm 0.6, and we do not
  know whether each meant the weights of today's tag.
"""

import csv
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from benchmark.entries import read_entries
from benchmark.models.entries import BUILT_IN as MODELS
from benchmark.models.entries import ModelEntry
from benchmark.suites.published import COLUMNS

FOLDER = Path(__file__).parent / "published"

MARGIN = 2.0
DRAWN_AT_RANDOM = 1.0
UNSTATED = 4.0
# The standard deviation of FPR@95 over trainings of DenseNet-BC-100-12, in points: of a set, and of a mean of seven
# sets.
TRAINING_SD, TRAINING_SD_OF_MEAN = 2.3, 0.9
_DOUBTFUL = re.compile("SUSPECT|CONFLICT|CAUTION|doubtful|cannot confirm")

Row = Mapping[str, str]
Names = Mapping[str, str]


@dataclass(frozen=True)
class Curated:
    """A row of one of our files.

    model: the id of the model.
    detector: the id of the detector.
    set: the id of the OOD set, or the name of a mean or of a group of classes.
    percent: the printed FPR@95 in %, as text.
    source: the paper and its table.
    note: what a reader of the figure should know.
    sampled: how many images the paper drew at random, for each set for which it did.
    sets: the number of sets that the figure is a mean of.
    training_sd: the standard deviation over trainings, in points; 0 where the checkpoint is the same.
    extra: what the tolerance has in addition, in points.
    """

    model: str
    detector: str
    set: str
    percent: str
    source: str
    note: str = ""
    sampled: tuple[int, ...] = ()
    sets: int = 1
    training_sd: float = 0.0
    extra: float = 0.0

    @property
    def tolerance(self) -> float:
        """The tolerance in points, as the top of this file explains it."""
        digits = len(self.percent.partition(".")[2])
        p = float(self.percent) / 100
        sampling = 196 * sqrt(sum(2 * p * (1 - p) / images for images in self.sampled)) / self.sets
        return 0.5 * 10**-digits + sampling + 1.96 * sqrt(2) * self.training_sd + MARGIN + self.extra

    def cells(self) -> list[str]:
        """The row as it is written."""
        return [self.model, self.detector, self.set, self.percent, f"{self.tolerance:.2f}", self.source, self.note]


# ---- NINCO -----------------------------------------------------------------------------------------------------------

NINCO_DETECTORS = {
    "MSP": "msp",
    "MaxLogit": "max-logit",
    "Energy": "energy",
    "KL-Matching": "kl-matching",
    "Mahalanobis": "mahalanobis",
    "RelMahalanobis": "relative-mahalanobis",
    "ViM": "vim",
    "Energy+ReAct": "react",
    "KNN": "knn",
    "Cosine": "cosine",
    "RCos/MCM": "relative-cosine",
}
NINCO_SETS = {
    "NINCO": "ninco",
    "NINCO/no-IN21K-overlap-9-classes": "ninco:no-in21k-overlap",
    "NINCO/IN21K-overlap-55-classes": "ninco:in21k-overlap",
    "CleanedSubsets/mean-of-11": "mean-of-cleaned",
    "Places/clean": "ninco-clean-places",
    "Species/clean": "ninco-clean-species",
    "ImageNet-O/clean": "ninco-clean-imagenet-o",
    "Textures/clean": "ninco-clean-textures",
    "OpenImage-O/clean": "ninco-clean-openimage-o",
    "iNaturalist-OOD-Plants/clean": "ninco-clean-inaturalist",
    "IN-1K-OOD/clean": "ninco-clean-imagenet-1k-ood",
    "360OpenSet/clean": "ninco-clean-360openset",
    "SSB-easy/clean": "ninco-clean-ssb-easy",
    "SSB-hard/clean": "ninco-clean-ssb-hard",
    "COOD/clean": "ninco-clean-cood",
}
# Their top-1 accuracies show that the paper used other image sizes than timm's present test sizes.
NINCO_OTHER_SIZE = {
    "ResNet50": "224 pixels there, by its accuracy of 80.4 %",
    "EffNetv2-M": "it seems that timm cropped there what it squashes now",
    "EffNetv2-M-21k": "it seems that timm cropped there what it squashes now",
    "CnvNxt-T-21k": "it seems that timm cropped there what it squashes now",
}


def curate_ninco(read: Callable[[str], list[Row]]) -> Iterator[Curated]:
    tables = ("14", "15", "16", "17", "18", "19", "20")
    printed = [row for row in read("ninco_tables") if row["table"] in tables]
    models = _ids_of_models("ninco")
    for row in _usable_rows(printed + read("ninco_derived"), models, NINCO_DETECTORS, NINCO_SETS):
        zero_shot = row["model"].startswith("CLIP")
        if zero_shot and row["detector"] == "Cosine":  # the cosine to texts in the paper, to class means of images here
            continue
        derived = row["table"] == "derived-3"
        notes = [
            "DERIVED: Table 3 from Tables 19 and 20, (9 a + 55 b) / 64" if derived else "",
            NINCO_OTHER_SIZE.get(row["model"], ""),
        ]
        yield Curated(
            models[row["model"]],
            "mcm" if zero_shot and row["detector"] == "RCos/MCM" else NINCO_DETECTORS[row["detector"]],
            NINCO_SETS[row["ood_set"]],
            row["value"],
            "NINCO, ICML 2023, Table 3" if derived else f"NINCO, ICML 2023, Table {row['table']}",
            "; ".join(filter(None, notes)),
            extra=UNSTATED * (row["model"] in NINCO_OTHER_SIZE),
        )


# ---- Mahalanobis++ ---------------------------------------------------------------------------------------------------

MAHALANOBISPP_DETECTORS = {
    "msp": "msp",
    "energy": "energy",
    "energy_react": "react",
    "max_logit": "max-logit",
    "vim": "vim",
    "ash_s": "ash-s",
    "knn": "knn",
    "nnguide": "nnguide",
    "neco": "neco",
    "gmm_norm": "gmm++",
    "gen": "gen",
    "fdbd": "fdbd",
    "mahalanobis": "mahalanobis",
    "mahalanobis_pp": "mahalanobis++",
    "rel_mahalanobis": "relative-mahalanobis",
    "rel_mahalanobis_pp": "relative-mahalanobis++",
    "cosine": "cosine",
    "ssc": "ssc",
}
MAHALANOBISPP_SETS = {
    "ninco": "ninco",
    "ssb_hard": "ssb-hard",
    "textures": "textures",
    "openimage_o": "openimage-o",
    "inaturalist": "inaturalist",
    "openood_avg5": "mean-of-five",
    "openood_near_avg2": "mean-of-near",
    "openood_far_avg3": "mean-of-far",
}
# Tables 2, 4, 6, 8 and 9; Table 12 repeats some of Table 6 and adds two detectors.
MAHALANOBISPP_TABLES = {table: tuple(MAHALANOBISPP_DETECTORS) for table in "24689"} | {"12": ("cosine", "ssc")}


def curate_mahalanobispp(read: Callable[[str], list[Row]]) -> Iterator[Curated]:
    rows = [
        row for row in read("mahalanobispp_tables") if row["detector"] in MAHALANOBISPP_TABLES.get(row["table"], ())
    ]
    models, seen = _ids_of_models("mahalanobispp"), set()
    for row in _usable_rows(rows, models, MAHALANOBISPP_DETECTORS, MAHALANOBISPP_SETS):
        cell = (row["model"], row["detector"], row["ood_set"])
        if cell in seen:  # Table 2 repeats three networks of Tables 4 and 6
            continue
        seen.add(cell)
        notes = [
            "the transcript corrects the extracted text" if row["notes"].startswith("CORRECTED") else "",
            "patch 32 at 384 pixels in the authors' code" if row["model"] == "ViT-L16-In21k-orig" else "",
            "the authors' code may mix raw and normalised features" if row["detector"] == "rel_mahalanobis_pp" else "",
        ]
        yield Curated(
            models[row["model"]],
            MAHALANOBISPP_DETECTORS[row["detector"]],
            MAHALANOBISPP_SETS[row["ood_set"]],
            row["value"],
            f"Mahalanobis++, ICML 2025, Table {row['table']}",
            "; ".join(filter(None, notes)),
            extra=DRAWN_AT_RANDOM * (row["detector"] == "nnguide"),
        )


# ---- HIMPLoS and ITP -------------------------------------------------------------------------------------------------

CIFAR_SETS = {
    "SVHN": "svhn",
    "LSUN-C": "lsun-crop",
    "LSUN-R": "lsun-resize",
    "iSUN": "isun",
    "Textures": "textures",
    "Places365": "places365",
    "average": "six-sets",
}
# Drawn by chance, as HIMPLoS's authors say: 10,000 images of Places365, and a subset of SVHN, which we assume to have
# about as many. We do not know whether it was used: their code reads the whole file.
CIFAR_DRAWN = {"SVHN": (10_000,), "Places365": (10_000,), "average": (10_000, 10_000)}
IMAGENET_SETS = {
    "iNaturalist": "inaturalist",
    "SUN": "sun",
    "Places": "places",
    "Textures": "textures",
    "Texture": "textures",
    "average": "four-sets",
}
PRUNING_DETECTORS = {
    "MSP": "msp",
    "ODIN": "odin",
    "Energy": "energy",
    "ReAct": "react",
    "DICE": "dice",
    "DICE+ReAct": "dice+react",
    "LINe": "line",
    "LINe (w/ ReAct)": "line",
    "LAPS": "laps",
    "HIMPLoS": "himplos",
    "ReAct+FM": "fm+react",
    "ReAct+LS": "ls+react",
    "FM+LS": "fm+ls",
    "ITP": "itp",
    "ITP+ReAct": "itp+react",
}
OTHER_TRAINING = "another training of the same network"
UNKNOWN_TRAINING = "we do not know whether this is the authors' network, since their file could not be had"
# Their options are those of the methods' own papers, not stated in these.
STATED = {"MSP", "Energy", "ITP", "HIMPLoS", "FM+LS"}


def himplos_cifar_curator(id_set: str, model: str, authors_own: bool) -> "Curator":
    """Curates the tables of CIFAR.

    authors_own: whether the model is known to be the authors' network.
    """

    def rows(read: Callable[[str], list[Row]]) -> Iterator[Curated]:
        table = [row for row in read("himplos_tables") if row["id_set"] == id_set and _main_or_parts(row, "Table I")]
        for row in _usable_rows(table, {"DenseNet": model}, PRUNING_DETECTORS, CIFAR_SETS):
            mean = row["ood_set"] == "average"
            yield Curated(
                model,
                PRUNING_DETECTORS[row["detector"]],
                CIFAR_SETS[row["ood_set"]],
                row["value"],
                f"HIMPLoS, {row['table']}",
                "" if authors_own else UNKNOWN_TRAINING,
                sampled=CIFAR_DRAWN.get(row["ood_set"], ()),
                sets=6 if mean else 1,
                training_sd=0.0 if authors_own else TRAINING_SD_OF_MEAN if mean else TRAINING_SD,
                extra=UNSTATED * (row["detector"] not in STATED),
            )

    return rows


def curate_himplos_imagenet(read: Callable[[str], list[Row]]) -> Iterator[Curated]:
    table = [row for row in read("himplos_tables") if _main_or_parts(row, "Table II")]
    models = _ids_of_models("himplos")
    for row in _usable_rows(table, models, PRUNING_DETECTORS, IMAGENET_SETS):
        if row["model"] == "MobileNetV2" and row["detector"] in ("HIMPLoS", "LINe"):
            continue
        yield Curated(
            models[row["model"]],
            PRUNING_DETECTORS[row["detector"]],
            IMAGENET_SETS[row["ood_set"]],
            row["value"],
            f"HIMPLoS, {row['table']}",
            extra=UNSTATED * (row["detector"] not in STATED),
        )


def _main_or_parts(row: Row, main: str) -> bool:
    """Whether a row is in the main table, or in Table III only: HIMPLoS with some of its steps."""
    return row["table"] == main or (
        row["table"] == "Table III" and row["detector"] in ("ReAct+FM", "ReAct+LS", "FM+LS")
    )


def itp_cifar_curator(id_set: str, model: str) -> "Curator":
    detectors = {name: detector_id for name, detector_id in PRUNING_DETECTORS.items() if name != "LAPS"}

    def rows(read: Callable[[str], list[Row]]) -> Iterator[Curated]:
        table = [row for row in read("itp_tables") if (row["table"], row["id_set"]) == ("Table 1", id_set)]
        # For ITP on CIFAR-10, Table 3 prints 16.96 and Table 1 16.72. The tolerance is larger than this difference.
        for row in _usable_rows(table, {"DenseNet-101": model}, detectors, CIFAR_SETS, doubtful=_DOUBTFUL_BUT_CONFLICT):
            yield Curated(
                model,
                detectors[row["detector"]],
                CIFAR_SETS[row["ood_set"]],
                row["value"],
                "ITP, AAAI 2025, Table 1",
                _note_of_itp(row),
                sampled=CIFAR_DRAWN[row["ood_set"]],
                sets=6,
                extra=UNSTATED * (row["detector"] not in STATED),
            )

    return rows


_DOUBTFUL_BUT_CONFLICT = re.compile("SUSPECT|CAUTION")


def curate_itp_imagenet(read: Callable[[str], list[Row]]) -> Iterator[Curated]:
    table = [row for row in read("itp_tables") if row["table"] == "Table 2"]
    for row in _usable_rows(table, {"ResNet-50": "resnet50.tv_in1k"}, PRUNING_DETECTORS, IMAGENET_SETS):
        yield Curated(
            "resnet50.tv_in1k",
            PRUNING_DETECTORS[row["detector"]],
            IMAGENET_SETS[row["ood_set"]],
            row["value"],
            "ITP, AAAI 2025, Table 2",
            _note_of_itp(row),
            extra=UNSTATED * (row["detector"] not in STATED),
        )


# Its name for the network is that of DICE's paper, and nothing says that the earlier ones took the same file.
COPIED_BY_ITP = "copied there from an earlier paper, and we do not know whether of the same network"


def _note_of_itp(row: Row) -> str:
    notes = [
        COPIED_BY_ITP if "copied from earlier papers" in row["notes"] else "",
        "Table 3 prints 16.96" if "Table 3" in row["notes"] else "",
        "the options of the two together are not stated" if row["detector"] == "ITP+ReAct" else "",
    ]
    return "; ".join(filter(None, notes))


# ---- SeTAR -----------------------------------------------------------------------------------------------------------

SETAR_DETECTORS = {"MCM": "mcm", "GL-MCM": "gl-mcm", "MSP": "msp", "Energy": "energy"}


def setar_curator(id_set: str, edit: str, sets: Names) -> "Curator":
    """Table 17 has all networks that need no training. Table 1 also has figures that it cites from the GL-MCM paper."""
    detectors = {
        prefix + name + suffix: detector_id
        for name, detector_id in SETAR_DETECTORS.items()
        for prefix in ("", "SeTAR+")
        for suffix in ("", " [cited]")
    }

    def rows(read: Callable[[str], list[Row]]) -> Iterator[Curated]:
        of_set = [row for row in read("setar_tables") if row["id_set"] == id_set]
        table = [row for row in of_set if row["table"] == ("Table 1" if "[cited]" in row["detector"] else "Table 17")]
        models = _ids_of_models("setar")
        for row in _usable_rows(table, models, detectors, sets):
            model = models[row["model"]]
            cited = "[cited]" in row["detector"]
            if "mean over 5" in row["notes"]:  # the GL-MCM paper has no figure on Places, so its mean is another one
                continue
            notes = [
                "copied there from the GL-MCM paper" if cited else "",
                "the paper says temperature 0.1, the authors' code has 1" if "temperature 0.1" in row["notes"] else "",
            ]
            yield Curated(
                f"{model}+{edit}" if row["detector"].startswith("SeTAR+") else model,
                detectors[row["detector"]],
                sets[row["ood_set"]],
                row["value"],
                f"SeTAR, NeurIPS 2024, {row['table']}",
                "; ".join(filter(None, notes)),
                extra=UNSTATED * cited,
            )

    return rows


VOC_SETS = IMAGENET_SETS | {"ImageNet22K": "imagenet-22k", "COCO": "coco", "average": "six-sets"}

# ---- Unleashing Mask -------------------------------------------------------------------------------------------------
UM_SETS = {
    "CIFAR-10": "cifar10",
    "CIFAR-100": "cifar100",
    "Textures": "textures",
    "Places365": "places365",
    "SUN": "sun",
    "LSUN": "lsun-crop",
    "iNaturalist": "inaturalist",
    "SVHN": "svhn",
    "average": "seven-sets",
}
UM_DRAWN = {"Places365": (10_000,), "SUN": (10_000,), "iNaturalist": (10_000,), "average": (10_000,) * 3}


def unleashing_mask_curator(id_set: str, model: str) -> "Curator":
    def rows(read: Callable[[str], list[Row]]) -> Iterator[Curated]:
        tables = ("Table 1", "Table 2", "Table 20", "Table 24")
        table = [row for row in read("unleashing_mask_tables") if row["id_set"] == id_set and row["table"] in tables]
        detectors = {"MSP": "msp", "ODIN": "odin", "Energy": "energy"}
        for row in _usable_rows(table, {"DenseNet-101": model}, detectors, UM_SETS):
            mean = row["ood_set"] == "average"
            deviation = re.search(r"std=([\d.]+)", row["notes"])
            assert deviation, row
            crop = "; LSUN taken as its crops, which is not stated" if row["ood_set"] in ("LSUN", "average") else ""
            yield Curated(
                model,
                detectors[row["detector"]],
                UM_SETS[row["ood_set"]],
                row["value"],
                f"Unleashing Mask, ICML 2023, {row['table']}",
                f"{OTHER_TRAINING}, which gave ± {deviation[1]} there{crop}",
                sampled=UM_DRAWN.get(row["ood_set"], ()),
                sets=7 if mean else 1,
                training_sd=max(float(deviation[1]), TRAINING_SD_OF_MEAN if mean else TRAINING_SD),
                extra=UNSTATED * bool(crop),
            )

    return rows


# ----------------------------------------------------------------------------------------------------------------------

Curator = Callable[[Callable[[str], list[Row]]], Iterable[Curated]]
FILES: dict[str, Curator] = {
    "ninco": curate_ninco,
    "mahalanobispp-imagenet": curate_mahalanobispp,
    "himplos-cifar10": himplos_cifar_curator("CIFAR-10", "cifar10-densenet", authors_own=False),
    "himplos-cifar100": himplos_cifar_curator("CIFAR-100", "cifar100-densenet", authors_own=True),
    "himplos-imagenet": curate_himplos_imagenet,
    "itp-cifar10": itp_cifar_curator("CIFAR-10", "cifar10-densenet"),
    "itp-cifar100": itp_cifar_curator("CIFAR-100", "cifar100-densenet"),
    "itp-imagenet": curate_itp_imagenet,
    "setar-imagenet": setar_curator("ImageNet-1K", "setar-imagenet", IMAGENET_SETS),
    "setar-voc": setar_curator("Pascal-VOC", "setar-voc", VOC_SETS),
    "um-cifar10": unleashing_mask_curator("CIFAR-10", "cifar10-densenet"),
    "um-cifar100": unleashing_mask_curator("CIFAR-100", "cifar100-densenet"),
}


def _ids_of_models(paper: str) -> dict[str, str]:
    """Our ids of the models of a paper, by the names in its tables. They are in benchmark/models/models.toml."""
    entries = read_entries(MODELS, ModelEntry)
    return {entry.papers[paper]: model_id for model_id, entry in entries.items() if paper in entry.papers}


def _usable_rows(
    rows: Iterable[Row], models: Names, detectors: Names, sets: Names, doubtful: re.Pattern[str] = _DOUBTFUL
) -> Iterator[Row]:
    """The rows of an FPR@95 that is not doubtful, of models, detectors and sets that we have.

    rows: rows of transcripts.
    models, detectors, sets: our ids by the paper's names.
    doubtful: what the notes of a doubtful row contain.
    """
    for row in rows:
        ours = row["model"] in models and row["detector"] in detectors and row["ood_set"] in sets
        if row["metric"] == "fpr95" and ours and not doubtful.search(row["notes"]):
            yield row


def write_files(transcripts: Path, folder: Path) -> list[Path]:
    """Writes all files, and returns their paths.

    transcripts: the folder of the transcripts.
    folder: where to write; it is made where there is none.
    """

    def read(name: str) -> list[Row]:
        with (transcripts / f"{name}.csv").open(newline="", encoding="utf-8") as lines:
            return list(csv.DictReader(lines))

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, curate in FILES.items():
        rows = sorted(row.cells() for row in curate(read))  # before the old file is opened, so that errors keep it
        files.append(folder / f"{name}.csv")
        with files[-1].open("w", newline="", encoding="utf-8") as lines:
            table = csv.writer(lines, lineterminator="\n")
            table.writerow(COLUMNS)
            table.writerows(rows)
    return files


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmark.limits.curate_published FOLDER_OF_TRANSCRIPTS")
    try:
        for file in write_files(Path(sys.argv[1]), FOLDER):
            print(file)
    except OSError as error:
        sys.exit(f"cannot read the transcripts or write {FOLDER}: {error}")
