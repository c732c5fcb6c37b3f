"""Pure functions from predictions and references (or summed losses and counts) to numbers.

A metric whose function bears its module's name is imported here at once, so that `trivium.metrics.perplexity` is the
function; every module here is cheap to import (no torch).
"""

from trivium.metrics.bleu import bleu
from trivium.metrics.classification import classification
from trivium.metrics.perplexity import perplexity
from trivium.metrics.rouge import rouge

__all__ = ["bleu", "classification", "perplexity", "rouge"]
