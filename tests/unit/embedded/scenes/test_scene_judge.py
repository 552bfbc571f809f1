"""The judge that ships says today what its card shows, and is rather too strict than too kind."""

import csv

import numpy as np
from PIL import Image

from raftdiff.embedded import folder
from raftdiff.embedded.scenes.judge import SceneJudge
from raftdiff.embedded.scenes.layout import SIZE

CELL = SIZE + 4


def test_it_says_of_the_hand_looked_sheet_what_stands_beside_it() -> None:
    shipped = folder("scene-judge")
    sheet = Image.open(shipped / "looked_at.png")
    with (shipped / "looked_at.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    corners = [(CELL * (int(row["column"]) - 1) + 2, CELL * (int(row["row"]) - 1) + 2) for row in rows]
    pictures = [sheet.crop((x, y, x + SIZE, y + SIZE)) for x, y in corners]
    exact = SceneJudge(shipped).judge(pictures, [row["caption"] for row in rows])["exact"]
    said, person = (np.array([float(row[who]) for row in rows]) for who in ("judge", "person"))
    # another machine may round a verdict on the edge the other way
    assert (exact == said).mean() >= 0.97
    kind, strict = ((exact > person).sum(), (exact < person).sum())
    assert (exact == person).mean() >= 0.79
    assert kind < strict
