"""Writes src/pipeline/html_entities.inc: the named character references of HTML 5, as Python's html.entities lists them.

    python tools/make_html_entities.py
"""

import html
import pathlib
from html.entities import html5

TARGET = pathlib.Path(__file__).resolve().parents[1] / "src/pipeline/html_entities.inc"


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
    if name.endswith(";") and name == name.lower() and text != text.upper() and html.unescape("&" + upper) == "&" + upper:
        capitals[upper] = text.upper()

TARGET.write_text(
    "// Made by tools/make_html_entities.py: {name, its one to three code points}, sorted by name.\n"
    "constexpr Entity kEntities[] = {\n" + "\n".join(lines(entry(n, html5[n]) for n in sorted(html5))) + "\n};\n"
    "constexpr Entity kCapitalEntities[] = {\n" + "\n".join(lines(entry(n, capitals[n]) for n in sorted(capitals))) + "\n};\n"
)
