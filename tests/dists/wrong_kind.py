"""Returns an evaluator as a model."""

from userec.evaluator.contract import Evaluator
from userec.markers import hookimpl


class Judge(Evaluator):
    name = "judge"

    def evaluate(self, encoder, data, split):
        return ()


@hookimpl
def userec_encoders():
    return [Judge]
