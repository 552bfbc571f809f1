"""The world of translation: sources mean what was drawn, and of every translation adequacy, fluency and elegance are
exact."""

import numpy as np
import pytest

from raftdiff.embedded.translation import world
from raftdiff.embedded.translation.careless import careless
from raftdiff.embedded.translation.words import TARGET, Word, present, vocabulary, written
from raftdiff.embedded.translation.world import Clause
from raftdiff.errors import UserError

SCRIPT = "at first , the final script was truly superb , but my sister hated the scenes :"
MEANT = (
    Clause("script", "superb", past=True, which="final", degree="truly", when="at first"),
    Clause("scenes", "hate", past=True, link="but", who="my sister"),
)
FINE, PLAIN = world.references(SCRIPT)


def drawn(count: int, *, apart: bool = False) -> list[world.Meaning]:
    generator = np.random.default_rng(0)
    return [world.draw(generator, apart=apart) for _ in range(count)]


def text(*words: Word) -> str:
    return " ".join(map(written, words))


# --- words


def test_every_word_of_the_target_is_said_back_and_none_is_a_word_of_the_source() -> None:
    assert all(written(word) == said for said, word in TARGET.items())
    assert len(vocabulary()) == len(set(vocabulary())) == len(TARGET) + 115
    assert {said for said in TARGET if said in SCRIPT.split()} == set()


def test_nouns_share_their_class_and_number_with_what_stands_beside_them() -> None:
    classes = {(word.form, word.many) for word in TARGET.values() if word.role == "thing"}
    assert classes == {("a", False), ("a", True), ("o", False), ("o", True)}
    endings = {word.form + "i" * word.many: said for said, word in TARGET.items() if word.role == "adjective"}
    assert all(said.endswith(ending) for ending, said in endings.items())


@pytest.mark.parametrize(("who", "verb"), [("i", "love"), ("my brother", "loves"), ("critics", "love")])
def test_the_source_conjugates(who: str, verb: str) -> None:
    assert present("love", who) == verb


# --- sources


def test_a_source_says_what_is_meant_and_means_it() -> None:
    assert world.source(MEANT) == SCRIPT
    assert world.meaning(SCRIPT) == MEANT
    for apart in (False, True):
        for meant in drawn(60, apart=apart):
            assert world.meaning(world.source(meant)) == meant
            assert {world.held_out(clause) for clause in meant} == {apart}


@pytest.mark.parametrize(
    "prompt",
    [
        SCRIPT.replace("scenes", "songs"),
        "",
        ":",
        "the script was superb",
        "western about pirates :",
        "the scenes was superb :",
    ],
)
def test_another_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(UserError, match="is no source of the world of translation; write one like"):
        world.check([SCRIPT, prompt])


# --- translations


def test_the_verb_stands_last_adjectives_after_their_noun_and_all_agree() -> None:
    script, scenes = (next(w for w in TARGET.values() if w.says == name) for name in ("script", "scenes"))
    first = [Word("when", "at first"), script, Word("which", "final", False, script.form), Word("degree", "truly")]
    first += [Word("adjective", "superb", False, script.form), Word("is", "", past=True)]
    sister = [Word("link", "but"), Word("who", "my sister"), scenes, Word("verb", "hate", past=True)]
    assert text(*first, *sister) == PLAIN


def test_the_most_elegant_translation_has_fine_words_the_time_before_the_verb_and_a_pronoun() -> None:
    again = (Clause("scenes", "slow", when="at times"), Clause("scenes", "bland", past=True, link="and"))
    fine, plain = world.references(world.source(again))
    roles = [[TARGET[word].role for word in one.split()] for one in (fine, plain)]
    assert roles[0] == ["thing", "adjective", "when", "is", "link", "pronoun", "adjective", "is"]
    assert roles[1] == ["when", "thing", "adjective", "is", "link", "thing", "adjective", "is"]
    assert all(TARGET[word].fine for word in fine.split() if TARGET[word].role == "adjective")


def test_every_way_to_say_it_is_adequate_and_fluent_and_as_elegant_as_its_choices() -> None:
    generator = np.random.default_rng(1)
    for meant in drawn(60):
        taken: list[bool] = []

        def fine(_: world.Choice, taken: list[bool] = taken) -> bool:
            taken.append(bool(generator.random() < 0.5))
            return taken[-1]

        prompt, said = world.source(meant), world.render(meant, fine)
        assert world.adequate(prompt, said)
        assert world.fluent(said)
        assert world.faithfulness(prompt, said) == 1
        assert world.elegance(said) == pytest.approx(np.mean(taken))
        assert world.quality(prompt, said) == pytest.approx((1 + np.mean(taken)) / 2)


def test_what_does_not_agree_is_adequate_and_not_fluent() -> None:
    for meant in drawn(30):
        prompt, said = world.source(meant), world.render(meant, lambda _: True, lambda: True)
        assert world.adequate(prompt, said)
        assert not world.fluent(said)
        assert world.elegance(said) == world.quality(prompt, said) == 0


@pytest.mark.parametrize(
    ("meant", "faithful"),
    [
        (MEANT, 1.0),
        ((MEANT[0],), 2 * 5 / (9 + 5)),  # of the source's nine facts five, and none of its own
        ((Clause("script", "superb", past=True, which="final"), MEANT[1]), 2 * 7 / (9 + 7)),
        ((Clause("script", "bland", past=True), Clause("scenes", "hate", link="but", who="my sister")), 2 * 3 / 15),
        ((*MEANT, Clause("plot", "bland", link="and")), 2 * 9 / (9 + 12)),
    ],
)
def test_faithfulness_counts_what_both_say(meant: world.Meaning, faithful: float) -> None:
    said = world.render(meant, lambda _: False)
    assert world.faithfulness(SCRIPT, said) == pytest.approx(faithful)
    assert world.adequate(SCRIPT, said) == (faithful == 1)


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "qwerty",
        SCRIPT,
        " ".join(PLAIN.split()[::-1]),
        PLAIN + " ke",
        "ke " + PLAIN,
        PLAIN.replace(" omo ", " "),
        "li " + " ".join(PLAIN.split()[2:]),
    ],
)
def test_what_the_grammar_cannot_say_is_neither(broken: str) -> None:
    assert not world.fluent(broken)
    assert not world.adequate(SCRIPT, broken)
    assert world.quality(SCRIPT, broken) == world.elegance(broken) == 0
    assert world.faithfulness(SCRIPT, broken) < 1


def test_a_time_is_said_once() -> None:
    words = PLAIN.split()
    assert not world.fluent(" ".join([*words[:5], words[0], *words[5:]]))


def test_a_pronoun_stands_for_the_subject_before_and_agrees_with_it() -> None:
    one, other = Clause("scenes", "slow"), Clause("scenes", "bland", link="and")
    prompt, said = world.source((one, other)), world.render((one, other), lambda _: True)
    assert world.adequate(prompt, said)
    assert not world.fluent(said.replace(" lin ", " li "))
    felt = Clause("scenes", "hate", who="we")
    noun = world.render((felt,), lambda _: True)
    assert not world.fluent(f"{noun} ke lin " + " ".join(said.split()[-2:])), "we are not slow"


def test_careless_translations_are_right_a_third_of_the_time_and_never_broken() -> None:
    generator = np.random.default_rng(2)
    pairs = [(world.source(meant), careless(meant, generator)) for meant in drawn(300)]
    assert 0.2 < np.mean([world.adequate(*pair) for pair in pairs]) < 0.45
    assert 0.75 < np.mean([world.fluent(said) for _, said in pairs]) < 0.95
    assert np.mean([world.elegance(said) for _, said in pairs]) < 0.3
    assert all(one is not None for _, said in pairs for one in world.heard(said))
