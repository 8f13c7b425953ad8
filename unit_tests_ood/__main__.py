"""`python -m unit_tests_ood`: lists the OOD unit tests, writes them as image files, and checks their manifest."""

import argparse
import re
import runpy
import sys
from pathlib import Path

from unit_tests_ood import manifest, names
from unit_tests_ood.recipes import RECIPES


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except ImportError:  # perhaps of another `benchmark` or `detectors`; ours lie beside this package
        ours = runpy.run_path(str(Path(__file__).parents[1] / "benchmark" / "packages.py"))
        if problem := ours["foreign_package"]("benchmark", "detectors"):
            sys.exit(f"error: {problem}")
        raise
    except ValueError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")


def _list_tests(options: argparse.Namespace) -> None:
    for name, recipe in RECIPES.items():
        print(f"{name:<26}{(recipe.__doc__ or '').splitlines()[0]}")


def _write_images(options: argparse.Namespace) -> None:
    from unit_tests_ood.files import write_sets  # here, where `main` tells of another package called `benchmark`

    folders = write_sets(options.directory, options.names, options.count, options.size)
    print(f"{len(folders)} unit tests of {options.count} images each in {options.directory}")


def _verify_images(options: argparse.Namespace) -> None:
    changed = []
    for size in manifest.SIZES:
        names_of_size = manifest.differing_sets(manifest.compute_hashes(size), manifest.recorded_hashes(size))
        changed += [f"{name} at {size[0]}x{size[1]}" for name in names_of_size]
    if changed:
        sys.exit(f"error: not the images of {manifest.MANIFEST}: {', '.join(changed)}")
    print(f"all {len(names)} unit tests have the images that {manifest.MANIFEST} records, bit for bit")


def _rewrite_manifest(options: argparse.Namespace) -> None:
    manifest.rewrite_manifest()
    print(f"wrote {manifest.MANIFEST}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m unit_tests_ood", description="The seventeen OOD unit tests.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="print the name of each unit test and what its images show")
    listing.set_defaults(run=_list_tests)

    write = commands.add_parser(
        "write",
        help="write the unit tests as image files",
        description="Writes one folder a unit test; half of its images are JPEG files and half PNG files.",
    )
    write.add_argument("directory", type=Path, metavar="DIR", help="where to write; created if it does not exist")
    write.add_argument("--count", type=int, default=400, help="images per unit test (default: 400)")
    write.add_argument("--size", type=_size, default=(224, 224), metavar="HxW", help="in pixels (default: 224x224)")
    write.add_argument("--names", nargs="+", default=names, metavar="NAME", help="the unit tests (default: all)")
    write.set_defaults(run=_write_images)

    verify = commands.add_parser("verify", help="check that this machine makes the images that the manifest records")
    verify.set_defaults(run=_verify_images)

    rewrite = commands.add_parser("manifest", help="rewrite the manifest, after a recipe was changed on purpose")
    rewrite.set_defaults(run=_rewrite_manifest)
    return parser


def _size(text: str) -> tuple[int, int]:
    sides = re.fullmatch(r"(\d+)x(\d+)", text)
    if not sides:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH in pixels, such as 224x224, got {text!r}")
    return int(sides[1]), int(sides[2])


if __name__ == "__main__":
    main()
