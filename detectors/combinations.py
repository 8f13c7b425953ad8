"""Detectors made of several parts, or of a part and another score than the energy."""

from detectors.catalogue import registry
from detectors.gradients import ODIN
from detectors.logits import MSP, Energy
from detectors.parts import combination
from detectors.shaping import ReAct
from detectors.sparsity import DICE

registry.register(combination("msp+react", MSP, ReAct))
registry.register(combination("odin+react", ODIN, ReAct))
# The ReAct percentile is that of its paper, as DICE combines them.
registry.register(combination("dice+react", Energy, ReAct, DICE, react_percentile=90.0))
