"""The captions of a folder's pictures: shown in the browser, written, and made by models."""
