"""Detectors of other libraries, run as their authors wrote them.

    from pytorch_ood.detector import KNN

    detector = adapt(KNN, k=10)()  # fit it and score with it as with any other; higher scores mean more in-distribution

`--detectors pytorch_ood:KNN,k=10` does this on the command line. Nothing here imports the other libraries before one of
their detectors is asked for, and none of their objects is saved or unpickled.
"""

from functools import lru_cache
from typing import Any

from detectors.foreign.adapter import ForeignDetector, NotAdaptableError, is_plain
from detectors.foreign.of_openood import adapt_postprocessor, is_postprocessor
from detectors.foreign.of_pytorch_ood import adapt_detector, is_pytorch_ood_detector

__all__ = ["ForeignDetector", "NotAdaptableError", "adapt"]


def adapt(kind: Any, detector_id: str | None = None, /, **options: Any) -> type[ForeignDetector]:
    """The class of detectors that run a detector of another library; the same arguments give the same class.

    kind: a subclass of `pytorch_ood.api.Detector`, or a postprocessor with OpenOOD's interface (class or object).
    detector_id: its id; by default the library's name and that of the class, as in `pytorch_ood.KNN`.
    options: plain values for its constructor. They become the defaults of the class.

    Raises NotAdaptableError, in one line, for what cannot be served, and for an option that is unknown or missing.
    """
    values = {name: _as_tuple(value) for name, value in options.items()}
    if odd := [name for name, value in values.items() if not is_plain(value)]:
        raise NotAdaptableError(
            f"{odd[0]} is {values[odd[0]]!r}; an option is a number, a text, a list of such or None"
        )
    return _adapt(kind, detector_id, **values)


@lru_cache(maxsize=None, typed=True)
def _adapt(kind: Any, detector_id: str | None, /, **options: Any) -> type[ForeignDetector]:
    if is_pytorch_ood_detector(kind):
        return adapt_detector(kind, detector_id, options)
    if is_postprocessor(kind):
        return adapt_postprocessor(kind, detector_id, options)
    raise NotAdaptableError(
        f"{getattr(kind, '__qualname__', kind)} is neither a pytorch_ood.api.Detector nor a postprocessor with "
        "setup(net, id_loader_dict, ood_loader_dict) and postprocess(net, data)"
    )


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value
