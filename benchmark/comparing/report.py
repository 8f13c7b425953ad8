"""A comparison as text, as Markdown, as JSON and as JUnit XML."""

import json
from collections.abc import Callable, Iterator
from xml.etree import ElementTree

from benchmark.comparing.cases import Comparison, Finding, Standing

METHOD = (
    "All differences are tested together: the chance that any of them is called one where there is none is 5 % "
    "(Holm). Intervals are those of single differences, at 95 %."
)
_SHOWN = 40  # of the findings of a standing
_TOLD: tuple[Standing, ...] = ("worse", "better")


def as_text(found: Comparison) -> str:
    """For a terminal or a log."""
    lines = [verdict_line(found)]
    for standing in _TOLD:
        findings = found.of(standing)
        lines += [f"{standing}:", *(f"  {line_of(finding)}" for finding in findings[:_SHOWN])] if findings else []
        lines += [f"  and {len(findings) - _SHOWN} more"] if len(findings) > _SHOWN else []
    for title, names in (("only in the base", found.only_base), ("only in the new one", found.only_new)):
        lines += [f"{title}:", *(f"  {name}" for name in names[:_SHOWN])] if names else []
        lines += [f"  and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    lines += [f"note: {note}" for note in _notes(found)]
    return "\n".join([*lines, METHOD])


def as_markdown(found: Comparison) -> str:
    """For a job's summary or a comment. Names are escaped: they may be anybody's."""
    lines = [f"**{verdict_line(found)}**", ""]
    shown = [finding for standing in _TOLD for finding in found.of(standing)[:_SHOWN]]
    if shown:
        lines += ["| | figure | case | base | new | difference |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {'🔴' if of.standing == 'worse' else '🟢'} {of.standing} | {of.figure} | {_escaped(of.name)} | "
            f"{_figure(of, of.base)} | {_figure(of, of.new)} | {_difference(of)} |"
            for of in shown
        ]
        lines.append("")
    for title, names in (("Only in the base", found.only_base), ("Only in the new one", found.only_new)):
        if names:
            lines += [f"{title}: {len(names)}", "", *(f"* {_escaped(name)}" for name in names[:_SHOWN]), ""]
    return "\n".join([*lines, *(f"Note: {_escaped(note)}\n" for note in _notes(found)), METHOD])


def as_json(found: Comparison) -> str:
    """For programs: everything, with fractions from 0 to 1."""
    findings = [{**vars(of), "change": of.change._asdict() if of.change else None} for of in found.findings]
    content = {
        "verdict": found.verdict,
        "findings": findings,
        "only_base": found.only_base,
        "only_new": found.only_new,
        "failed": found.failed,
        "method": METHOD,
    }
    return json.dumps(content, indent=1)


def as_junit(found: Comparison) -> str:
    """For CI systems: a test for each figure of each case, which fails where the figure is worse."""
    worse = found.of("worse")
    suite = ElementTree.Element(
        "testsuite",
        name="compare",
        tests=str(len(found.findings) + len(found.only_base)),
        failures=str(len(worse) + len(found.failed)),
        skipped=str(len(found.only_base) - len(found.failed)),
    )
    for finding in found.findings:
        case = ElementTree.SubElement(suite, "testcase", classname=finding.name, name=finding.figure)
        if finding.standing == "worse":
            ElementTree.SubElement(case, "failure", message=line_of(finding))
    for line in found.only_base:
        name = line.partition(": ")[0]
        case = ElementTree.SubElement(suite, "testcase", classname=name, name="measured")
        kind = "failure" if name in found.failed else "skipped"
        ElementTree.SubElement(case, kind, message=line)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "json": as_json,
    "junit": as_junit,
}


def verdict_line(found: Comparison) -> str:
    """The verdict of the whole in a sentence."""
    standings: tuple[Standing, ...] = ("worse", "better", "within noise")
    counts = ", ".join(f"{len(found.of(standing))} {standing}" for standing in standings)
    missing = f"; {len(found.only_base)} cases of the base were not measured" if found.only_base else ""
    verdict = found.verdict.capitalize()
    return f"{verdict}: {counts}{missing}" if found.findings else f"{verdict}{missing}"


def line_of(finding: Finding) -> str:
    """A finding in a line."""
    pairs = "" if finding.change is None or finding.change.paired else ", not paired"
    p = "" if finding.p is None else f", p {finding.p:.2g}{pairs}"
    values = f"{_figure(finding, finding.base)} -> {_figure(finding, finding.new)}"
    return f"{finding.name}: {finding.figure} {values} ({_difference(finding)}{p})"


def _figure(finding: Finding, value: float) -> str:
    return f"{value:.3g} ms" if finding.figure == "score time" else f"{100 * value:.1f} %"


def _difference(finding: Finding) -> str:
    if finding.change is None:
        return f"{finding.new / finding.base:.1f} times" if finding.base else "from nothing"
    value, low, high = (100 * part for part in finding.change[:3])
    return f"{value:+.1f} points, {low:+.1f} to {high:+.1f}"


def _notes(found: Comparison) -> Iterator[str]:
    """Why figures were not compared in pairs, a line each reason."""
    unpaired = [finding for finding in found.findings if finding.note]
    if unpaired:
        first = unpaired[0]
        yield (
            f"{len(unpaired)} of {len(found.findings)} figures are compared as if of images of their own, so that only "
            f"larger differences are seen, such as {first.name}: {first.note}"
        )


def _escaped(text: str) -> str:
    """A text that Markdown and HTML show as it is."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*_{}[]()#+!|~":
        text = text.replace(mark, f"&#{ord(mark)};")
    return " ".join(text.split())
