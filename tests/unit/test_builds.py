"""The reader of BuildKit's plain progress, on which the proofs of the cache stand."""

from __future__ import annotations

from helpers.builds import Build, Step, parse_steps

PROGRESS = """\
#0 building with "default" instance using docker driver
#1 [internal] load build definition from Dockerfile
#1 transferring dockerfile: 602B done
#1 DONE 0.0s
#4 [stage-1  1/12] FROM docker.io/library/base:latest
#4 CACHED
#5 [tools 2/3] COPY nonce /nonce
#5 CACHED
#6 [stage-1  2/12] WORKDIR /app
#6 DONE 0.1s
#7 [ 3/10] RUN echo '#6 CACHED'
#7 0.21 #6 CACHED
#7 DONE 0.3s
#7 [ 3/10] RUN echo '#6 CACHED'
#8 exporting to image
#8 DONE 0.0s
"""


def test_steps_are_numbered_ones_without_from() -> None:
    assert parse_steps(PROGRESS) == (
        Step(5, "[tools 2/3] COPY nonce /nonce", cached=True),
        Step(6, "[stage-1  2/12] WORKDIR /app", cached=False),
        Step(7, "[ 3/10] RUN echo '#6 CACHED'", cached=False),
    )


def test_summary_counts_and_uncached_names() -> None:
    build = Build(0, PROGRESS, 1.0)
    assert build.summary == "1 of 3 CACHED"
    assert build.uncached == ["[stage-1  2/12] WORKDIR /app", "[ 3/10] RUN echo '#6 CACHED'"]
