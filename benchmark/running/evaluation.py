"""Evaluation: a suite at work, model by model. The one place where what was made is kept for the next case."""

from benchmark.running.fitted_detector import FittedDetector
from benchmark.running.loaded_model import LoadedModel
from benchmark.running.loaded_suite import LoadedSuite
from benchmark.running.once import Once


class Evaluation:
    """The models of a suite with their outputs, and the detectors that are fitted to them.

    It keeps one model at a time with its detectors, since the cases of a suite go through it model by model.

    suite: the suite with its image sets.
    """

    def __init__(self, suite: LoadedSuite) -> None:
        self.suite = suite
        self._id, self._models, self._detectors = "", Once(), Once()

    def forget_failures(self) -> None:
        """Lets what failed be tried again, such as by a test that is run once more."""
        self._models.forget_failures()
        self._detectors.forget_failures()
        self.suite.forget_failures()
        if self._models.has(self._id):
            self.model(self._id).forget_failures()

    def model(self, model_id: str) -> LoadedModel:
        """A model with its outputs on the in-distribution splits."""
        if self._id != model_id:
            self._id, self._models, self._detectors = model_id, Once(), Once()
        return self._models(model_id, lambda: LoadedModel(self.suite, self.suite.load_model(model_id)))

    def detector(self, model: str, detector_id: str) -> FittedDetector:
        """A detector that is fitted to a model."""
        loaded = self.model(model)
        return self._detectors(detector_id, lambda: FittedDetector(loaded, detector_id))
