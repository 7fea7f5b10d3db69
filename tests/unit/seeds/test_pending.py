"""What is loaded next, and which image gets a name that two of them claim."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest

from cachedind.seeds.model import Layer, SeedImage
from cachedind.seeds.pending import PendingImage, choose_next, settle_names


class Nothing(NamedTuple):
    size_bytes: int = 1

    def chunks(self) -> object:
        raise NotImplementedError


def image(layers: str, *names: str, config: str = "") -> SeedImage:
    """A layer is a letter; capital ones are large."""
    parts = tuple(
        Layer(f"sha256:{layer}", None, "", Nothing(1000 if layer.isupper() else 1))  # type: ignore[arg-type]
        for layer in layers
    )
    return SeedImage(tuple(f"docker.io/library/{name}:1" for name in names), b"", f"sha256:{config or layers}", parts)


def pending(layers: str, *names: str, seed: str = "a.tar", config: str = "") -> PendingImage:
    return PendingImage(seed, seed, image(layers, *names, config=config))


def has(*chains: str) -> object:
    """A store that has these layers, each written with all below it."""
    return lambda image, number: "".join(layer.diff_id[7:] for layer in image.layers[: number + 1]) in chains


@pytest.mark.parametrize(
    ("store", "coming", "number", "send"),
    [
        ((), (), 0, {0, 1}),
        (("b",), (), 0, {1}),
        # What has to bring nothing can wait.
        (("b", "bx"), (), 1, {1}),
        (("b", "bx", "by", "z"), (), 0, set()),
        # Somebody brings the base at this moment: only what does not need it can begin.
        ((), ("b",), 2, {0}),
        ((), ("b", "z"), None, set()),
        # The same layer on another base is another one.
        (("x",), (), 0, {0, 1}),
    ],
)
def test_what_comes_next(store: tuple[str, ...], coming: tuple[str, ...], number: int | None, send: set[int]) -> None:
    waiting = [pending("bx"), pending("by"), pending("z")]
    parts = frozenset(part for chain in coming for part in pending(chain).parts[-1:])
    chosen = choose_next(waiting, has(*store), parts)  # type: ignore[arg-type]
    assert chosen == (None if number is None else (waiting[number], frozenset(send)))


def test_what_others_wait_for_comes_quickly_and_of_the_rest_the_largest_first() -> None:
    waiting = [pending("z"), pending("bX"), pending("by"), pending("bcD"), pending("bce"), pending("Z")]
    order = []
    store: set[str] = set()
    while waiting:
        chosen = choose_next(waiting, has(*store), frozenset())  # type: ignore[arg-type]
        assert chosen is not None
        waiting.remove(chosen[0])
        layers = "".join(layer.diff_id[7:] for layer in chosen[0].image.layers)
        store |= {layers[: number + 1] for number in range(len(layers))}
        order.append(layers)
    # b, which four wait for; c, which two wait for; then the large ones.
    assert order == ["by", "bce", "bX", "bcD", "Z", "z"]


@pytest.mark.parametrize("seed", range(50))
def test_every_layer_is_sent_once_and_never_before_those_below_it(seed: int) -> None:
    """A run of random images with random ends and failures, as many at a time as there are workers."""
    chance = random.Random(seed)
    waiting = [pending("".join(chance.choices("abc", k=chance.randint(0, 5))), f"n{number}") for number in range(12)]
    store: set[str] = set()
    sent: list[str] = []
    running: list[tuple[PendingImage, frozenset[int]]] = []
    loaded = failed = 0

    def there(image: SeedImage, number: int) -> bool:
        return "".join(layer.diff_id[7:] for layer in image.layers[: number + 1]) in store

    while waiting or running:
        while len(running) < 3:
            coming = frozenset(one.parts[number] for one, send in running for number in send)
            chosen = choose_next(waiting, there, coming)
            if chosen is None:
                break
            waiting.remove(chosen[0])
            running.append(chosen)
        assert running, "nothing runs, and nothing can begin"
        done, send = running.pop(chance.randrange(len(running)))
        layers = [layer.diff_id[7:] for layer in done.image.layers]
        if chance.random() < 0.2:
            failed += 1
            continue
        loaded += 1
        for number in sorted(send):
            chain = "".join(layers[: number + 1])
            assert number == 0 or "".join(layers[:number]) in store
            store.add(chain)
            sent.append(chain)
        assert not layers or "".join(layers) in store
    assert loaded + failed == 12
    assert len(sent) == len(set(sent))


def test_the_last_seed_that_claims_a_name_gets_it() -> None:
    first, second = pending("a", "app", "old", seed="1.tar"), pending("b", "app", seed="2.tar")
    settled, notes = settle_names([first, second])
    assert [one.image.names for one in settled] == [("docker.io/library/old:1",), ("docker.io/library/app:1",)]
    assert notes == ["app:1 is in 1.tar and in 2.tar: the latter counts"]


def test_an_image_that_loses_all_its_names_is_not_loaded() -> None:
    settled, _ = settle_names([pending("a", "app", seed="1.tar"), pending("b", "app", seed="2.tar")])
    assert [one.seed_name for one in settled] == ["2.tar"]


def test_the_same_image_twice_is_loaded_once_and_nothing_is_said() -> None:
    settled, notes = settle_names([pending("a", "app", seed="1.tar"), pending("a", "app", seed="2.tar")])
    assert len(settled) == 1
    assert notes == []


def test_images_without_names_stay() -> None:
    assert len(settle_names([pending("a"), pending("b")])[0]) == 2
