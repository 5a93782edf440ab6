"""The paper's explanation of sparsity, measured: three claims and a training run, an experiment a file.

Every experiment is a function of a model (but the training run), settings, texts where it takes some, a progress
report and a ``threading.Event`` that stops it. It returns a Finding and leaves the model as it was. ``claims`` and
``settings`` import nothing heavy: the page shows them before torch is in memory.
"""
