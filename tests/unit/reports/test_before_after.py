"""The page and its curve: complete, self-contained, escaped, and plain about what got worse."""

import copy
import io
import re
from base64 import b64decode
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from PIL import Image

from raftdiff.errors import UserError
from raftdiff.reports.before_after import BeforeAfter, Candidate, headline, remarks, write_report
from raftdiff.reports.curve import curve_svg
from raftdiff.reports.tables import rows

VOID = {"meta", "img", "br", "hr", "input", "link"}
NAN = float("nan")


def figure(mean, low, high):
    return {"mean": mean, "std": 1.0, "ci95": [low, high], "n": 8}


def change(before, after, half):
    difference = after - before
    return {
        "before": figure(before, before - half, before + half),
        "after": figure(after, after - half, after + half),
        "difference": figure(difference, difference - half, difference + half),
        "win_rate": 0.75,
    }


def verdict(before, after, half=0.05):
    told = change(before, after, half)
    return {"before": before, "after": after, **{name: told[name] for name in ("difference",)}}


EVALUATION = {
    "prompts": 4,
    "samples_per_prompt": 2,
    "rewards": {"clip": change(24.0, 27.0, 1.0)},
    "judge": {"style": verdict(0.92, 0.85), "exact": verdict(0.24, 0.42)},
    "diversity": {
        "vendi": {"before": 6.0, "after": 5.4},
        "vendi_within": {"before": 1.9, "after": 1.5},
        "pairwise_distance": {"before": 0.4, "after": 0.3},
        "ratio": {"vendi": 0.9, "vendi_within": 0.79, "pairwise_distance": 0.75},
    },
    "drift": {"picture": 0.2, "prediction": None},
    "seconds": 12.0,
    "network_evaluations": 100,
}
ROUNDS = [
    {
        "round": t,
        "first_sample_mean": 24.0 + t,
        "mean": 24.1 + t,
        "selected_mean": 28.0 + t,
        "random_mean": 24.0,
        "best_of_k": 28.0 + t,
        "diversity_all": {"vendi": 5.0, "pairwise_distance": 0.4},
        "diversity_selected": {"vendi": 4.0, "pairwise_distance": NAN},
        "discard_rate": 0.125,
        "held_out": 24.5 + t,
        "held_out_base": 24.0,
        "seconds": {"sample": 60.0, "score": 2.0, "tune": 20.0},
        "network_evaluations": {"sample": 1000, "tune": 200},
    }
    for t in range(3)
]


def picture(side=8, colour="red"):
    return Image.new("RGB", (side, side), colour)


def pair(caption="a cat", score=24.0):
    marks = {"clip": score, "exact": False}
    return BeforeAfter(caption, picture(), picture(colour="blue"), marks, {"clip": score + 1, "exact": True})


def candidate(round=0, *, selected=True, score=3.0, caption="a dog"):
    return Candidate(round, caption, picture(), {"clip": score}, selected)


class Tags(HTMLParser):
    """Every tag with its attributes; fails on a tag that is not closed."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    tags = Tags()
    tags.feed(path.read_text(encoding="utf-8"))
    assert not tags.open
    return tags


@pytest.fixture
def write(tmp_path):
    def make(**changed):
        parts = {
            "title": "scenes",
            "evaluation": EVALUATION,
            "rounds": ROUNDS,
            "pairs": [pair("a cat"), pair("a dog"), pair("a cat", 20.0)],
            "selected": [candidate(t, selected=bool(k), score=float(k)) for t in range(3) for k in range(2)],
            "recipe": "loop:\n  rounds: 3\n",
        }
        return write_report(tmp_path / "new" / "report.html", **{**parts, **changed})

    return make


def test_a_page_on_both_sets_begins_with_what_was_tuned_on(write):
    page = write(training=altered(clip=(20.0, 30.0, 1.0))).read_text()
    heads = re.findall(r"<h1>(.*?)</h1>", page)
    assert heads[0].startswith("The prompts it was tuned on: the ")
    assert "from 20.00 to 30.00" in heads[0]
    assert heads[1].startswith("Prompts it never saw: the ")
    assert len(re.findall("<h1>", write().read_text())) == 1


def test_page_is_well_formed_and_has_every_section(write):
    page = read(write())
    sections = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert sections == ["pictures", "rounds", "table", "selected", "time", "recipe"]


def test_page_needs_nothing_from_outside(write):
    path = write()
    page = read(path)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert all(attrs["src"].startswith("data:image/") for tag, attrs in page.tags if tag == "img")
    text = re.sub(r'xmlns="[^"]*"', "", path.read_text(encoding="utf-8"))
    assert not re.search(r"https?://|@import|url\(", text)


def test_every_picture_says_what_it_is(write):
    alts = [attrs["alt"] for tag, attrs in read(write()).tags if tag == "img"]
    assert len(alts) == 2 * 3 + 2 * 3
    assert alts[0] == "a cat, before: clip 24.0, everything wrong"
    assert "a cat, after: clip 25.0, everything right" in alts
    assert "a dog, selected: clip 1.00" in alts
    assert "a dog, rejected: clip 0.00" in alts


def test_pairs_of_a_caption_share_a_card(write):
    page = read(write())
    assert [tag for tag, _ in page.tags].count("article") == 2


def test_what_a_user_typed_is_escaped(write):
    evil = "<script>alert('&')</script>"
    evaluation = {**EVALUATION, "rewards": {evil: EVALUATION["rewards"]["clip"]}}
    path = write(title=evil, evaluation=evaluation, pairs=[pair(evil)], selected=[candidate(caption=evil)], recipe=evil)
    page = read(path)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "".join(page.text).count(evil) >= 6
    assert any(attrs.get("alt", "").startswith(evil) for _, attrs in page.tags)


def test_small_pictures_are_kept_to_the_bit_and_large_ones_shrunk(write):
    large = BeforeAfter("wide", picture(700), picture(64, "green"), {}, {})
    before, after = (attrs["src"] for tag, attrs in read(write(pairs=[large], selected=[])).tags if tag == "img")
    assert before.startswith("data:image/webp")
    assert max(Image.open(io.BytesIO(b64decode(before.partition(",")[2]))).size) == 512
    assert Image.open(io.BytesIO(b64decode(after.partition(",")[2]))).tobytes() == picture(64, "green").tobytes()


def test_a_bare_page_still_stands(write):
    evaluation = {**EVALUATION, "judge": {}, "diversity": None, "drift": {"picture": None, "prediction": None}}
    page = read(write(evaluation=evaluation, rounds=[], pairs=[], selected=[]))
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"] == ["table", "time", "recipe"]


def test_rounds_are_counted_from_0_as_their_folders_are(write):
    page = write(selected=[candidate(0), candidate(2)]).read_text()
    counted = re.search(r'<section id="rounds">.*?</section>', page, re.S).group()
    assert re.findall(r"<tr><th>(\d+)</th>", counted) == ["0", "1", "2"]
    said = re.findall(r"<summary>Round (\d+) <span class=\"folder\">rounds/(\d+)<", page)
    assert said == [
        ("0", "000"),
        ("2", "002"),
    ]


def test_rounds_that_say_little(write):
    read(write(rounds=[{"seconds": {"sample": 1.0}}, {"mean": NAN, "held_out": None}]))


def test_pages_of_training_prompts_say_so(write):
    assert "4 training prompts" in "".join(read(write(trained_on=True)).text)
    assert "4 held-out prompts" in "".join(read(write()).text)


def test_selected_stand_first_then_the_best(write):
    held = [candidate(selected=False, score=1.0), candidate(selected=False, score=NAN), candidate(score=0.5)]
    held.append(candidate(selected=False, score=2.0))
    alts = [attrs["alt"] for tag, attrs in read(write(pairs=[], selected=held)).tags if tag == "img"]
    assert [alt.split("clip ")[1] for alt in alts] == ["0.50", "2.00", "1.00", "discarded"]


def test_a_page_that_cannot_be_written(tmp_path, write):
    (tmp_path / "new").write_text("a file, not a folder")
    with pytest.raises(UserError, match=r"new/report\.html: the report cannot be written: File exists"):
        write()


def test_headline_of_a_gain():
    assert headline(EVALUATION) == (
        "The share of pictures right in everything rose from 24.0% to 42.0% (+18.0\N{NO-BREAK SPACE}"
        "pt), and the reward clip rose from 24.00 to 27.00 (+3.00)."
    )


def altered(**rewards):
    evaluation = copy.deepcopy(EVALUATION)
    evaluation["rewards"] = {name: change(*values) for name, values in rewards.items()}
    return evaluation


def test_headline_says_a_fall_first():
    assert headline(altered(clip=(24.0, 21.0, 1.0))).startswith(
        "The reward clip fell from 24.00 to 21.00 (−3.00), but the share of pictures right"
    )


def test_headline_does_not_claim_what_chance_may_have_done():
    evaluation = {**altered(clip=(24.0, 24.5, 1.0)), "judge": {}}
    assert headline(evaluation) == "The reward clip did not change clearly (24.00 before, 24.50 after)."
    assert headline({**evaluation, "rewards": {}, "diversity": None}) == "Nothing was measured."


def test_remarks_name_what_got_worse_and_diversity():
    assert remarks(EVALUATION) == [
        "Got worse: style right (−7.0\N{NO-BREAK SPACE}pt).",
        "Pictures of one prompt differ 75% as much as the base's.",
    ]
    assert remarks({**EVALUATION, "judge": {}, "diversity": None}) == ["Nothing that has an interval got worse."]


def test_curve_is_a_picture_of_its_own():
    root = ElementTree.fromstring(curve_svg(ROUNDS, "a < b"))
    space = {"svg": "http://www.w3.org/2000/svg"}
    title = root.find("svg:title", space).text
    assert title.startswith("A < b over 3 rounds: selected 28 to 30; all candidates 24.1 to 26.1; held-out 24 to 26.5")
    assert [group.get("class") for group in root.findall("svg:g", space)] == ["best", "all", "held"]
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"held-out", "a < b by rounds of fine-tuning", "0", "3"} <= set(texts)


def test_curve_rises_when_the_reward_does():
    path = ElementTree.fromstring(curve_svg(ROUNDS)).find(".//{*}g[@class='held']/{*}path").get("d")
    heights = [float(point.split()[1]) for point in path[1:].split("L")]
    assert len(heights) == 4
    assert heights == sorted(heights, reverse=True)


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [-1e-6, 1e-6], [1e6, 2e6], [3.0, None, NAN, 4.0]])
def test_curve_of_any_values_stays_inside(values):
    svg = curve_svg([{"mean": value} for value in values])
    numbers = [float(number) for number in re.findall(r'[xy][12]?="(-?[\d.]+)"', svg)]
    assert all(0 <= number <= 460 for number in numbers)
    assert "nan" not in svg


def test_labels_do_not_cover_each_other():
    svg = curve_svg([{"mean": 1.0, "selected_mean": 1.0, "held_out": 1.0, "held_out_base": 0.0}])
    heights = sorted(float(y) for y in re.findall(r'y="([\d.]+)" text-anchor="start"', svg))
    assert all(below - above >= 16.9 for above, below in pairwise(heights))


def test_signs_of_trouble_stand_at_the_top(write):
    collapsed = {**ROUNDS[-1], "diversity_all": {"vendi": 2.0, "pairwise_distance": 0.1}}
    page = write(rounds=[ROUNDS[0], collapsed]).read_text()
    assert page.index("diversity is lost") < page.index("<section")
    assert "diversity is lost" not in write(rounds=ROUNDS).read_text()


def test_no_curve_without_figures():
    assert curve_svg([]) == ""
    assert curve_svg([{"mean": None}]) == ""


def test_a_difference_of_one_pair_has_no_interval_and_no_verdict():
    """Resampling one value gives it back: an interval of no width, which would call any difference sure."""
    one = change(1.0, 2.0, 0.0)
    one["difference"]["n"] = 1
    evaluation = {"rewards": {"clip": one, "jpeg": change(1.0, 2.0, 0.1)}, "judge": {}, "diversity": None, "drift": {}}
    alone, several = rows(evaluation)
    assert (alone.ci95, alone.verdict, alone.difference) == (None, "", 1.0)
    assert (several.ci95, several.verdict) == ((0.9, 1.1), "better")


MIXING = {
    "mix": "weighted_sum",
    "roles": {"clip": "train", "<b>": "hold_out"},
    "told_nothing": {"clip": 0.0, "<b>": 0.5},
    "agreement": {"clip": {"<b>": 0.29}},
    "contribution": {"clip": 1.0},
    "chosen_above": {"clip": 1.33, "<b>": -1.26},
    "vetoed": {},
}


def test_the_page_says_who_decided_and_what_the_guard_looks_at(tmp_path):
    each = {"held_out_base_rewards_each": {"clip": [1.0, 3.0]}, "held_out_rewards_each": {"clip": [2.0, 4.0]}}
    rounds = [*ROUNDS[:2], {**ROUNDS[0], **each}, {**ROUNDS[2], **each, "mixing": MIXING}]
    rounds[0] = {**rounds[0], **each}
    page = written(tmp_path, rounds)
    assert "rewards in round 2, mix: weighted_sum" in page
    assert "clip and &lt;b&gt; order 29% of the pairs alike" in page
    row = re.search(r"<th scope=\"row\">&lt;b&gt;</th>(.*?)</tr>", page, re.S).group(1)
    assert re.findall(r"<td[^>]*>(.*?)</td>", row) == ["hold_out", "-", "-1.26 sd", "50%", "-"]
    row = re.search(r"<th scope=\"row\">reward clip</th>(.*?)</tr>", page, re.S).group(1)
    assert re.findall(r"<td[^>]*>(.*?)</td>", row) == ["2", "3", "+0.7 sd"]
    bare = written(tmp_path, ROUNDS)
    assert "Who decided" not in bare
    assert "What the guard looks at" not in bare


def test_the_page_of_an_earlier_round_says_so_and_warns_of_none_that_came_after(write):
    collapsed = {**ROUNDS[1], "discard_rate": 0.9, "candidates": 10}
    page = write(rounds=[ROUNDS[0], collapsed]).read_text()
    assert "discard 90% of the candidates" in page
    assert "after is the model of round" not in page
    page = write(rounds=[ROUNDS[0], collapsed], at=0, gone_back="Back to <b> it went.").read_text()
    assert "discard 90%" not in page
    assert "2 rounds of RAFT; after is the model of round 0." in page
    assert '<p class="remarks">Back to &lt;b&gt; it went.</p>' in page


def written(folder, rounds):
    path = write_report(
        folder / "report.html", title="t", evaluation=EVALUATION, rounds=rounds, pairs=[], selected=[], recipe=""
    )
    return path.read_text()
