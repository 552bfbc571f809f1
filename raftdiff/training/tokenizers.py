"""Whether a tokenizer belongs to the network that reads its tokens, asked once for text encoders, language models,
reward models and CLIP alike."""

from collections.abc import Mapping, Sequence
from typing import Any

from raftdiff.errors import UserError

UNLIMITED = 10**6
"""A tokenizer without a limit says so by a number of 30 digits."""
COVERED = 0.5
"""A tokenizer that knows less than this share of the network's tokens is another's, or a part of its own is lost."""


def check_vocabulary(what: str, vocabulary: Mapping[str, int], *, added: Sequence[int], rows: int) -> None:
    """
    Args:
        what: begins the sentence, and says whose tokenizer it is.
        vocabulary: every text that is a token, with its id.
        added: ids of those that were added to the vocabulary: begin, end, filling and their like.
        rows: of the network's table of embeddings.

    Tokens that were added may lie past the table, as the filling often does, for they are not needed; ``within`` says
    so where one is met.

    Raises:
        UserError: there is no vocabulary, or it is another network's.
    """
    words = set(vocabulary.values()) - set(added)
    if not words:
        raise UserError(
            f"{what}: the tokenizer has no vocabulary, only {len(set(vocabulary.values()))} special tokens, so it "
            "could read no text. Fetch its tokenizer.json (or vocab.json and merges.txt) again."
        )
    if max(words) >= rows:
        raise UserError(
            f"{what}: the tokenizer knows {max(words) + 1} tokens, the network only {rows}; it is another model's."
        )
    if len(vocabulary) < COVERED * rows:
        raise UserError(
            f"{what}: the tokenizer knows {len(vocabulary)} tokens of the network's {rows}; it is another model's, "
            "or a part of it is lost."
        )


def check_tokenizer(what: str, tokenizer: Any, rows: int) -> None:
    """``check_vocabulary`` for one of transformers'.

    Raises:
        UserError: as there, or its begin or end lies past the network's table.
    """
    added = [*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids]
    check_vocabulary(what, tokenizer.get_vocab(), added=added, rows=rows)
    for name in ("bos", "eos"):
        found = getattr(tokenizer, f"{name}_token_id", None)
        if found is not None and found >= rows:
            raise UserError(
                f"{what}: the tokenizer's {name} token '{getattr(tokenizer, f'{name}_token')}' has the id {found}, and "
                f"the network knows {rows} tokens; it is another model's, or the model was not resized with it."
            )


def within(what: str, tokenizer: Any, ids: Sequence[int], rows: int) -> None:
    """
    Raises:
        UserError: a text holds a token that the network does not know.
    """
    if ids and max(ids) >= rows:
        strange = tokenizer.convert_ids_to_tokens(max(ids))
        raise UserError(
            f"{what}: it holds '{strange}', a token that was added to the tokenizer (id {max(ids)}) and that the "
            f"network does not know ({rows} tokens); take it out."
        )


def nameless(tokenizer: Any, model: Any) -> list[int]:
    """Ids that the network can write and the tokenizer has no text for, or that the network cannot read again: tables
    are often filled up to a round number of rows."""
    writes = model.get_output_embeddings()
    rows = table_rows(model)
    known = set(tokenizer.get_vocab().values())
    return [one for one in range(rows if writes is None else writes.weight.shape[0]) if one >= rows or one not in known]


def table_rows(model: Any) -> int:
    """How many tokens a network of transformers knows."""
    return int(model.get_input_embeddings().weight.shape[0])


def longest(tokenizer: Any, config: Any) -> int | None:
    """Tokens that both tokenizer and network allow; None for no known limit. ``config`` is the network's."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions:
        positions -= first_position(config)
    limits = [limit for limit in (tokenizer.model_max_length, positions) if limit and 0 < limit < UNLIMITED]
    return min(limits, default=None)


def first_position(config: Any) -> int:
    """What a network counts positions from: RoBERTa and its kin from behind their filling token's id."""
    behind = any(family in config.model_type for family in ("roberta", "camembert"))
    return int(config.pad_token_id) + 1 if behind else 0
