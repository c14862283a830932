"""Strict documents: every fault with its place, exact round trips, equal bytes for equal content.

If these fail, a mistake in a file is swallowed, or reported where it is not, or two runs differ.
"""

from __future__ import annotations

import json
from contextlib import suppress
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import Field, model_validator

from muplan.errors import Fault, InputError
from muplan.serde import (
    Document,
    Part,
    digest,
    locate_faults,
    parse_document,
    read_document,
    read_kind,
    to_json,
    write_document,
    write_text,
)


class QuotingDumper(yaml.SafeDumper):
    """Quotes every text: PyYAML writes YAML 1.1, where ``0E0`` is a text; we read 1.2, where it is 0."""


QuotingDumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Item(Part):
    name: str = Field(pattern=r"^[a-z]+$")
    weight_kg: float = Field(gt=0)
    colour: Colour = Colour.RED


class Plate(Part):
    side_m: int

    @cached_property
    def corners_m(self) -> NDArray[np.int_]:
        return np.array([0, 0, self.side_m, self.side_m])


class Box(Document):
    KIND: ClassVar[str] = "box"

    kind: Literal["box"] = "box"
    schema_version: Literal[1] = 1
    title: str = ""
    note: str | None = None
    count: int = 0
    sizes: tuple[tuple[int, int], ...] = ()
    shares: dict[str, float] = Field(default_factory=dict)
    either: int | str | None = None
    items: tuple[Item, ...] = Field(default=(), max_length=3)

    @model_validator(mode="after")
    def _unique(self) -> Self:
        names = [item.name for item in self.items]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ValueError(f"items[{index}].name: {name!r} stands twice")
        return self


HEAD = "kind: box\nschema_version: 1\n"


def faults_of(text: str) -> list[tuple[int, str, str]]:
    with pytest.raises(InputError) as caught:
        parse_document(text, Box, file="box.yaml")
    return [(fault.line, fault.key, fault.message) for fault in caught.value.faults]


# --- faults and their places -------------------------------------------------------------------


def test_all_faults_of_a_file_are_reported_at_once_with_key_and_line() -> None:
    text = HEAD + (
        "title: 5\n"
        "count: 1.5\n"
        "unknown: 1\n"
        "items:\n"
        "  - {name: ab, weight_kg: -1}\n"
        "  - name: Cd\n"
        "    weight_kg: 2\n"
        "    colour: green\n"
        "    size: 3\n"
        "  - colour: red\n"
    )
    assert faults_of(text) == [
        (3, "title", "should be a valid string (found 5)"),
        (4, "count", "should be a valid integer (found 1.5)"),
        (5, "unknown", "no such key"),
        (7, "items[0].weight_kg", "should be greater than 0 (found -1)"),
        (8, "items[1].name", "should match pattern '^[a-z]+$' (found 'Cd')"),
        (10, "items[1].colour", "should be 'red' or 'blue' (found 'green')"),
        (11, "items[1].size", "no such key"),
        (12, "items[2].name", "this key is required"),
        (12, "items[2].weight_kg", "this key is required"),
    ]


def test_the_message_names_file_line_key_and_remedy() -> None:
    with pytest.raises(InputError) as caught:
        parse_document(HEAD + "count: x\n", Box, file="some/box.yaml")
    assert str(caught.value) == (
        "some/box.yaml has 1 fault:\n"
        "  some/box.yaml:3: count: should be a valid integer (found 'x')\n\n"
        "Correct the lines above; docs/formats.md describes the keys of a box."
    )
    assert caught.value.exit_code == 2


def test_faults_of_json_have_lines_too() -> None:
    text = '{"kind": "box", "schema_version": 1,\n "count": "x",\n "items": [\n  {"name": "a"}]}'
    assert faults_of(text) == [
        (2, "count", "should be a valid integer (found 'x')"),
        (4, "items[0].weight_kg", "this key is required"),
    ]


@pytest.mark.parametrize("key", ["v100/0/1", "bert-1.3b", "Capital", "with space", "int", "5"])
def test_free_keys_of_a_mapping_are_named_as_they_stand(key: str) -> None:
    assert faults_of(f'{HEAD}shares:\n  good: 1\n  "{key}": x\n') == [
        (5, f"shares.{key}", "should be a valid number (found 'x')")
    ]


def test_members_of_a_union_are_no_part_of_the_key() -> None:
    assert faults_of(HEAD + "either: [1]\n") == [
        (3, "either", "should be a valid integer"),
        (3, "either", "should be a valid string"),
    ]


def test_lengths_of_lists_are_stated_plainly() -> None:
    items = "".join(f"  - {{name: {name}, weight_kg: 1}}\n" for name in "abcd")
    assert faults_of(HEAD + "items:\n" + items) == [(3, "items", "must have at most 3 items (found 4)")]
    assert faults_of(HEAD + "sizes: [[1, 2, 3]]\n") == [
        (3, "sizes[0]", "must have at most 2 items (found 3)")
    ]


def test_a_validator_may_name_the_place() -> None:
    """Faults between parts of a document point at the part, not at the top of the file."""
    text = HEAD + "items:\n  - {name: a, weight_kg: 1}\n  - weight_kg: 1\n    name: a\n"
    assert faults_of(text) == [(6, "items[1].name", "'a' stands twice")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind: bag\nschema_version: 1\n", [(1, "kind", "is 'bag', expected 'box'")]),
        ("kind: box\nschema_version: 2\n", [(2, "schema_version", "is 2, expected 1")]),
        ("kind: box\nschema_version: '1'\n", [(2, "schema_version", "is '1', expected 1")]),
        ("kind: box\nschema_version: true\n", [(2, "schema_version", "is True, expected 1")]),
        ("title: x\n", [(1, "kind", "is missing"), (1, "schema_version", "is missing")]),
        ("{}", [(1, "kind", "is missing"), (1, "schema_version", "is missing")]),
        ("- 1\n", [(1, "", "the document is not a mapping of keys to values")]),
        ("5", [(1, "", "the document is not a mapping of keys to values")]),
    ],
)
def test_a_wrong_header_is_told_before_anything_else(text: str, expected: list[tuple[int, str, str]]) -> None:
    assert faults_of(text) == expected


# --- no silent wrong answers -------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{key}: {value}\n", '"{key}": {value}\n'])
@pytest.mark.parametrize("value", [".nan", ".NaN", ".inf", "-.inf"])
def test_yaml_numbers_that_are_not_finite_are_refused(form: str, value: str) -> None:
    (fault,) = faults_of(HEAD + "shares: {a: " + value + "}\n")
    assert fault[:2] == (3, "shares.a")
    assert fault[2].startswith("should be a finite number")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_json_numbers_that_are_not_finite_are_refused(value: str) -> None:
    text = f'{{"kind": "box", "schema_version": 1,\n"shares": {{"a": {value}}}}}'
    (fault,) = faults_of(text)
    assert fault[:2] == (2, "shares.a")


@pytest.mark.parametrize("value", ["010", "1:30", "1_0", "0x10", "0o7", "+", "1e1"])
def test_no_number_is_read_as_another(value: str) -> None:
    """YAML 1.1 reads 010 as 8, 1:30 as 90 and 1_0 as 10; here none of them is a whole number."""
    ((line, key, message),) = faults_of(HEAD + f"count: {value}\n")
    assert (line, key) == (3, "count")
    assert "should be a valid integer" in message


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "y", "n", "2024-01-01", "12:30:45", "1_000", "="])
def test_words_stay_words(word: str) -> None:
    assert parse_document(f"{HEAD}title: {word}\n", Box, file="f").title == word


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("1E5", 1e5), (".5", 0.5), ("-2.", -2.0), ("3", 3.0)]
)
def test_numbers_are_numbers(text: str, value: float) -> None:
    assert parse_document(f"{HEAD}shares: {{a: {text}}}\n", Box, file="f").shares["a"] == value


@pytest.mark.parametrize("value", ["'4'", "true", "[4]", "null"])
def test_nothing_is_coerced_to_a_number(value: str) -> None:
    ((line, key, _),) = faults_of(HEAD + f"count: {value}\n")
    assert (line, key) == (3, "count")


def test_repeated_keys_are_faults_each_with_its_line() -> None:
    text = HEAD + "title: a\nshares: {b: 1, b: 2}\ntitle: c\n"
    assert faults_of(text) == [(4, "shares.b", "the key stands twice"), (5, "title", "the key stands twice")]
    json_text = '{"kind": "box", "schema_version": 1,\n"shares": {"b": 1,\n"b": 2}}'
    assert faults_of(json_text) == [(3, "shares.b", "the key stands twice")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("5: 1", "5 cannot be a key"),
        ("null: 1", "null cannot be a key"),
        ("? [a]\n: 1", "a list or mapping cannot be a key"),
        ("x: !!python/object:os.system 1", "no value of the kind !!python/object:os.system"),
        ("x: !!binary aGk=", "no value of the kind !!binary"),
        ("x: !!set {a, b}", "no value of the kind !!set"),
        ("x: !mine 1", "no value of the kind !mine"),
    ],
)
def test_what_json_could_not_say_is_refused(line: str, message: str) -> None:
    ((number, _, told),) = faults_of(HEAD + line + "\n")
    assert number == 3
    assert message in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        (HEAD + "title\nx: 1\n", "not valid YAML"),
        (HEAD + "\tx: 1\n", "not valid YAML"),
        (HEAD + "---\n" + HEAD, "not valid YAML"),
        (HEAD + "x: \x00\n", "not valid YAML"),
        ('{"kind": "box",\n"x" 1}', "box.yaml:2: not valid JSON"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("x: &x [*x]\n", "nested too deeply"),
    ],
)
def test_what_cannot_be_parsed_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_document(text, Box, file="box.yaml")
    assert message in caught.value.problem


@given(text=st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_document_or_an_input_error(text: str) -> None:
    with suppress(InputError):
        parse_document(HEAD + text, Box, file="f")


@given(
    content=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    )
)
@settings(max_examples=200, deadline=None)
def test_any_json_is_a_document_or_faults_with_lines(content: object) -> None:
    """Also through YAML: the two readers must agree on what is a document."""
    whole = {"kind": "box", "schema_version": 1, "items": content}
    refusals = []
    for text in (json.dumps(whole), yaml.safe_dump(whole)):
        try:
            parse_document(text, Box, file="f")
        except InputError as error:
            refusals.append(error)
    assert len(refusals) in (0, 2)
    assert all(fault.line >= 1 for error in refusals for fault in error.faults)


# --- reading files -----------------------------------------------------------------------------


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml does not exist"):
        read_document(tmp_path / "none.yaml", Box)
    with pytest.raises(InputError, match="is a folder"):
        read_document(tmp_path, Box)
    (tmp_path / "latin.yaml").write_bytes(b"title: \xff")
    with pytest.raises(InputError, match="is not UTF-8"):
        read_document(tmp_path / "latin.yaml", Box)


def test_kind_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(HEAD, encoding="utf-8")
    (tmp_path / "b.json").write_text('{"kind": 5}', encoding="utf-8")
    (tmp_path / "c.yaml").write_text("- 1\n", encoding="utf-8")
    assert [read_kind(tmp_path / name) for name in ("a.yaml", "b.json", "c.yaml")] == ["box", "", ""]


def test_faults_known_by_their_keys_get_lines(tmp_path: Path) -> None:
    path = tmp_path / "box.yaml"
    path.write_text(
        HEAD + "items:\n  - {name: a, weight_kg: 1}\n  - name: b\n    weight_kg: 2\n", encoding="utf-8"
    )
    keys = {
        "items[1].weight_kg": 6,
        "items[1].colour": 5,
        "items[0].name": 4,
        "title": 1,
        "items[7]": 3,
        "": 1,
    }
    faults = [Fault(file="elsewhere", key=key, message="m") for key in keys]
    located = locate_faults(faults, path)
    assert {fault.key: fault.line for fault in located} == keys
    assert {fault.file for fault in located} == {str(path)}


# --- writing -----------------------------------------------------------------------------------


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    finite = st.floats(allow_nan=False, allow_infinity=False)
    words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    names = draw(st.lists(st.text("abcxyz", min_size=1, max_size=4), max_size=3, unique=True))
    positive = st.floats(min_value=1e-300, allow_nan=False, allow_infinity=False)
    items = [
        Item(name=name, weight_kg=draw(positive), colour=draw(st.sampled_from(Colour))) for name in names
    ]
    return Box(
        title=draw(words),
        note=draw(st.none() | words),
        count=draw(st.integers()),
        sizes=tuple(draw(st.lists(st.tuples(st.integers(), st.integers()), max_size=30))),
        shares=draw(st.dictionaries(words, finite, max_size=4)),
        either=draw(st.none() | st.integers() | words),
        items=tuple(items),
    )


@given(box=boxes())
@settings(max_examples=150, deadline=None)
def test_round_trip(box: Box) -> None:
    text = to_json(box)
    again = parse_document(text, Box, file="f")
    assert again == box
    assert to_json(again) == text
    assert digest(again) == digest(box)


@given(box=boxes(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_digest_does_not_depend_on_key_order_layout_or_comments(box: Box, data: st.DataObject) -> None:
    content = json.loads(to_json(box))
    keys = data.draw(st.permutations(list(content)))
    shuffled = json.dumps({key: content[key] for key in keys}, indent=data.draw(st.integers(0, 4)))
    assert digest(parse_document(shuffled, Box, file="f")) == digest(box)
    shuffled_content = {key: content[key] for key in keys}
    commented = "# a comment\n" + yaml.dump(shuffled_content, Dumper=QuotingDumper, sort_keys=False)
    # YAML has no text for some control characters; what it can say must mean the same.
    assert digest(parse_document(commented, Box, file="f")) == digest(box)


def test_digest_does_not_depend_on_the_order_of_free_keys() -> None:
    assert digest(Box(shares={"a": 1.0, "b": 2.0})) == digest(Box(shares={"b": 2.0, "a": 1.0}))


def test_digest_depends_on_every_value() -> None:
    box = Box(title="a", items=(Item(name="a", weight_kg=1.0),))
    others = [
        box.model_copy(update={"title": "b"}),
        box.model_copy(update={"items": (Item(name="a", weight_kg=1.0000000000000002),)}),
        box.model_copy(update={"items": (Item(name="a", weight_kg=1.0, colour=Colour.BLUE),)}),
        box.model_copy(update={"shares": {"x": 0.0}}),
    ]
    assert len({digest(document) for document in (box, *others)}) == 5
    assert digest(box).startswith("sha256:")


def test_json_has_short_lists_on_a_line_and_ends_with_a_newline() -> None:
    box = Box(title="é", sizes=tuple((index, index) for index in range(40)), shares={"a": 0.1})
    text = to_json(box)
    assert text.endswith("}\n")
    assert '"title": "é"' in text
    assert "\n    [39, 39]\n" in text
    assert max(map(len, text.splitlines())) <= 110


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan is whole or not there, even if the machine stops in the middle."""
    path = tmp_path / "sub" / "box.json"
    write_document(Box(title="old"), path)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        write_document(Box(title="new"), path)
    assert read_document(path, Box).title == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["box.json"]


def test_writing_where_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be written"):
        write_text("x", tmp_path / "file" / "box.json")


def test_equality_and_hash_look_at_the_fields_alone() -> None:
    """A cached property may be an array, whose comparison has no truth value."""
    first, second = Plate(side_m=2), Plate(side_m=2)
    assert first.corners_m.size == 4
    assert first == second
    assert hash(first) == hash(second)
    assert first != Plate(side_m=3)
    assert first != Item(name="a", weight_kg=1)


def test_documents_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Box(title="a").title = "b"  # type: ignore[misc]
