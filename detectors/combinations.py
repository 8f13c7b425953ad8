"""Detectors made of several parts, or of a part and another score than the energy."""

from detectors.catalogue import registry
from detectors.gradients import ODIN
from detectors.logits import MSP, Energy
from detectors.parts import USUAL_INVARIANCES, combination
from detectors.shaping import ReAct
from detectors.sparsity import DICE

registry.register(combination("msp+react", MSP, ReAct, invariant_to=USUAL_INVARIANCES))
registry.register(combination("odin+react", ODIN, ReAct, invariant_to=USUAL_INVARIANCES))
# The percentiles with which DICE's authors combine them on ImageNet.
registry.register(
    combination(
        "dice+react", Energy, ReAct, DICE, percentile=10.0, react_percentile=90.0, invariant_to=USUAL_INVARIANCES
    )
)
