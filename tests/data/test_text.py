"""Text files in other encodings: read where the bytes allow one reading, else refused."""

import pytest

from finetune.data.text import read_text
from finetune.errors import UserError


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("road\nStra\xdfe\n", "utf-8"),
        ("\u9053\u8def\nroad\n", "utf-8-sig"),
        ("road\r\nStra\xdfe\r\n", "utf-16"),
        ("road\nStra\xdfe\n", "utf-16-le"),
        ("road\nStra\xdfe\n", "utf-16-be"),
        ("road\n", "utf-32"),
        ("Stra\xdfe\nB\xe4ume\n\xd6l", "latin-1"),
        ("v\xe9hicule\nDach \u2013 flach", "cp1252"),
        ("\u0142\u0105ka", "cp1250"),
    ],
)
def test_bytes_that_allow_one_reading(tmp_path, text, encoding):
    file = tmp_path / "classes.txt"
    file.write_bytes(text.encode(encoding))
    assert read_text(file) == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("for\xeat".encode("cp1252"), "'for\xeat' as cp1252, 'for\u0119t' as cp1250"),
        ("\u0434\u043e\u0440\u043e\u0433\u0430".encode("cp1251"), "do not tell its encoding"),
        ("\u9053\u8def".encode("gbk"), "do not tell its encoding"),
        ("B\xe4ume".encode("cp850"), "do not tell its encoding"),
        ("ye\u015fil".encode("cp1254"), "do not tell its encoding"),
        (b"\x89PNG\0\1\0", "not a text file"),
        (b"\xff\xfea", "cannot be read as utf-16"),
    ],
)
def test_bytes_that_allow_none_or_several(tmp_path, data, message):
    file = tmp_path / "classes.txt"
    file.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        read_text(file)
    assert str(file) in str(caught.value)
