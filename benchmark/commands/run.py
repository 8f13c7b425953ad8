"""`run`: the cases of a suite, under pytest."""

from typing import Annotated, Any

import typer

from benchmark.commands import completion

PLUGIN = "benchmark.plugin"
TESTS = ("benchmark", "unit_tests_ood")

EXAMPLES = {
    "run": "the digits suite and the unit tests",
    'run -k "digits-resnet and msp"': "some of their cases",
    "run --suite cifar10 -n 2 --lf": "what failed last time, in two processes",
    "run --model my_nets:make --id val --ood strange": "your own network and images",
    "run unit_tests_ood -k black": "the unit tests alone",
}

Text = str | None
Texts = list[str] | None


def _option(name: str, metavar: str, meaning: str, **how: Any) -> Any:
    return typer.Option(name, metavar=metavar, help=meaning, **how)


def run(
    context: typer.Context,
    suite: Annotated[
        Text,
        _option(
            "--suite",
            "NAME_OR_FILE",
            "A suite by name, or the path of its TOML file (default: digits).",
            autocompletion=completion.suites,
        ),
    ] = None,
    model: Annotated[
        Texts,
        _option(
            "--model",
            "WHAT",
            "An id, hf-hub:.., a timm name, local-dir:.., open-clip:.. or MODULE:FUNCTION; may be repeated.",
            autocompletion=completion.models,
        ),
    ] = None,
    test: Annotated[
        Text, _option("--id", "IMAGES", "In-distribution test images: a folder, Parquet, or an id.")
    ] = None,
    train: Annotated[Text, _option("--train", "IMAGES", "In-distribution training images.")] = None,
    val: Annotated[Text, _option("--val", "IMAGES", "In-distribution images that are neither.")] = None,
    ood: Annotated[Texts, _option("--ood", "IMAGES", "Out-of-distribution images; may be repeated.")] = None,
    outputs: Annotated[Text, _option("--outputs", "DIR", "Precomputed outputs in place of a network.")] = None,
    detectors: Annotated[
        Texts, _option("--detectors", "WHAT", "A file of detectors, or MODULE:CLASS[,OPTION=VALUE]...")
    ] = None,
    data_dir: Annotated[Text, _option("--data-dir", "DIR", "Folder of downloaded images and weights.")] = None,
    store: Annotated[Text, _option("--store", "DIR", "Folder of the outputs of networks.")] = None,
    results: Annotated[Text, _option("--results", "DIR", "Folder of the records.")] = None,
    device: Annotated[Text, _option("--device", "DEVICE", "Where networks run, as torch names it.")] = None,
    fpr_limit: Annotated[Text, _option("--fpr-limit", "X", "Hold OOD sets to this FPR@95 (0 to 1).")] = None,
    unit_test_limit: Annotated[
        Text, _option("--unit-test-limit", "X", "The FPR@95 above which a unit test fails.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Run all detectors on unit tests and changed networks.")] = False,
    record_baselines: Annotated[
        bool, typer.Option("--record-baselines", help="Write what this run measures to the suite's baselines.")
    ] = False,
    push: Annotated[
        Text, _option("--push", "ORG/NAME", "Push the run to this dataset repository on the Hub when it ends.")
    ] = None,
    push_scores: Annotated[bool, typer.Option("--push-scores", help="Push the score of each image, too.")] = False,
) -> int:
    """Run the cases of a suite with pytest.

    Anything else is passed on to pytest: its options (`pytest --help` lists them), and paths or packages in place of
    all cases and unit tests. The exit code is that of pytest.
    """
    return run_pytest([*_given(context), *context.args])


def _given(context: typer.Context) -> list[str]:
    """Our options of the command line, as pytest takes them."""
    given: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if value is True:
            given.append(parameter.opts[0])
        elif value:
            values = value if isinstance(value, list | tuple) else [value]
            given += [text for one in values for text in (parameter.opts[0], one)]
    return given


class _NoPathError(Exception):
    """The command line of a run names no path."""


class _PathsNeeded:
    """Ends a start of pytest whose command line names no path: pytest alone tells paths from the values of options."""

    def pytest_load_initial_conftests(self, early_config: Any) -> None:
        if not early_config.known_args_namespace.file_or_dir:
            raise _NoPathError


def run_pytest(arguments: list[str], plugin: str = PLUGIN) -> int:
    """Runs pytest with the plugin, on all cases and unit tests where no path is among the arguments.

    Returns the exit code of pytest.
    """
    import pytest  # here, since it is slow to load

    arguments = ["-p", plugin, "--pyargs", *arguments]
    try:
        return int(pytest.main(arguments, plugins=[_PathsNeeded()]))
    except _NoPathError:
        return int(pytest.main([*arguments, *TESTS]))
