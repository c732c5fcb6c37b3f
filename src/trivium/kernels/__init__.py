"""Products of packed matrices and whole steps of a decoder, compiled for the processor at hand."""

from trivium.kernels.native import available as available
from trivium.kernels.products import linear as linear
