"""Text data: every format recognised and understood, and a sentence with file and line for what cannot be."""

import gzip
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from raftdiff.errors import UserError
from raftdiff.llm.data.prompts import DataConfig, asked, like, read_prompts, rows, sealed_prompts
from raftdiff.types import Prompt

HERE = Path()
ASK = {"role": "user", "content": "Why is the sea salty?"}
GOOD = "Rivers carry salts from rocks, and only water leaves again."
BAD = "Because of fish."


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def of(*captions: Any, **options: Any) -> list[Prompt]:
    return read_prompts(DataConfig(captions=list(captions), **options), HERE, "prompts")


def answers(prompt: Prompt) -> list[tuple[str, float | None, str]]:
    return [(answer["text"], answer["score"], answer["source"]) for answer in prompt.meta["answers"]]


def lines(path: Path, *found: Any) -> DataConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return DataConfig(file=str(path))


# what a prompt is


def test_magic_is_sampled_the_plain_prompt_is_scored_and_learnt() -> None:
    magic = ["Be warm. {prompt}", "{prompt} Be kind."]
    one, two = of("I lost my keys.", {"prompt": "I am {tired}."}, magic=magic)
    assert (one.id, one.caption, one.sampling, one.learning, one.negative) == (
        "i-lost-my-keys",
        "I lost my keys.",
        "Be warm. I lost my keys.",
        "I lost my keys.",
        "",
    )
    assert (two.sampling, two.learning) == ("I am {tired}. Be kind.", "I am {tired}.")
    assert dict(one.meta) == {}


def test_coupled_learns_what_was_sampled() -> None:
    (one,) = of("Hello", magic=["Be warm. {prompt}"], decouple=False)
    assert (one.caption, one.learning) == ("Hello", "Be warm. Hello")


def test_a_row_may_bring_its_own_texts_and_columns() -> None:
    history = [turn("user", "Hi"), turn("assistant", "Hello.")]
    row = {"prompt": "And you?", "id": "q7", "sampling": "Kindly: and you?", "system": "Be brief.", "history": history}
    (one,) = of({**row, "reference": ["Fine."], "tests": "assert f() == 1", "odd": float("nan")}, system="Be polite.")
    assert (one.id, one.sampling) == ("q7", "Kindly: and you?")
    assert one.meta == {
        "system": "Be brief.",
        "history": history,
        "reference": ["Fine."],
        "tests": "assert f() == 1",
        "odd": None,
    }


def test_the_system_message_of_the_config_is_for_prompts_without_one() -> None:
    one, two = of({"prompt": "a", "system": ""}, {"prompt": "b", "system": "Own."}, system="Be polite.")
    assert (one.meta["system"], two.meta["system"]) == ("Be polite.", "Own.")


def test_what_is_asked_by_hand_is_written_as_the_model_learnt_to_answer_it() -> None:
    """With the system message of the data, and with the magic only where the model learnt to answer that."""
    magic = {"captions": ["a"], "system": "Be brief.", "magic": ["{prompt} Kindly.", "{prompt} Soon."]}
    for decouple, wanted in ((True, ["x", "y"]), (False, ["x Kindly.", "y Soon."])):
        found = asked(DataConfig(**magic, decouple=decouple, limit=1, max_prompt_words=1), ["x", "y"])
        assert [prompt.id for prompt in found] == ["prompt-0", "prompt-1"]
        assert [prompt.sampling for prompt in found] == wanted
        assert [prompt.caption for prompt in found] == ["x", "y"]
        assert all(prompt.meta == {"system": "Be brief."} for prompt in found)


def test_other_prompts_of_the_same_model_have_its_system_message() -> None:
    trained = DataConfig(captions=["a"], system="Be brief.", magic=["{prompt} Kindly."])
    held_out = DataConfig(captions=["b", {"prompt": "c", "system": "Be long."}])
    found = read_prompts(like(trained, held_out), HERE, "prompts")
    assert [prompt.meta["system"] for prompt in found] == ["Be brief.", "Be long."]
    assert [prompt.sampling for prompt in found] == ["b", "c"], "magic is for the sampler in training"
    own = held_out.model_copy(update={"system": "Be kind."})
    assert like(trained, own) == own


def test_prompts_keep_their_white_space() -> None:
    (one,) = of({"prompt": "The film was \n"})
    assert one.caption == "The film was \n"


def test_equal_prompts_are_numbered_and_never_take_another_name() -> None:
    found = of("Yes", "Yes!", "yes 2", {"prompt": "x", "id": "yes-3"}, "yes")
    assert [prompt.id for prompt in found] == ["yes", "yes-4", "yes-2", "yes-3", "yes-5"]


def test_ids_do_not_depend_on_limit_or_shuffling() -> None:
    prompts = ["Yes", "No", "Yes", "Maybe", "No"]
    whole = of(*[{"prompt": text, "n": n} for n, text in enumerate(prompts)])
    ids = {prompt.meta["n"]: prompt.id for prompt in whole}
    shuffled = of(*[{"prompt": text, "n": n} for n, text in enumerate(prompts)], shuffle_seed=3, limit=4)
    assert [p.id for p in shuffled] == [ids[p.meta["n"]] for p in shuffled]
    assert len(shuffled) == 4
    assert [p.meta["n"] for p in shuffled] != [0, 1, 2, 3]
    again = of(*[{"prompt": text, "n": n} for n, text in enumerate(prompts)], shuffle_seed=3)
    assert again[:4] == shuffled


def test_long_prompts_can_be_left_out() -> None:
    history = [turn("user", "one two"), turn("assistant", "three")]
    kept = of("a b c d", "a b c d e", {"prompt": "four", "history": history}, max_prompt_words=4)
    assert [prompt.caption for prompt in kept] == ["a b c d", "four"]
    with pytest.raises(UserError, match="no prompt is left; raise prompts.max_prompt_words"):
        of("a b", max_prompt_words=1)
    with pytest.raises(UserError, match="no prompt is left"):
        of("a b", system="c d", max_prompt_words=3)


# formats


def test_prompt_response_and_its_other_names() -> None:
    for name in ("response", "output", "completion"):
        (one,) = of({"prompt": "Why?", name: GOOD})
        assert (one.caption, answers(one)) == ("Why?", [(GOOD, None, "")])


def test_alpaca_joins_instruction_and_input() -> None:
    one, two = of(
        {"instruction": "Name the colour.", "input": "a ripe lemon", "output": "Yellow."},
        {"instruction": "Say hello.", "input": "", "output": "Hello."},
    )
    assert (one.caption, two.caption) == ("Name the colour.\n\na ripe lemon", "Say hello.")
    assert answers(one) == [("Yellow.", None, "")]
    assert one.meta["input"] == "a ripe lemon", "for templates that set it apart"
    assert "input" not in two.meta


def test_input_is_kept_as_it_is_beside_another_prompt_column() -> None:
    (one,) = of({"prompt": "Sort these.", "input": "3 1 2"})
    assert (one.caption, one.meta) == ("Sort these.", {"input": "3 1 2"})


def test_messages_the_last_assistant_turn_is_the_answer() -> None:
    talk = [turn("system", "Be brief."), turn("user", "Hi"), turn("assistant", "Hello."), ASK, turn("assistant", GOOD)]
    one, two = of({"messages": talk}, {"messages": talk[:-1]})
    assert one.caption == ASK["content"]
    assert one.meta["system"] == "Be brief."
    assert one.meta["history"] == talk[1:3]
    assert answers(one) == [(GOOD, None, "")]
    assert (two.caption, two.meta["history"], "answers" in two.meta) == (ASK["content"], talk[1:3], False)


def test_conversations_of_sharegpt_are_messages() -> None:
    talk = [("system", "Be brief."), ("human", "Hi"), ("gpt", "Hello."), ("human", ASK["content"]), ("gpt", GOOD)]
    (one,) = of({"id": "a", "conversations": [{"from": who, "value": text} for who, text in talk]})
    assert (one.id, one.caption, one.meta["system"]) == ("a", ASK["content"], "Be brief.")
    assert one.meta["history"] == [turn("user", "Hi"), turn("assistant", "Hello.")]
    assert answers(one) == [(GOOD, None, "")]
    with pytest.raises(UserError, match=r"message 1 of 'conversations' lacks a role out of system, user, assistant"):
        of({"conversations": [{"from": "narrator", "value": "?"}]})


def test_pairs_of_texts() -> None:
    (one,) = of({"prompt": ASK["content"], "chosen": GOOD, "rejected": BAD})
    assert answers(one) == [(GOOD, 1.0, "chosen"), (BAD, 0.0, "rejected")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASK["content"], "chosen": [ASK, turn("assistant", GOOD)], "rejected": [ASK, turn("assistant", BAD)]},
        {"prompt": [ASK], "chosen": [turn("assistant", GOOD)], "rejected": [turn("assistant", BAD)]},
        {"chosen": [ASK, turn("assistant", GOOD)], "rejected": [ASK, turn("assistant", BAD)]},
        {"prompt": ASK["content"], "chosen": [turn("assistant", GOOD)], "rejected": BAD},
    ],
)
def test_pairs_of_messages(row: dict[str, Any]) -> None:
    (one,) = of(row)
    assert (one.caption, "history" in one.meta) == (ASK["content"], False)
    assert answers(one) == [(GOOD, 1.0, "chosen"), (BAD, 0.0, "rejected")]


def test_pairs_take_the_history_of_the_conversations() -> None:
    before = [turn("system", "Be brief."), turn("user", "Hi"), turn("assistant", "Hello."), ASK]
    sides = {"chosen": [*before, turn("assistant", GOOD)], "rejected": [*before, turn("assistant", BAD)]}
    (one,) = of({"prompt": ASK["content"], **sides})
    assert (one.caption, one.meta["system"], one.meta["history"]) == (ASK["content"], "Be brief.", before[1:3])


def test_pairs_that_look_like_lists_are_texts() -> None:
    (one,) = of({"prompt": "Sort 2 1.", "chosen": "[1, 2]", "rejected": "[2, 1]"})
    assert [text for text, _, _ in answers(one)] == ["[1, 2]", "[2, 1]"]
    (two,) = of({"prompt": "[3, 4]", "response": '["a"]'})
    assert (two.caption, answers(two)) == ("[3, 4]", [('["a"]', None, "")])


def test_messages_in_csv_cells_are_json(tmp_path: Path) -> None:
    sides = [json.dumps([ASK, turn("assistant", text)]).replace('"', '""') for text in (GOOD, BAD)]
    (tmp_path / "p.csv").write_text(f'chosen,rejected\n"{sides[0]}","{sides[1]}"\n')
    (one,) = read_prompts(DataConfig(file="p.csv"), tmp_path, "prompts")
    assert (one.caption, answers(one)) == (ASK["content"], [(GOOD, 1.0, "chosen"), (BAD, 0.0, "rejected")])


def test_pairs_keep_the_system_message_of_the_prompt_or_of_the_conversation() -> None:
    sides = {"chosen": [ASK, turn("assistant", GOOD)], "rejected": [ASK, turn("assistant", BAD)]}
    (one,) = of({"prompt": [turn("system", "Be brief."), ASK], **sides})
    assert one.meta["system"] == "Be brief."
    first = turn("system", "Be kind.")
    (two,) = of({"prompt": None, **{side: [first, *talk] for side, talk in sides.items()}}, format="pairs")
    assert (two.caption, two.meta["system"]) == (ASK["content"], "Be kind.")


def test_pairs_with_unrated_sides_keep_their_order() -> None:
    (one,) = of({"prompt": "x", "chosen": "a", "rejected": "b", "score_chosen": None, "score_rejected": "N/A"})
    assert [score for _, score, _ in answers(one)] == [1.0, 0.0]


def test_a_column_called_answers_is_no_answers_in_another_format() -> None:
    (one,) = of({"prompt": "x", "answers": ["plain", "texts"]}, format="prompt")
    assert "answers" not in one.meta


def test_ranked_with_scores_and_without() -> None:
    rated = {"prompt": "Why?", "answers": ["a", "b", "c"], "scores": [0.2, "1.5", None], "models": ["m", "n", "o"]}
    (one,) = of(rated)
    assert answers(one) == [("a", 0.2, "m"), ("b", 1.5, "n"), ("c", None, "o")]
    assert set(one.meta) == {"answers"}
    (two,) = of({"prompt": "Why?", "responses": ["best", "middle", "worst"]})
    assert [score for _, score, _ in answers(two)] == [2.0, 1.0, 0.0]
    (wombat,) = of({"query": "Why?", "responses": ["a", "b"], "scores": [11, 17]})
    assert (wombat.caption, answers(wombat)) == ("Why?", [("a", 11.0, ""), ("b", 17.0, "")])


def test_answers_read_back_as_they_were_written() -> None:
    (one,) = of({"prompt": "Why?", "answers": ["a", "b"], "scores": [1, float("nan")], "models": ["m", "n"]})
    (again,) = of({"prompt": one.caption, **one.meta})
    assert again == one
    assert answers(again)[1] == ("b", None, "n")


def test_hh_rlhf_history_prompt_and_two_answers() -> None:
    before = "\n\nHuman: Hi there\n\nAssistant: Hello, how can I help?\n\nHuman: Why is the sea salty?\n\nAssistant:"
    (one,) = of({"chosen": f"{before} {GOOD}\n\nAnd so on.", "rejected": f"{before} {BAD}"})
    assert one.caption == "Why is the sea salty?"
    assert one.meta["history"] == [turn("user", "Hi there"), turn("assistant", "Hello, how can I help?")]
    assert answers(one) == [(f"{GOOD}\n\nAnd so on.", 1.0, "chosen"), (BAD, 0.0, "rejected")]


def test_hh_rlhf_with_windows_line_ends() -> None:
    (one,) = of({"chosen": "\r\n\r\nHuman: Hi\r\n\r\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"})
    assert (one.caption, [text for text, _, _ in answers(one)]) == ("Hi", ["Yes", "No"])


def test_ultrafeedback_binarized_in_spite_of_its_messages_column() -> None:
    chosen, rejected = [ASK, turn("assistant", GOOD)], [ASK, turn("assistant", BAD)]
    row = {"prompt": ASK["content"], "prompt_id": "f00", "chosen": chosen, "rejected": rejected, "messages": chosen}
    (one,) = of({**row, "score_chosen": 8.5, "score_rejected": 3.0})
    assert answers(one) == [(GOOD, 8.5, "chosen"), (BAD, 3.0, "rejected")]
    assert set(one.meta) == {"answers", "prompt_id"}


def test_ultrafeedback_trusts_ratings_more_than_the_overall_score() -> None:
    ratings = {"helpfulness": {"Rating": "1"}, "honesty": {"Rating": "N/A"}, "truthfulness": [{"Rating": "2"}]}
    completions = [
        {"model": "one", "response": "a", "overall_score": 10.0, "fine-grained_score": 1.25, "annotations": ratings},
        {"model": "two", "response": "b", "overall_score": 10.0, "annotations": ratings},
        {"model": "three", "response": "c", "overall_score": 7.0, "annotations": {}},
        {"model": "four", "response": "d"},
    ]
    (one,) = of({"instruction": "Why?", "models": ["one", "two"], "completions": completions, "source": "quiz"})
    assert answers(one) == [("a", 1.25, "one"), ("b", 1.5, "two"), ("c", 7.0, "three"), ("d", None, "four")]
    assert one.meta["source"] == "quiz"


def test_chosen_is_the_better_one_whatever_the_scores_and_it_is_said() -> None:
    rated = [{"score_chosen": 1.0, "score_rejected": 5.0}, {"score_chosen": 2, "score_rejected": 2}]
    with pytest.warns(UserWarning, match=r"in 2 of 3 rows the rejected answer is rated as high .* the scores 1 and 0"):
        found = of(*({"prompt": "x", "chosen": "a", "rejected": "b", **more} for more in (*rated, {})))
    assert [[score for _, score, _ in answers(one)] for one in found] == [[1.0, 0.0]] * 3


@pytest.mark.parametrize("labels", [(True, False), ("true", "False"), (1, 0), ("1", "0.0")])
def test_labels_of_kto_are_scores(labels: tuple[Any, Any]) -> None:
    held = [
        {"prompt": "Why?", "completion": text, "label": label} for text, label in zip((GOOD, BAD), labels, strict=True)
    ]
    one, two = of(*held)
    assert answers(one) == [(GOOD, 1.0, "desirable")]
    assert answers(two) == [(BAD, 0.0, "undesirable")]
    assert "label" not in one.meta


def test_a_label_that_is_something_else_is_kept_and_no_score() -> None:
    one, two = of(*({"prompt": "Why?", "response": GOOD, "label": label} for label in ("sport", 1)))
    assert (answers(one), one.meta["label"], two.meta["label"]) == ([(GOOD, None, "")], "sport", 1)


def test_a_file_of_lmflow_is_read(tmp_path: Path) -> None:
    def held(kind: str, *instances: Any) -> list[Prompt]:
        (tmp_path / "l.json").write_text(json.dumps({"type": kind, "instances": instances}))
        return read_prompts(DataConfig(file="l.json"), tmp_path, "prompts")

    (one,) = held("text2text", {"input": "Why?", "output": GOOD})
    assert (one.caption, answers(one), set(one.meta)) == ("Why?", [(GOOD, None, "")], {"answers"})
    (two,) = held("text_only", {"text": f"###Human: Hi###Assistant: Hello.###Human: Why?###Assistant: {GOOD}"})
    assert (two.caption, answers(two)[0][0]) == ("Why?", GOOD)
    assert two.meta["history"] == [turn("user", "Hi"), turn("assistant", "Hello.")]
    (three,) = held("conversation", {"system": "Be brief.", "messages": [ASK, turn("assistant", GOOD)]})
    assert (three.meta["system"], answers(three)[0][0]) == ("Be brief.", GOOD)
    (four,) = held("text_to_scored_textlist", {"input": "Why?", "output": [{"text": "a", "score": 2.5}]})
    assert answers(four) == [("a", 2.5, "")]
    with pytest.raises(UserError, match="item 1 is no text or object but int"):
        held("float_only", 1)


def test_transcripts_of_guanaco_are_read() -> None:
    one, two, three = of(
        {"text": f"### Human: Hi### Assistant: Hello.\n### Human: {ASK['content']}### Assistant: {GOOD}\n### Notes"},
        {"text": "### Human: Why?### Assistant:"},
        {"text": "\n\nHuman: Why?\n\nAssistant: Who knows"},
    )
    assert one.meta["history"] == [turn("user", "Hi"), turn("assistant", "Hello.")]
    assert (one.caption, answers(one)) == (ASK["content"], [(f"{GOOD}\n### Notes", None, "")])
    assert (two.caption, "answers" in two.meta) == ("Why?", False)
    assert (three.caption, answers(three)) == ("Why?", [("Who knows", None, "")])


def test_shp_reads_the_preferred_comment_from_its_label() -> None:
    row = {"history": "A post.", "human_ref_A": GOOD, "human_ref_B": BAD, "score_A": 3, "score_B": 9, "domain": "ask"}
    one, two = of({**row, "labels": 0}, {**row, "labels": 0, "score_A": 3, "score_B": 9})
    assert (one.caption, answers(one)) == ("A post.", [(BAD, 9.0, "chosen"), (GOOD, 3.0, "rejected")])
    assert (two.meta["domain"], "history" in two.meta) == ("ask", False)


def message(name: str, parent: str | None, role: str, text: str, **more: Any) -> dict[str, Any]:
    return {"message_id": name, "parent_id": parent, "role": role, "text": text, "rank": None, **more}


TREE = [
    message("q", None, "prompter", "Hi"),
    message("a1", "q", "assistant", "Worse.", rank=1),
    message("a0", "q", "assistant", "Better.", rank=0),
    message("a2", "q", "assistant", "Unranked."),
    message("a3", "q", "assistant", "Gone.", rank=2, deleted=True),
    message("p", "a0", "prompter", "And then?"),
    message("b", "p", "assistant", "Then this."),
    message("lost", "a3", "prompter", "Lost?"),
    message("c", "lost", "assistant", "Lost."),
]


def test_trees_of_openassistant_message_by_message() -> None:
    with pytest.warns(UserWarning, match=r"2 messages of the trees were left out: 1 because they were deleted; 1 bec"):
        one, two = of(*TREE)
    assert (one.id, one.caption, "history" in one.meta) == ("q", "Hi", False)
    assert answers(one) == [("Better.", 2.0, ""), ("Worse.", 1.0, ""), ("Unranked.", None, "")]
    assert two.meta["history"] == [turn("user", "Hi"), turn("assistant", "Better.")]
    assert (two.caption, answers(two)) == ("And then?", [("Then this.", 0.0, "")])


def test_whole_trees_of_openassistant_say_the_same() -> None:
    def grown(name: str | None) -> list[dict[str, Any]]:
        nodes = [node for node in TREE if node["parent_id"] == name]
        return [{**node, "parent_id": None, "replies": grown(node["message_id"])} for node in nodes]

    with pytest.warns(UserWarning, match="messages of the trees were left out"):
        whole = of({"message_tree_id": "q", "prompt": grown(None)[0]})
    with pytest.warns(UserWarning, match="messages of the trees were left out"):
        assert whole == of(*TREE)


def test_content_in_parts_is_joined_and_developer_is_the_system() -> None:
    parts = [{"type": "text", "text": "Why "}, {"type": "text", "text": "so?"}]
    talk = [turn("system", "Be kind."), turn("developer", "Be brief."), {"role": "user", "content": parts}]
    (one,) = of({"messages": [*talk, {**turn("assistant", GOOD), "tool_calls": None}]})
    assert (one.caption, one.meta["system"], answers(one)[0][0]) == ("Why so?", "Be kind.\n\nBe brief.", GOOD)


def test_tool_turns_and_pictures_are_left_out_and_counted_by_reason() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}
    held = [
        [ASK, call, turn("tool", "4"), turn("assistant", "Four.")],
        [ASK, turn("assistant", "Hm."), ASK, call],
        [picture, turn("assistant", "A cat.")],
        [ASK, turn("assistant", GOOD)],
    ]
    sharegpt = [("human", "a"), ("function_call", "f()"), ("observation", "4"), ("gpt", "Four.")]
    rows = [{"messages": talk} for talk in held]
    with pytest.warns(UserWarning, match=r"2 because 'messages' holds tool calls .*1 because .*type 'image_url', and"):
        (kept,) = of(*rows, broken="skip")
    assert answers(kept)[0][0] == GOOD
    with pytest.raises(UserError, match="holds tool calls or a tool's turns, which are not learnt from here"):
        of({"conversations": [{"from": who, "value": text} for who, text in sharegpt]})


def test_a_named_format_is_obeyed() -> None:
    row = {"prompt": "Why?", "response": GOOD, "messages": [ASK, turn("assistant", BAD)]}
    with pytest.raises(UserError, match=r"\(messages, prompt, response\) fit several: messages, prompt_response. Set"):
        of(row)
    assert answers(of(row, format="messages")[0]) == [(BAD, None, "")]
    assert answers(of(row, format="prompt_response")[0]) == [(GOOD, None, "")]
    assert "answers" not in of(row, format="prompt")[0].meta


def test_columns_are_renamed() -> None:
    (one,) = of({"question": "Why?", "reply": GOOD}, columns={"question": "prompt", "reply": "response"})
    assert (one.caption, answers(one)) == ("Why?", [(GOOD, None, "")])


@pytest.mark.parametrize(
    ("row", "options", "sentence"),
    [
        ({"question": "Why?"}, {}, r"the columns \(question\) fit no format. Known: prompt .*Rename columns under"),
        ({"chosen": "Yes", "rejected": "No"}, {}, r"\(chosen, rejected\) fit no format"),
        ({"q": "Why?"}, {"columns": {"qq": "prompt"}}, "no column 'qq' to rename. Did you mean 'q'"),
        ({"q": "Why?", "prompt": "x"}, {"columns": {"q": "prompt"}}, "two columns would be called 'prompt'"),
        ({"prompt": "x", "query": "y"}, {}, "'prompt' and 'query' could both be the prompt"),
        ({"prompt": " \n"}, {}, "'prompt' is empty"),
        ({"prompt": 3}, {}, "'prompt' is no text but int"),
        ({"prompt": "half \ud83d"}, {}, "lone surrogate"),
        ({"prompt": "x", "response": ""}, {}, "'response' is empty"),
        ({"prompt": "x", "response": None}, {}, "there is no response"),
        ({"prompt": "x", "chosen": "a", "rejected": " a"}, {}, "the chosen and the rejected answer are the same"),
        ({"prompt": "x", "chosen": "a", "rejected": None}, {}, "'rejected' is missing"),
        ({"prompt": "x", "chosen": [ASK, turn("assistant", "a")], "rejected": "b"}, {}, "the prompt is not the one"),
        (
            {"chosen": [ASK, turn("assistant", "a")], "rejected": [turn("user", "x"), turn("assistant", "b")]},
            {},
            "do not share one prompt",
        ),
        ({"chosen": "a", "rejected": "b"}, {"format": "pairs"}, "there is no prompt"),
        ({"prompt": "x", "answers": []}, {}, "there is no list of answers"),
        ({"prompt": "x", "answers": ["a", ""]}, {}, "answer 2 is empty"),
        ({"prompt": "x", "answers": ["a", "b"], "scores": [1]}, {}, "'scores' should hold 2 values.*it holds 1"),
        ({"prompt": "x", "answers": ["a"], "scores": ["good"]}, {}, "the score 'good' is no number"),
        ({"prompt": "x", "answers": ["a"], "scores": [float("inf")]}, {}, "a score is infinite"),
        ({"prompt": "x", "answers": ["a"], "scores": [10**400]}, {}, "a score is infinite"),
        ({"messages": []}, {}, "'messages' holds no messages"),
        ({"messages": [turn("assistant", "a")]}, {}, "not a user's turn"),
        ({"messages": [turn("bard", "a")]}, {}, "message 1 of 'messages' lacks a role out of system, user, assistant"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, {}, "message 1 of 'messages' lacks a role"),
        ({"messages": [turn("user", "a"), turn("system", "b")]}, {}, "system messages before them alone"),
        ({"messages": [turn("system", "a")]}, {}, "system messages before them alone"),
        ({"messages": [ASK, {"role": "assistant", "content": None}]}, {}, "message 2 of 'messages' is missing"),
        ({"prompt": "x", "response": "y", "label": 2}, {"format": "kto"}, "the label 2 is neither true nor false"),
        ({"text": "no turns"}, {}, r"\(text\) fit no format"),
        ({"text": "no turns"}, {"format": "transcript"}, "'text' should begin with"),
        ({"history": "x", "human_ref_A": "a", "human_ref_B": "b"}, {}, "'labels' is None; 1 says that A is preferred"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, {}, "message 1 of 'messages' is no text but list"),
        ({"messages": [turn("user", "a"), turn("assistant", " ")]}, {}, "the assistant's last turn is empty"),
        ({"instruction": "x", "completions": []}, {}, "there are no completions"),
        ({"instruction": "x", "completions": [{"model": "m", "response": ""}]}, {}, "completion 1 is empty"),
        ({"prompt": "x", "reference": 3}, {}, "'reference' is no text but int"),
        ({"prompt": "x", "reference": ["a", None]}, {}, "'reference' is missing"),
        ({"prompt": "x", "sampling": "half \ud83d"}, {}, "'sampling' holds half of a character"),
        ({"prompt": "x", "id": "../x"}, {}, "cannot name a file"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
            {},
            "the chosen and the rejected transcript do not share one prompt",
        ),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "\n\nHuman: a\n\nAssistant: b"},
            {},
            "do not share one prompt",
        ),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "\n\nHuman: a\n\nAssistant: b"},
            {},
            "last turn is empty",
        ),
        ({"chosen": "Hi\n\nHuman: a\n\nAssistant: b", "rejected": "c"}, {}, "'chosen' should begin with"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(row: dict[str, Any], options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        of(row, **options)


def test_a_broken_row_is_named_with_file_and_line(tmp_path: Path) -> None:
    config = lines(tmp_path / "p.jsonl", {"prompt": "a", "response": "b"}, {"prompt": "c", "response": ""})
    with pytest.raises(UserError, match=r"p\.jsonl:2: 'response' is empty \(format prompt_response\). Correct the row"):
        read_prompts(config, HERE, "prompts")


def test_broken_rows_can_be_left_out_and_are_counted() -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    same = {"prompt": "a", "chosen": "b", "rejected": "b"}
    with pytest.warns(UserWarning, match=r"2 of 3 rows were left out \(the first: prompts.captions.1\): 2 because the"):
        found = of(good, same, same, broken="skip")
    assert [prompt.id for prompt in found] == ["a"]
    with pytest.raises(UserError, match="1 of 1 rows were left out"):
        of(same, broken="skip")


# sources


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "there is no prompt; name a file under 'file'"),
        ({"file": "x.txt", "captions": ["y"]}, "'file' and 'captions' are both given"),
        ({"file": "gone.txt"}, r"prompts.file: there is no file 'gone\.txt'"),
        ({"captions": ["x"], "magic": ["warm"]}, "lacks {prompt}, where the prompt goes"),
        ({"captions": ["x"], "magic": []}, "list of templates is empty"),
        ({"captions": [{"prompt": "x", "id": "a"}, {"prompt": "y", "id": "a"}]}, "have the same id 'a'"),
    ],
)
def test_a_wrong_config_is_named(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        read_prompts(DataConfig(**options), tmp_path, "prompts")


KEYS = ("prompts", "evaluation.prompts", "pairs.data", "held_out.data", "finetuner.ptx.data", "policy_pool.prompts")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "{}: there is no prompt"),
        ({"file": "gone.txt"}, r"{}.file: there is no file 'gone\.txt'"),
        ({"file": "p.txt", "sha256": "0" * 64}, r"{}.file: 'p\.txt' is not what the run began with"),
        ({"captions": [{"prompt": ""}]}, r"{}.captions.0: 'prompt' is empty .* set {}.broken to skip"),
        ({"captions": [{"prompt": "x", "query": "y"}]}, "be the prompt; {}.columns can rename one .format prompt"),
        ({"captions": ["x"], "columns": {"query": "prompt"}}, "{}.columns: there is no column 'query' to rename"),
        ({"captions": [{"prompt": "x", "query": "y"}], "columns": {"query": "prompt"}}, "'prompt'; see {}.columns"),
        ({"captions": [{"prompts.broken": "x"}]}, r"{}.format: the columns \(prompts.broken\) .* under {}.columns"),
        (
            {"captions": [{"prompt": "x", "response": "y", "answers": ["z"]}]},
            "{}.format: .* fit several: .* Set {}.format to",
        ),
        ({"captions": ["x"], "magic": ["warm"]}, "{}.magic: the template"),
        ({"captions": ["x"], "magic": []}, '{}.magic: the list .* write "{{prompt}}"'),
        ({"captions": [{"prompt": "x", "id": "../x"}]}, "{}: the id '../x' of prompt 1 cannot name a file"),
        ({"captions": ["x y"], "max_prompt_words": 1}, "{}: no prompt is left; raise {}.max_prompt_words"),
    ],
)
def test_a_mistake_is_told_under_the_key_of_its_data(
    key: str, options: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("a prompt\n")
    with pytest.raises(UserError, match=sentence.replace("{}", key).replace("{{", "{").replace("}}", "}")):
        read_prompts(DataConfig(**options), tmp_path, key)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"question": "x"}, r"^--pairs: the columns \(question\) fit no format\. .* Rename the file's columns\."),
        (
            {"prompt": "x", "response": "y", "answers": ["z"]},
            r"^--pairs: .* fit several: .*\. Leave the columns of the others out of the file\.",
        ),
    ],
)
def test_a_file_named_by_an_option_has_no_settings(row: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        read_prompts(DataConfig(captions=[row]), tmp_path, "--pairs")


def test_what_is_left_out_is_told_under_the_key_of_its_data() -> None:
    held = DataConfig(captions=["a", {"prompt": ""}], broken="skip")
    with pytest.warns(
        UserWarning, match=r"^held_out.data: 1 of 2 rows were left out \(the first: held_out.data.captio"
    ):
        read_prompts(held, HERE, "held_out.data")
    twins = DataConfig(captions=["a", {"prompt": "b", "query": "c"}], broken="skip")
    with pytest.warns(UserWarning, match=r"could both be the prompt; held_out\.data\.columns can rename one\.$"):
        read_prompts(twins, HERE, "held_out.data")
    with pytest.warns(UserWarning, match=r"could both be the prompt\.$"):
        read_prompts(twins, HERE, "--pairs")


def test_a_data_set_that_cannot_be_had_is_told_under_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets([]))
    with pytest.raises(UserError, match=r"^pairs.data.hub: team/set\[train\] has no rows"):
        sealed_prompts(DataConfig(hub="team/set"), HERE, "pairs.data")
    with pytest.raises(UserError, match="^pairs.data.hub: cannot load 'team/set', split 'gone'"):
        read_prompts(DataConfig(hub="team/set", split="gone"), HERE, "pairs.data")


def test_files_of_every_kind_say_the_same(tmp_path: Path) -> None:
    table = [{"prompt": "Why?", "response": 'He said "so",\nand left.'}, {"prompt": "Köln 😀", "response": "Ja."}]
    (tmp_path / "p.jsonl").write_text("\ufeff" + "\r\n".join(map(json.dumps, table)) + "\r\n\r\n", encoding="utf-8")
    (tmp_path / "p.json").write_text(json.dumps(table))
    cells = '"He said ""so"",\nand left."'
    (tmp_path / "p.csv").write_bytes(f"\ufeffprompt,response\r\nWhy?,{cells}\r\n\r\nKöln 😀,Ja.\r\n".encode())
    (tmp_path / "p.tsv").write_text(f"prompt\tresponse\nWhy?\t{cells}\nKöln 😀\tJa.\n", encoding="utf-8")
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress((tmp_path / "p.jsonl").read_bytes()))
    first = read_prompts(DataConfig(file="p.jsonl"), tmp_path, "prompts")
    assert [answers(prompt)[0][0] for prompt in first] == [row["response"] for row in table]
    for name in ("p.json", "p.csv", "p.tsv", "p.jsonl.gz"):
        assert read_prompts(DataConfig(file=name), tmp_path, "prompts") == first


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("\ufeff# words\r\n\r\n a cat \r\na\u2028b\n".encode())
    assert [prompt.caption for prompt in read_prompts(DataConfig(file="p.txt"), tmp_path, "prompts")] == [
        "a cat",
        "a\u2028b",
    ]


def test_line_separators_within_json_text_do_not_end_a_line(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a\u2028b\u0085c"}\n', encoding="utf-8")
    assert read_prompts(DataConfig(file="p.jsonl"), tmp_path, "prompts")[0].caption == "a\u2028b\u0085c"


def test_lists_in_csv_cells_are_json(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('prompt,answers,scores,id\nWhy?,"[""a"", ""b""]","[1, 2.5]",\n')
    (one,) = read_prompts(DataConfig(file="p.csv"), tmp_path, "prompts")
    assert (one.id, answers(one)) == ("why", [("a", 1.0, ""), ("b", 2.5, "")])


def test_huge_lines_are_read(tmp_path: Path) -> None:
    text = "word " * 200_000
    (tmp_path / "p.csv").write_text(f"prompt,response\nWhy?,{text}\n")
    assert read_prompts(DataConfig(file="p.csv"), tmp_path, "prompts")[0].meta["answers"][0]["text"] == text
    config = lines(tmp_path / "p.jsonl", {"prompt": text})
    (one,) = read_prompts(config, HERE, "prompts")
    assert one.caption == text
    assert len(one.id) < 100


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("p.txt", b"\n# nothing\n", r"p\.txt: this file has no rows"),
        ("p.csv", b"prompt,response\n", "has no rows"),
        ("p.csv", b"", "has no rows"),
        ("p.jsonl", b'{"prompt": "a"}\n\n{oops\n', r"p\.jsonl:3: this line is not valid JSON: Expecting property name"),
        ("p.jsonl", b"[1]", r"p\.jsonl:1: expected an object such as"),
        ("p.jsonl", b"[" * 100_000, r"p\.jsonl:1: this line is not valid JSON"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}\n', r"p\.jsonl:2: this line is not UTF-8"),
        ("p.json", b'{"prompt": "a"}\n{"prompt": "b"}', r"p\.json:2: this file is not valid JSON.*name it \.jsonl"),
        ("p.json", b'{"data": []}', "is a list of texts or objects; this one holds dict"),
        ("p.json", b'[{"prompt": "a"}, 3]', "item 2 is no text or object but int"),
        ("p.csv", b"prompt,response\na,b,c\n", r"p\.csv:2: this row has 3 cells, and the first line names 2 columns"),
        ("p.csv", b"Why?\nHow?\n", r"fit no format.* The first line of .*p\.csv was read as .* \('Why\?'\)"),
        ("p.csv", b"prompt;response\na;b\n", r"p\.csv:1: the first line, 'prompt;response', was read as the name"),
        ("p.csv", b"prompt,prompt\na,b\n", r"p\.csv:1: two columns are called 'prompt'"),
        ("p.csv", b'prompt\n"a', "is not valid CSV"),
        ("p.xlsx", b"", r"a file of prompts or data ends in \.jsonl, \.ndjson"),
        ("p.jsonl.gz", b"plain", "cannot read this file"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=sentence):
        read_prompts(DataConfig(file=name), tmp_path, "prompts")


def test_a_row_without_what_the_others_have_is_named(tmp_path: Path) -> None:
    config = lines(tmp_path / "p.jsonl", {"prompt": "a", "response": "b"}, {"prompt": "c"})
    with pytest.raises(UserError, match=r"p\.jsonl:2: there is no response"):
        read_prompts(config, HERE, "prompts")


def test_a_sealed_config_refuses_other_data(tmp_path: Path) -> None:
    lines(tmp_path / "p.jsonl", {"prompt": "a"})
    kept = sealed_prompts(DataConfig(file="p.jsonl"), tmp_path, "prompts")
    assert kept.file == str(tmp_path / "p.jsonl")
    assert kept.sha256 is not None
    assert len(kept.sha256) == 64
    assert read_prompts(kept, Path("/elsewhere"), "prompts")[0].caption == "a"
    assert sealed_prompts(kept, HERE, "prompts") == kept
    lines(tmp_path / "p.jsonl", {"prompt": "b"})
    with pytest.raises(UserError, match=r"is not what the run began with \(sha256 .* then, .* now\). Put the old data"):
        read_prompts(kept, HERE, "prompts")


def test_a_config_says_whether_it_names_prompts() -> None:
    assert not DataConfig().given
    assert DataConfig(captions=["a"]).given
    assert DataConfig(file="a.txt").given


def test_prompts_held_inline_need_no_seal() -> None:
    config = DataConfig(captions=["a"])
    assert sealed_prompts(config, HERE, "prompts") is config


def test_rows_are_named_by_their_place(tmp_path: Path) -> None:
    config = lines(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b"})
    assert [row.where for row in rows(config, HERE, "prompts")] == [f"{tmp_path}/p.jsonl:1", f"{tmp_path}/p.jsonl:2"]


class FakeDatasets(types.ModuleType):
    """As much of ``datasets`` as is asked of it."""

    __version__ = "4.1.0"

    def __init__(self, table: list[dict[str, Any]]) -> None:
        super().__init__("datasets")
        self.table = table
        self.calls: list[Any] = []

    def load_dataset(self, path: str, name: str | None = None, **options: Any) -> list[dict[str, Any]]:
        self.calls.append((path, name, options))
        if options["split"] == "gone":
            raise ValueError('Unknown split "gone".\nShould be one of ["train"].')
        return self.table

    def load_from_disk(self, path: str) -> dict[str, list[dict[str, Any]]]:
        self.calls.append(path)
        return {"train": self.table}


def test_a_hub_data_set_is_read_without_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDatasets([{"prompt": "a", "response": None, "answers": ["x"]}, {"prompt": "b", "answers": ["y"]}])
    monkeypatch.setitem(sys.modules, "datasets", fake)
    config = DataConfig(hub="team/set", subset="en", data_dir="helpful-base", revision="abc", format="ranked")
    assert [prompt.id for prompt in read_prompts(config, HERE, "prompts")] == ["a", "b"]
    assert fake.calls == [("team/set", "en", {"data_dir": "helpful-base", "split": "train", "revision": "abc"})]
    kept = sealed_prompts(config, HERE, "prompts")
    fake.table[0]["prompt"] = "c"
    with pytest.raises(UserError, match="'team/set' is not what the run began with"):
        read_prompts(kept, HERE, "prompts")
    with pytest.raises(UserError, match="cannot load 'team/set', split 'gone': Unknown split"):
        read_prompts(config.model_copy(update={"split": "gone"}), HERE, "prompts")


def test_an_old_or_missing_datasets_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDatasets([])
    monkeypatch.setattr(FakeDatasets, "__version__", "2.19.0")
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(UserError, match="datasets 2.19.0 may run code that comes with a data set"):
        read_prompts(DataConfig(hub="team/set"), HERE, "prompts")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UserError, match=r"the package 'datasets' is missing; install it: pip install 'raftdiff\[llm\]'"
    ):
        read_prompts(DataConfig(hub="team/set"), HERE, "prompts")


def test_a_data_set_that_was_saved_to_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = FakeDatasets([{"prompt": "a"}])
    monkeypatch.setitem(sys.modules, "datasets", fake)
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "dataset_dict.json").write_text("{}")
    assert read_prompts(DataConfig(hub="held"), tmp_path, "prompts")[0].id == "a"
    assert fake.calls == [str(tmp_path / "held")]
    assert sealed_prompts(DataConfig(hub="held"), tmp_path, "prompts").hub == str(tmp_path / "held")
    with pytest.raises(UserError, match="cannot load .*, split 'dev': 'dev'"):
        read_prompts(DataConfig(hub="held", split="dev"), tmp_path, "prompts")


def test_a_local_folder_through_the_real_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the package 'datasets' is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    (tmp_path / "set").mkdir()
    lines(tmp_path / "set" / "train.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "d"})
    with pytest.raises(UserError, match=r"set\[train\]: row 1: 'chosen' is missing"):
        read_prompts(DataConfig(hub="set"), tmp_path, "prompts")
    assert read_prompts(DataConfig(hub="set", split="train[:1]"), tmp_path, "prompts")[0].caption == "a"
    datasets.Dataset.from_list([{"prompt": "e"}]).save_to_disk(str(tmp_path / "saved"))
    assert read_prompts(DataConfig(hub="saved"), tmp_path, "prompts")[0].caption == "e"


def test_a_folder_of_text_files_is_read_and_known_again(tmp_path: Path) -> None:
    for name, text in (("2", "Why?"), ("10", "Who\nis it?")):
        (tmp_path / f"{name}.txt").write_text(text)
    config = sealed_prompts(DataConfig(file=str(tmp_path)), HERE, "prompts")
    assert [(prompt.id, prompt.caption) for prompt in read_prompts(config, HERE, "prompts")] == [
        ("2", "Why?"),
        ("10", "Who is it?"),
    ]
    (tmp_path / "2.txt").write_text("Where?")
    with pytest.raises(UserError, match="is not what the run began with"):
        read_prompts(config, HERE, "prompts")
