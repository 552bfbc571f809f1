"""The rules that judge a companion's reply, on worked sentences: each sees what was said before."""

from pathlib import Path

import pytest

from raftdiff.errors import UserError
from raftdiff.llm.data.prompts import DataConfig, read_prompts
from raftdiff.rewards.companion import CompanionConfig, asks, feeling, stems, verdict
from raftdiff.types import Prompt, Sample

DOG = "My dog died this morning and the house is so quiet."
TEST = "I passed my driving test at last!"
GOOD = "I'm so sorry about your dog. The house must feel empty without him."


@pytest.mark.parametrize(
    ("prompt", "reply", "part", "points"),
    [
        (DOG, GOOD, "names", 1.5),
        (DOG, "A puppy is a friend.", "names", 1),  # of one matter
        (DOG, "I'm so sorry. That must be hard for you.", "names", 0),
        (DOG, GOOD, "feels", 2),
        (DOG, "Congratulations! What a nice dog.", "feels", -2),
        (DOG, "It is a normal day, and dogs are animals.", "feels", 0),
        (TEST, "I'm so sorry for your loss.", "feels", -4),  # nothing was lost
        (DOG, "I'm so sorry for your loss.", "feels", 2),
        (TEST, "Congratulations, you must be so proud!", "feels", 2),
        (TEST, "I'm sorry to hear that you passed.", "feels", -2),
        ("Will you stay with me?", "Of course I will.", "answers", 1),
        ("Will you stay with me?", "The weather is nice.", "answers", 0),
        (DOG, "Yes, I do.", "answers", 0),  # nothing was asked
        (DOG, GOOD, "turned", 0.5),
        (DOG, "It is sad.", "turned", 0),
        (DOG, "I think that I am sad when you are.", "turned", 0),  # of itself
        (DOG, GOOD, "fresh", 0),
        (DOG, "I'm sorry to hear that.", "fresh", -1),
        (DOG, "As an AI language model I can assist you.", "fresh", -2),
        (DOG, "This sentence is correct.", "fresh", -2),
        (DOG, "My dog died too, I was sad.", "honest", -1),
        (DOG, "It must hurt, and Max was so kind.", "honest", -1),  # whom nobody mentioned
        ("I miss Max.", "It must hurt to miss Max.", "honest", 0),
        ("Max died.", "It must hurt to miss Max.", "honest", 0),
        ("I miss Max.", "Dear Max is gone.", "honest", 0),
        (DOG, "Dear Max is gone.", "honest", -1),
        (DOG, GOOD, "whole", 1.5),
        (DOG, "I'm so sorry about your", "whole", 0),
        (DOG, "Sorry.", "whole", 0),  # too little to be a reply
        (DOG, "- Rest.\n- Talk to a friend about it.", "whole", 0.5),
        (DOG, "You are sad, you are sad, you are sad.", "whole", 0.5),
        (DOG, "The house is so quiet this morning and the house is so quiet.", "whole", -0.5),  # an echo that repeats
    ],
)
def test_one_rule_at_a_time(prompt: str, reply: str, part: str, points: float) -> None:
    assert verdict(prompt, reply)._asdict()[part] == points


def test_the_same_reply_is_worth_more_where_it_fits() -> None:
    assert verdict(DOG, GOOD).total == 5.5
    assert verdict("They did not ask me.", GOOD).total == verdict(DOG, GOOD).total - 1.5
    joy = "How wonderful that you passed your test!"
    assert verdict(TEST, joy).total > verdict(DOG, joy).total + 3


def test_how_somebody_feels_is_read_or_known() -> None:
    assert [feeling(text) for text in (TEST, DOG, "Everyone seems happy except me.", "Hello.")] == [
        "glad",
        "low",
        "low",
        "low",
    ]
    prompt = "My son read a whole book on his own."  # no word of joy
    assert verdict(prompt, "Congratulations!").feels == -2
    assert verdict(prompt, "Congratulations!", "glad").feels == 2


def test_matter_is_what_the_words_name_and_questions_are_those_to_the_companion() -> None:
    assert stems("I do not know what to do about it") == frozenset()
    assert stems("My mum cried.") == stems("The mother is crying")
    assert asks("Do you care how I feel?")
    assert not asks("Why did she go?")


def test_the_reward_sums_the_rules_and_takes_the_feeling_from_the_data() -> None:
    (known,) = read_prompts(
        DataConfig(captions=[{"prompt": "My son read a book.", "feeling": "glad"}]), Path(), "prompts"
    )
    plain = Prompt("a", DOG, DOG, DOG)
    found = (
        CompanionConfig()
        .build()
        .score([Sample(0, one, 0, 0, "policy", text) for one, text in ((plain, GOOD), (known, "Congratulations!"))])
    )
    assert found.tolist() == [verdict(DOG, GOOD).total, verdict(known.caption, "Congratulations!", "glad").total]


def test_a_feeling_is_read_whatever_its_case_and_the_spaces_about_it() -> None:
    reply = "Hey, a book! That must have been lovely for you."
    asked = [Prompt(name, "My son read a book.", "", "", meta={"feeling": name}) for name in ("glad", " Glad ", "low")]
    glad, spelled, low = CompanionConfig().build().score([Sample(0, one, 0, 0, "policy", reply) for one in asked])
    assert glad == spelled != low


def test_a_feeling_that_the_rules_do_not_know_is_told_before_anything_is_drawn() -> None:
    reward = CompanionConfig().build()
    known = [Prompt(name, DOG, DOG, DOG, meta={"feeling": name}) for name in ("low", "glad", "", "Low", "glad ")]
    reward.check_prompts([*known, Prompt("none", DOG, DOG, DOG)])
    with pytest.raises(UserError, match="prompt 'a' has feeling 'sad', and the rules know low and glad alone"):
        reward.check_prompts([Prompt("a", DOG, DOG, DOG, meta={"feeling": "sad"})])
