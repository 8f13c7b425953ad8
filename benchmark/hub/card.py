"""The card of a dataset of results: what the Hub and a reader are told of it."""

from collections.abc import Iterable, Sequence

from huggingface_hub import DatasetCardData

from benchmark.hub.address import SCHEME
from benchmark.hub.layout import TABLES
from benchmark.records import Case
from benchmark.run_records import RunRecords

LICENCE = "cc-by-4.0"
_FOLDERS = {**{name: f"{name}/*/*.parquet" for name in TABLES}, "scores": "scores/*/*/*.parquet"}
_TEXT = """
# {repository}

Results of an out-of-distribution benchmark of image classifiers, made with `ood-benchmark`: for each model, detector
and OOD set the FPR@95, the AUROC and others, each with its 95 % sampling interval and with where it comes from.

{newest}
## How to read it

```python
import pandas
cases = pandas.read_parquet("{scheme}{repository}/cases")

from datasets import load_dataset
cases = load_dataset("{repository}", "cases", split="train")
```

```sql
SELECT model, detector, set, fpr_at_95 FROM '{scheme}{repository}/cases/*/*.parquet' -- DuckDB
```

A row of `cases` is one model, detector and OOD set. `models`, `detectors`, `sets` and `runs` say what these are and how
the figures came about. `scores`, where it is there, has the score of each image. Fractions are from 0 to 1; a higher
score means more in-distribution; FPR@95 is the share of OOD images that are accepted when 95 % of the ID test images
are. `records/` holds the same as the runs wrote it, one JSON line a record.

## How it was made

Each run is one call of `ood-benchmark run` or of pytest. `runs` has its command, the versions of all packages and the
device. Files are added and never changed; of two runs the one that started later counts. To get all of it back:

    ood-benchmark pull {repository}

## Licence

The figures are under {licence}. They hold no images. Networks and image sets have licences of their own, which `models`
and `sets` name.

## How to cite

Cite this repository with its revision, the papers of the detectors that you use (`detectors.paper`), and those of the
image sets.
"""
_SHOWN = 20  # suites in the table of the newest results


def card(repository: str, newest: Sequence[RunRecords], folders: Iterable[str]) -> str:
    """The text of README.md.

    repository: ORG/NAME.
    newest: the newest run of each suite.
    folders: the folders that have files, such as "cases".
    """
    there = set(folders)
    configs = [
        {"config_name": name, "data_files": [{"split": "train", "path": pattern}]}
        | ({"default": True} if name == "cases" else {})
        for name, pattern in _FOLDERS.items()
        if name in there
    ]
    head = DatasetCardData(
        license=LICENCE,
        pretty_name=repository,
        tags=["out-of-distribution-detection", "benchmark", "ood-benchmark"],
        task_categories=["image-classification"],
        configs=configs,
    )
    text = _TEXT.format(repository=repository, newest=_newest(newest), scheme=SCHEME, licence=LICENCE)
    return f"---\n{head.to_yaml()}\n---\n{text}"


def _newest(runs: Sequence[RunRecords]) -> str:
    if not runs:
        return ""
    rows = [_row(run) for run in sorted(runs, key=lambda run: run.started, reverse=True)[:_SHOWN]]
    header = "| suite | newest run | models | detectors | cases | lowest mean FPR@95 over the OOD sets |"
    return "\n".join(["## The newest run of each suite", "", header, "|---|---|---|---|---|---|", *rows, ""])


def _row(run: RunRecords) -> str:
    cases = run.cases.values()
    models, detectors = {case.model for case in cases}, {case.detector for case in cases}
    started = f"{run.started:%Y-%m-%d %H:%M} UTC"
    return f"| {run.run.suite} | {started} | {len(models)} | {len(detectors)} | {len(cases)} | {_best(list(cases))} |"


def _best(cases: Sequence[Case]) -> str:
    """The model and detector with the lowest mean, among those that have a figure on as many sets as any."""
    figures: dict[tuple[str, str], list[float]] = {}
    for case in cases:
        if case.role in ("near", "far") and case.metrics:
            figures.setdefault((case.model, case.detector), []).append(case.metrics.fpr_at_95.value)
    if not figures:
        return "none"
    most = max(map(len, figures.values()))
    mean, (model, detector) = min((sum(of) / most, key) for key, of in figures.items() if len(of) == most)
    return f"{100 * mean:.1f} % ({model}, {detector}, {most} sets)"
