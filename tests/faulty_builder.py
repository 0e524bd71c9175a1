"""A builder of real kernels, among which are some that crash or hang: by the number of the candidate."""

from __future__ import annotations

from dataclasses import replace

import measure_kernels as kernels

from convtune.measure.builder import Builder, BuildRequest, Library

FAULTS = {2: "null pointer", 3: "endless loop", 5: "endless loop"}
"""By the candidate's number in its bench, from 0."""


class FaultyBuilder(Builder):
    """For specs of `measure_kernels` alone."""

    def __call__(self, request: BuildRequest) -> Library:
        library = super().__call__(request)
        fault = FAULTS.get(int(request.directory.name.removeprefix("candidate-")))
        if fault is None:
            return library
        faulty = kernels.library(request.directory / "faulty", fault, request.spec)
        # discarded with the directory of the library, as all are
        return replace(library, path=faulty.replace(library.path), pack=kernels.PACK)
