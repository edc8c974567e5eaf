"""Which YAML a local file may contain, and the location of errors."""

import os
from pathlib import Path

import pytest

from router.config.schema import SettingsError
from router.config.yaml_document import MAX_BYTES, YamlDocument, read_json, read_yaml


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "m.yaml"


def read(file: Path, text: str | bytes) -> YamlDocument:
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_yaml(file)


def error_text(file: Path, text: str | bytes) -> str:
    with pytest.raises(SettingsError) as caught:
        read(file, text)
    return str(caught.value).removeprefix(f"{file.parent}/")


def test_scalars_stay_text_except_null(file: Path) -> None:
    text = "a: 0123\nb: no\nc: 1_000\nd: 2024-01-01\ne: 1.50\nf: [null, ~, '', 'null', \"~\"]\ng:\nyes: on\n<<: x\n"
    assert read(file, text).values == {
        "a": "0123",
        "b": "no",
        "c": "1_000",
        "d": "2024-01-01",
        "e": "1.50",
        "f": [None, None, "", "null", "~"],
        "g": None,
        "yes": "on",
        "<<": "x",
    }


def test_empty_file_has_no_values(file: Path) -> None:
    assert read(file, "").values is None
    assert read(file, "# only a comment\n").values is None


def test_byte_order_mark_is_ignored(file: Path) -> None:
    assert read(file, b"\xef\xbb\xbfa: b\n").values == {"a": "b"}


def test_location_is_the_line_of_the_value_or_of_its_nearest_parent(file: Path) -> None:
    document = read(file, "a:\n  b: 1\n  c:\n  - x\n  - y: 1\n")
    assert document.locate(("a", "b")) == f"{file}, line 2"
    assert document.locate(("a", "c", "1", "y")) == f"{file}, line 5"
    assert document.locate(("a", "missing", "deeper")) == f"{file}, line 1"
    assert document.locate(("missing",)) == document.locate(()) == str(file)


def test_escaped_surrogates_are_characters(file: Path) -> None:
    text = r'{"a": "\ud83d\ude00", "b": "\ud83d", "c": "\u00e9"}'
    expected = {"a": "\N{GRINNING FACE}", "b": "\N{REPLACEMENT CHARACTER}", "c": "\u00e9"}
    assert read(file, text).values == expected
    assert read_json(file).values == expected


def test_json_has_lines_and_text(file: Path) -> None:
    file.write_text('{\n\t"a": 01,\n\t"b": [true, null, 1.50]}')
    with pytest.raises(SettingsError, match="line 2: file: is not JSON: "):
        read_json(file)
    file.write_text('{\n\t"a": 1,\n\t"b": [true, null, 1.50, "a\\tb"]}')
    document = read_json(file)
    assert document.values == {"a": "1", "b": ["true", None, "1.50", "a\tb"]}
    assert document.locate(("b", "2")) == f"{file}, line 3"


def test_aliases_are_expanded(file: Path) -> None:
    assert read(file, "a: &x {b: '1'}\nc: *x\n").values == {"a": {"b": "1"}, "c": {"b": "1"}}


def test_merge_key_adds_missing_entries_with_their_lines(file: Path) -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b\n  y: 3\n  z: 4\nc:\n  <<: *a\n  x: 5\nd: {<<: [*b, *a]}\ne: {'<<': *a}\n"
    document = read(file, text)
    assert document.values == {
        "a": {"x": "1", "y": "2"},
        "b": {"y": "3", "z": "4"},
        "c": {"x": "5", "y": "2"},
        "d": {"y": "3", "z": "4", "x": "1"},
        "e": {"<<": {"x": "1", "y": "2"}},
    }
    assert document.locate(("c", "x")) == f"{file}, line 7"
    assert document.locate(("c", "y")) == f"{file}, line 1"
    assert document.locate(("d", "z")) == f"{file}, line 4"


def test_merge_keys_are_bounded(file: Path) -> None:
    assert "must not be nested deeper than" in error_text(file, "a: &a {<<: *a}")
    lines = ["a0: &a0 {x: y}"] + [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 19)]
    assert "must not contain more than" in error_text(file, "\n".join(lines))
    many = "{" + ", ".join(f"x{n}: y" for n in range(400)) + "}"
    text = f"a: &a {many}\nb: {{<<: [{', '.join(['*a'] * 400)}]}}"
    assert "must not contain more than" in error_text(file, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b\n<<: {c: 1,\n c: 2}\n", "m.yaml, line 3: file: has c twice, also on line 2"),
        ("a: b\n<<: !secret {c: 1}\n", "m.yaml, line 2: file: must not use the tag !secret"),
        ("a: 1\nb: 2\na: 3\n", "m.yaml, line 3: file: has a twice, also on line 1"),
        ("a:\n  b: 1\n  'b': 2\n", "m.yaml, line 3: file: has b twice, also on line 2"),
        ("a: b\n? [x]\n: y\n", "m.yaml, line 2: file: must have text for every name"),
        ("a: !!python/object:os.system x\n", "must not use the tag tag:yaml.org,2002:python/object:os.system"),
        ("a: !secret x\n", "m.yaml, line 1: file: must not use the tag !secret"),
        ("a: b\n\tc: d\n", "m.yaml, line 2: file: is not YAML: found character '\\\\t' that cannot start any token"),
        ("a: [b\n", "m.yaml, line 2: file: is not YAML: "),
        ("a: *x\n", "m.yaml, line 1: file: is not YAML: found undefined alias 'x'"),
        ("a: b\n---\nc: d\n", "m.yaml, line 2: file: is not YAML: but found another document"),
        ("a: b\nc: \x07\n", "m.yaml, line 2: file: has a character that YAML does not allow"),
        (b"a: b\nc: \xff\n", "m.yaml, line 2: file: must be UTF-8 text"),
    ],
)
def test_errors_are_one_line_with_their_location(file: Path, text: str | bytes, message: str) -> None:
    error = error_text(file, text)
    assert message.replace("\\\\t", "\\t") in error
    assert error.isprintable()


def test_size_is_bounded(file: Path) -> None:
    assert error_text(file, "#" * (MAX_BYTES + 1)) == f"m.yaml: file: must not exceed {MAX_BYTES} bytes"
    assert read(file, "#" * MAX_BYTES).values is None


def test_aliases_that_multiply_values_are_rejected(file: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "must not contain more than" in error_text(file, "\n".join(lines))


@pytest.mark.parametrize("text", ["a: &a [*a]", "[" * 100 + "]" * 100, "[" * 20_000, "a:\n" + " - " * 5_000])
def test_depth_is_bounded(file: Path, text: str) -> None:
    assert "must not be nested deeper than 20" in error_text(file, text)


def test_error_about_an_unreadable_file_names_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "pipe"):
        with pytest.raises(SettingsError, match="file: cannot be read: ") as caught:
            read_yaml(path)
        assert str(path) in str(caught.value)
