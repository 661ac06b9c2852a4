"""A random byte of a SQLite file that is another one, two hundred times."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from shared.db import DatabaseFactory
from shared.db.benchmarks.fault_bench.figures import Figure
from shared.db.benchmarks.fault_bench.ground import Ground
from shared.db.benchmarks.fault_bench.images import make_image, url_of, use


def bit_flips(ground: Ground) -> list[Figure]:
    count = ground.of(200, 60)
    image = make_image(ground.new_folder())
    size = image.path.stat().st_size
    path = ground.new_folder() / "flipped.db"
    outcomes = Counter[str]()
    stray = []
    for _ in range(count):
        flip(image.copy_to(path), ground.random.randrange(size), ground.random.randrange(1, 256))
        with DatabaseFactory(url_of(path)) as db:
            said = use(db, image.contents)
        outcomes[said.outcome] += 1
        if said.outcome == "stray error":
            stray.append(said.error)
        for f in path.parent.iterdir():
            f.unlink()
    print(outcomes, stray)
    return []


def flip(path: Path, offset: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))
