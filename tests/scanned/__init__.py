"""A small model of each of the host's classes, for docs.scan: recipes by the models' names.

What tests.tiny_transformers has is taken from there. Where the host's files do not hold the
tokenizer's vocabulary, one of single letters is made (see tests.probes.stand_ins); where a whole
tokenizer comes with the weights, a T5 stands in for the text encoder.
"""

from tests.scanned.others import OTHERS
from tests.scanned.pictures import PICTURES
from tests.scanned.unets import UNETS
from tests.scanned.videos import VIDEOS

MODELS = {**UNETS, **PICTURES, **VIDEOS, **OTHERS}
