"""Writes src/text/html_entities.inc: the named character references of HTML 5, as Python's html.entities has them.

    python tools/make_html_entities.py
"""

import html
import pathlib
from html.entities import html5

TARGET = pathlib.Path(__file__).resolve().parents[1] / "src/text/html_entities.inc"


def entry(name, text):
    points = [f"0x{ord(c):x}" for c in text]
    return "{" + ", ".join([f'"{name}"', *points]) + "}"


def lines(entries):
    row = " "
    for item in entries:
        if len(row) + len(item) + 2 > 120:
            yield row
            row = " "
        row += " " + item + ","
    yield row


# Names in capitals that are no entities themselves but stand for the capital letter: ftfy reads them, HTML does not.
capitals = {}
for name, text in html5.items():
    upper = name.upper()
    free = html.unescape("&" + upper) == "&" + upper
    if name.endswith(";") and name == name.lower() and text != text.upper() and free:
        capitals[upper] = text.upper()

plain_rows = "\n".join(lines(entry(name, html5[name]) for name in sorted(html5)))
capital_rows = "\n".join(lines(entry(name, capitals[name]) for name in sorted(capitals)))
TARGET.write_text(
    "// Made by tools/make_html_entities.py: {name, its one to three code points}, sorted by name.\n"
    f"constexpr Entity kEntities[] = {{\n{plain_rows}\n}};\n"
    f"constexpr Entity kCapitalEntities[] = {{\n{capital_rows}\n}};\n"
)
