"""The foveated vision-language model: one visual token a frame, by a query that the language model chooses.

Config, weights and forward modes, watching one frame at a time, checkpoints in and out, and the training of the
demo's ladder. Does not know how a gap is measured or judged, nor what a batch is.
"""
