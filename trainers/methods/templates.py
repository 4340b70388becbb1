"""Sentences in which Textual Inversion learns a word, so that it learns the thing, not a picture.

They name what differs between pictures (place, light, distance, quality), which then is not
learned with the word (arXiv 2208.01618, section 4).
"""

from __future__ import annotations

OBJECT = (
    "a photo of {}",
    "a photograph of one {}",
    "a picture that shows {}",
    "a close-up of {}",
    "{} seen from the side",
    "{} seen from the front",
    "a snapshot of {}",
    "a sharp photo of {}",
    "a blurry photo of {}",
    "a bright picture of {}",
    "a dark picture of {}",
    "a small photo of {}",
    "a large photo of {}",
    "a cropped picture of {}",
    "{} in daylight",
    "{} in the middle of the picture",
    "the same {} again",
    "this is {}",
    "a clean photo of {}",
    "a good picture of my {}",
)

STYLE = (
    "a picture in the style of {}",
    "a work in the manner of {}",
    "something painted like {}",
    "an image made the {} way",
    "a scene in {} style",
    "a portrait in the style of {}",
    "a landscape in the style of {}",
    "a still life in the style of {}",
    "a detail in the style of {}",
    "a large work in the style of {}",
    "a small work in the style of {}",
    "a bright picture in {} style",
    "a dark picture in {} style",
    "a colourful picture in {} style",
    "a simple picture in {} style",
    "a rich picture in {} style",
)

TEMPLATES = {"object": OBJECT, "style": STYLE}
